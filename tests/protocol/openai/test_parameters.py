"""Nothing is ignored: every field that OpenAI's client or vLLM know is done, without effect, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from openai.types.responses import response_create_params as response_params

from protocol.openai.parameters import MEANINGS, NO_EFFECT, REFUSED, ParameterSet, refuse_unsupported
from runners.core.errors import UnsupportedError
from tools.generated_pages import DOCS, describe_parameters, list_supported

CLIENT: dict[ParameterSet, Any] = {
    ParameterSet.COMPLETIONS: completion_params.CompletionCreateParamsBase,
    ParameterSet.CHATS: chat_params.CompletionCreateParamsBase,
    ParameterSet.RESPONSES: response_params.ResponseCreateParamsBase,
}
DOCUMENT = DOCS / "reference" / "generation-parameters.md"


def assert_known(route: ParameterSet, names: Iterable[str]) -> None:
    assert not {*names} - list_supported(route) - NO_EFFECT[route] - {*REFUSED[route]}


@pytest.mark.parametrize("route", CLIENT)
def test_every_field_of_openai_is_known(route: ParameterSet) -> None:
    assert_known(route, CLIENT[route].__annotations__)
    assert len(CLIENT[route].__annotations__) > 15


@pytest.mark.slow
def test_every_field_of_vllm_is_known() -> None:
    protocol = pytest.importorskip("vllm.entrypoints.openai.completion.protocol")
    assert_known(ParameterSet.COMPLETIONS, protocol.CompletionRequest.model_fields)
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest as VllmResponsesRequest

    assert_known(ParameterSet.CHATS, ChatCompletionRequest.model_fields)
    assert_known(ParameterSet.RESPONSES, VllmResponsesRequest.model_fields)


@pytest.mark.parametrize("route", ParameterSet)
def test_a_parameter_is_in_one_place(route: ParameterSet) -> None:
    assert not list_supported(route) & NO_EFFECT[route]
    assert not {*REFUSED[route]} & (list_supported(route) | NO_EFFECT[route])


def test_every_parameter_that_is_done_has_a_meaning_and_no_other() -> None:
    assert {*MEANINGS} == set().union(*map(list_supported, ParameterSet))


@pytest.mark.parametrize("route", [ParameterSet.COMPLETIONS, ParameterSet.CHATS, ParameterSet.RESPONSES])
def test_what_is_not_done_is_refused_by_name(route: ParameterSet) -> None:
    for name, refusal in REFUSED[route].items():
        for value in (None, *refusal.neutral):
            refuse_unsupported({name: value}, route)
        with pytest.raises(UnsupportedError, match=name) as error:
            refuse_unsupported({name: {"a": 1}}, route)
        assert error.value.param == name
        assert ("where vLLM runs" in str(error.value)) == refusal.on_vllm
    refuse_unsupported({"nobody_knows": 1}, route)


def test_the_table_of_the_document() -> None:
    """One line for each parameter: what each route does with it, and what it means."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == [(name, " | ".join(cells)) for name, cells in describe_parameters().items()]
