"""What a call of each of BentoML's methods asks of a model, and how its answer is rendered."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocol.bentoml_api.arguments import create_body_type
from protocol.bentoml_api.methods import METHODS, Method
from protocol.bentoml_api.served_methods import serves_method
from protocol.http.body import check_kept_parameters, convert_json, decode_json
from protocol.model_selection import ModelSelection
from protocol.rankings import list_ranked, read_scores
from protocol.records import list_records
from protocol.vectors import stack_vectors
from runners.core.errors import InputError
from runners.core.generation import Chat, GenerationRequest, Prompt
from runners.core.models import Models
from runners.core.predictions import RELEVANCE, Options, Prediction, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner

# The values of a call's arguments by name; those that the caller has left out are missing.
Values = Mapping[str, Any]
# Renders the answer of an encoder, of lists and iterators.
Render = Callable[[Sequence[Prediction]], Any]


@dataclass(frozen=True, slots=True)
class EncoderMethod:
    """What a method asks of an encoder.

    Attributes:
        read: makes the texts of a call's inputs; raises an InputError.
        render: makes the answer.
        record_options: options that make records of the answer, for a call whose options make none.
        fixed_options: options that each call has, whatever the operator's defaults are.
        outputs: the outputs that a call needs beside the main one.
    """

    read: Callable[[Values], list[TextInput]]
    render: Callable[[Sequence[Prediction], Options], Any]
    record_options: Mapping[str, Any] = field(default_factory=dict)
    fixed_options: Mapping[str, Any] = field(default_factory=dict)
    outputs: frozenset[str] = frozenset()


async def infer(
    method: Method, runner: Runner, values: Values, limits: RequestLimits
) -> tuple[list[Prediction], Render]:
    """Let an encoder answer a call.

    Raises:
        InputError: an argument is wrong, or a text cannot be served.
        RunnerError: the model cannot answer.
    """
    call = _ENCODER_METHODS[method.name]
    options = resolve_options(runner, _select_options(method, values), limits)
    more = {} if options.answer.asks_for_records else call.record_options
    answer = options.answer.model_copy(update={**more, **call.fixed_options})
    options = replace(options, answer=answer, outputs=call.outputs)
    predictions = await runner.infer(call.read(values), options)
    return predictions, lambda answers: call.render(answers, options)


async def stream(
    method: Method, runner: Runner, values: Values, limits: RequestLimits
) -> AsyncGenerator[str | None, None]:
    """Let a generator answer a call, with the pieces of a text; None comes first, once the request is accepted.

    Raises:
        InputError: an argument is wrong, or the prompt cannot be continued.
        RunnerError: the model cannot answer.
    """
    generator = runner.generator
    assert generator is not None, "no other model serves the method"
    options = resolve_options(runner, _select_options(method, values), limits)
    prompt = _read_prompt(values, limits)
    # As in OpenAI's API, the answer to a chat may fill the context.
    sampling = replace(options.sampling, default_tokens=None) if isinstance(prompt, Chat) else options.sampling
    request = GenerationRequest([prompt], sampling, options.prompt, collected=False)
    async with generator.generate(request) as accepted:
        yield None
        async for _, delta in accepted.deltas:
            if delta.text:
                yield delta.text


def select_from(models: Models, method: Method) -> ModelSelection:
    """The selection of the model that answers a call."""
    return ModelSelection(models, method.path, lambda runner: serves_method(runner, method), "model")


def read_json(method: Method, body: bytes, limits: RequestLimits) -> Values:
    """The arguments in the body of a call.

    Raises:
        LimitExceededError: the body has more values than the operator allows, or its options too many characters.
        InputError: the body is no JSON, or an argument is missing, unknown or of a wrong type.
    """
    values = _list_values(decode_json(body, _decoder(method.name), limits))
    check_kept_parameters(body, _select_options(method, values), limits)
    return values


def read_values(method: Method, arguments: Mapping[str, Any]) -> Values:
    """The arguments of a call that are Python's values.

    Raises:
        InputError: an argument is missing, unknown or of a wrong type.
    """
    return _list_values(convert_json(dict(arguments), _decoder(method.name).type, "the call"))


def to_python(answer: Any) -> Any:
    """The answer with lists in place of iterators."""
    return [to_python(item) for item in answer] if isinstance(answer, Iterator | list) else answer


@cache
def _decoder(name: str) -> msgspec.json.Decoder[msgspec.Struct]:
    title = name.title().replace("_", "")
    return msgspec.json.Decoder(create_body_type(f"{title}Call", METHODS[name].arguments))


def _list_values(call: msgspec.Struct) -> Values:
    # BentoML's proxies send None for what the caller has left out.
    return {name: value for name, value in msgspec.structs.asdict(call).items() if value is not None}


def _select_options(method: Method, values: Values) -> dict[str, Any]:
    return {option.name: values[option.name] for option in method.options if option.name in values}


def _read_texts(values: Values) -> list[TextInput]:
    return [TextInput(text) for text in _check_filled(values, "texts")]


def _read_labelled(values: Values) -> list[TextInput]:
    _check_filled(values, "candidate_labels")
    return _read_texts(values)


def _read_query(values: Values) -> list[TextInput]:
    return [TextInput(values["query"], text) for text in _check_filled(values, "texts")]


def _read_pairs(texts: str, pairs: str) -> Callable[[Values], list[TextInput]]:
    """Reads pairs of the texts of two arguments, or single texts where the second one is missing."""

    def read(values: Values) -> list[TextInput]:
        firsts, seconds = _check_filled(values, texts), values.get(pairs)
        if seconds is None:
            return [TextInput(text) for text in firsts]
        if len(firsts) != len(seconds):
            raise InputError(f"{texts} has {len(firsts)} texts, but {pairs} has {len(seconds)}: give as many", pairs)
        return list(map(TextInput, firsts, seconds))

    return read


def _read_prompt(values: Values, limits: RequestLimits) -> Prompt:
    if "messages" not in values:
        return str(values["prompt"])
    messages = _check_filled(values, "messages")
    limits.check("max_messages", len(messages), "messages", "messages")
    return Chat(messages)


def _check_filled(values: Values, name: str) -> list[Any]:
    found: list[Any] = values[name]
    if not found:
        raise InputError(f"{name} is empty; give at least one", name)
    return found


def _list_records(predictions: Sequence[Prediction], _: Options) -> Iterator[Any]:
    """The records of each text, in a list also where there is one; those of a mask are a list themselves."""
    for prediction in predictions:
        nested = list_records(prediction.records)
        yield [nested] if isinstance(nested, dict) else nested


def _stack_vectors(predictions: Sequence[Prediction], _: Options) -> NDArray[np.float32]:
    return stack_vectors(predictions)


def _rank(predictions: Sequence[Prediction], options: Options) -> Iterable[Any]:
    """The texts, best first; a score is the model's own unless an option says how it follows from the logit."""
    output = RELEVANCE if options.answer.function_to_apply is None else None
    return list_ranked(read_scores(predictions, output))


_LABELS = {"labels": True}
# By the method's name.
_ENCODER_METHODS: Mapping[str, EncoderMethod] = {
    "classify": EncoderMethod(_read_pairs("texts", "text_pairs"), _list_records, _LABELS),
    "classify_tokens": EncoderMethod(_read_texts, _list_records, _LABELS),
    "classify_zero_shot": EncoderMethod(_read_labelled, _list_records),
    # The number of tokens is that of the pipeline of `transformers`.
    "fill_mask": EncoderMethod(_read_texts, _list_records, {"top_k": 5}),
    "answer": EncoderMethod(_read_pairs("questions", "contexts"), _list_records),
    "embed": EncoderMethod(_read_texts, _stack_vectors),
    "embed_sparse": EncoderMethod(_read_texts, _list_records),
    "rank": EncoderMethod(
        _read_query,
        _rank,
        fixed_options={**_LABELS, "top_k": None, "threshold": None},
        outputs=frozenset({RELEVANCE}),
    ),
}
