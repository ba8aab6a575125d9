"""Nothing is ignored: every field that OpenAI's client or vLLM know is done, without effect, or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any

import pytest
from huggingface_hub import ChatCompletionInput
from openai.types import completion_create_params as completion_params
from openai.types import embedding_create_params as embedding_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from protocol.openai import generation_parameters, pooling_parameters
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import NO_EFFECT, REFUSED, BodyDecoder
from runners.core.errors import InputError, UnsupportedError
from runners.core.request_limits import RequestLimits
from tools.generated_pages import DOCS, GENERATION, POOLING, TYPES, describe_parameters, list_supported

CLIENT: dict[ParameterSet, Any] = {
    ParameterSet.COMPLETIONS: completion_params.CompletionCreateParamsBase,
    ParameterSet.CHATS: chat_params.CompletionCreateParamsBase,
    ParameterSet.RESPONSES: response_params.ResponseCreateParamsBase,
    ParameterSet.EMBEDDINGS: embedding_params.EmbeddingCreateParams,
}
# By route: modules of vLLM's with the classes of its bodies, and patterns of their names.
VLLM = {
    ParameterSet.COMPLETIONS: ("openai.completion.protocol", "CompletionRequest"),
    ParameterSet.CHATS: ("openai.chat_completion.protocol", "ChatCompletionRequest"),
    ParameterSet.RESPONSES: ("openai.responses.protocol", "ResponsesRequest"),
    ParameterSet.EMBEDDINGS: ("pooling.embed.protocol", "Embedding.*Request"),
    ParameterSet.RERANK: ("pooling.scoring.protocol", "RerankRequest"),
    ParameterSet.SCORE: ("pooling.scoring.protocol", "Score.*Request"),
    ParameterSet.CLASSIFY: ("pooling.classify.protocol", "Classification.*Request"),
    ParameterSet.POOLING: ("pooling.pooling.protocol", "(Pooling|IOProcessor).*Request"),
    ParameterSet.TOKENIZE: ("serve.tokenize.protocol", "Tokenize.*Request"),
    ParameterSet.DETOKENIZE: ("serve.tokenize.protocol", "DetokenizeRequest"),
}
# Each in its table of the docs.
TABLES: dict[str, tuple[Mapping[str, ParameterSet], Mapping[str, str]]] = {
    "generation-parameters.md": (GENERATION, generation_parameters.MEANINGS),
    "pooling-parameters.md": (POOLING, pooling_parameters.MEANINGS),
}


def assert_known(route: ParameterSet, names: Iterable[str]) -> None:
    assert not {*names} - list_supported(route) - NO_EFFECT[route] - {*REFUSED[route]}


@pytest.mark.parametrize("route", CLIENT)
def test_every_field_of_openai_is_known(route: ParameterSet) -> None:
    assert_known(route, CLIENT[route].__annotations__)
    assert len(CLIENT[route].__annotations__) >= 5


def test_every_field_of_huggingface_hub_is_known() -> None:
    assert_known(ParameterSet.CHATS, [each.name for each in fields(ChatCompletionInput)])


@pytest.mark.slow
@pytest.mark.parametrize("route", VLLM)
def test_every_field_of_vllm_is_known(route: ParameterSet) -> None:
    pytest.importorskip("vllm")
    name, pattern = VLLM[route]
    module = import_module(f"vllm.entrypoints.{name}")
    kinds = [
        kind for name, kind in vars(module).items() if re.fullmatch(pattern, name) and hasattr(kind, "model_fields")
    ]
    assert kinds
    for kind in kinds:
        assert_known(route, kind.model_fields)


def test_every_route_is_judged() -> None:
    assert {*VLLM} == {*ParameterSet} - {ParameterSet.PARAMETERS}
    assert {*REFUSED} == {*NO_EFFECT} == {*TYPES} == {*ParameterSet}


@pytest.mark.parametrize("route", ParameterSet)
def test_a_parameter_is_in_one_place(route: ParameterSet) -> None:
    assert not list_supported(route) & NO_EFFECT[route]
    # Tokenization has a body for texts and one for chats.
    assert not {*REFUSED[route]} & (list_supported(route) | NO_EFFECT[route])


@pytest.mark.parametrize("table", TABLES)
def test_every_parameter_that_is_done_has_a_meaning_and_no_other(table: str) -> None:
    routes, meanings = TABLES[table]
    assert {*meanings} == set().union(*map(list_supported, routes.values()))


@pytest.mark.parametrize("route", ["embeddings", "rerank", "score", "classify", "pooling"])
def test_what_one_call_of_encoders_does_is_known_to_all(route: str) -> None:
    """Else it would be dropped without a word."""
    assert_known(ParameterSet(route), pooling_parameters.MEANINGS.keys() - {"tokens", "return_token_strs"})


# The least that a body has.
BODIES: dict[ParameterSet, dict[str, Any]] = {
    ParameterSet.COMPLETIONS: {"prompt": "a"},
    ParameterSet.CHATS: {"messages": [{"role": "user", "content": "a"}]},
    ParameterSet.RESPONSES: {"input": "a"},
    ParameterSet.EMBEDDINGS: {"input": "a"},
    ParameterSet.RERANK: {"query": "a", "documents": ["b"]},
    ParameterSet.SCORE: {"text_1": "a", "text_2": "b"},
    ParameterSet.CLASSIFY: {"input": "a"},
    ParameterSet.POOLING: {"input": "a"},
    ParameterSet.TOKENIZE: {"prompt": "a"},
    ParameterSet.DETOKENIZE: {"tokens": [1]},
}


@pytest.mark.parametrize("route", BODIES)
def test_what_is_not_done_is_refused_by_name(route: ParameterSet) -> None:
    decoder: Any = BodyDecoder(TYPES[route][0], route)

    def decode(body: Any) -> Any:
        return decoder.decode(json.dumps(body).encode(), RequestLimits())

    for name, refusal in REFUSED[route].items():
        for value in (None, *refusal.neutral):
            decode({**BODIES[route], name: value})
        # Also where the body lacks what it must have.
        for body in (BODIES[route], {}):
            with pytest.raises(UnsupportedError, match=name) as error:
                decode({**body, name: {"a": 1}})
            assert error.value.param == name
            assert ("where vLLM runs" in str(error.value)) == refusal.on_vllm
            for value in refusal.neutral:
                assert json.dumps(value, separators=(",", ":")) in str(error.value)
    decode({**BODIES[route], "nobody_knows": 1})
    with pytest.raises(InputError) as missing:
        decode({} if route is not ParameterSet.SCORE else {"text_1": 1})
    assert not isinstance(missing.value, UnsupportedError)


def test_a_removed_parameter_names_its_successor() -> None:
    decoder = BodyDecoder(TYPES[ParameterSet.CHATS][0], ParameterSet.CHATS)
    body = {**BODIES[ParameterSet.CHATS], "guided_choice": ["a"]}
    with pytest.raises(UnsupportedError) as error:
        decoder.decode(json.dumps(body).encode(), RequestLimits())
    assert str(error.value) == "guided_choice is not supported here; use structured_outputs"


@pytest.mark.parametrize("table", TABLES)
def test_the_table_of_the_document(table: str) -> None:
    """One line for each parameter: what each route does with it, and what it means."""
    routes, meanings = TABLES[table]
    page = (DOCS / "reference" / table).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, re.MULTILINE)
    expected = describe_parameters([*routes.values()], meanings)
    assert rows == [(name, " | ".join(cells)) for name, cells in expected.items()]
