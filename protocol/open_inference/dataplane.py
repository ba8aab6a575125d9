"""The `infer` call of the Open Inference Protocol, for REST and gRPC: tensors in, tensors out.

Both only translate to and from this module, so that they cannot disagree.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from protocol.http.middleware.request_id import request_id
from protocol.http.rendering import count_numbers, render_off_loop
from protocol.open_inference.inputs import INPUT, PAIRS, TOKEN_INPUTS, read_input_tensors
from protocol.output_tensors import (
    TensorSpec,
    build_tensor,
    classification_tensor,
    describe_output,
    output_name,
    wire_name,
)
from protocol.request_parameters import select_model_parameters
from protocol.service_paths import check_generates
from protocol.tensors import BYTES, Tensor
from runners.core.errors import InputError
from runners.core.models import Models
from runners.core.predictions import (
    LOGITS,
    MAIN,
    OFFSETS,
    PROBABILITIES,
    AnswerForm,
    Numbers,
    Options,
    Prediction,
    Records,
    TextInput,
    TokenInput,
)
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner
from runners.core.task import Task

T = TypeVar("T")

# Copying this many numbers takes as long as printing one.
_COPIED = 64


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the client asks for by name."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InferCall:
    """A request, as REST and gRPC pass it on.

    Attributes:
        outputs: the requested outputs; empty for the model's default outputs.
        binary: whether outputs are binary unless the request says otherwise.
    """

    inputs: Sequence[Tensor]
    parameters: Mapping[str, Any]
    outputs: Sequence[RequestedOutput]
    binary: bool = False


@dataclass(frozen=True, slots=True)
class _ResolvedOutput:
    """An output of the answer.

    Attributes:
        name: the runners' name of the output.
        binary: whether the answer has it in binary form.
        top: the number of best classes to return instead of the tensor; None for the tensor itself.
        scores: the output that has the classes' scores.
    """

    name: str
    binary: bool
    top: int | None = None
    scores: str = ""


# The tensors of an answer, each with whether it is binary.
AnswerTensors = list[tuple[Tensor, bool]]


def describe_model(models: Models, runner: Runner) -> dict[str, Any]:
    """The metadata of a model: its inputs and all its outputs, including those that a request must name."""
    outputs = {spec.name: spec for spec in (*runner.outputs(runner.default_options), *runner.named_outputs())}
    tensors = map(describe_output, outputs.values())
    return {
        "name": runner.name,
        "versions": models.versions(runner.name),
        "platform": "pytorch_transformers",
        "inputs": [_describe_tensor(PAIRS if runner.task is Task.QUESTION_ANSWERING else INPUT)],
        "outputs": [_describe_tensor(spec) for spec in tensors],
        "properties": {**runner.properties, "token_inputs": ",".join(TOKEN_INPUTS)},
    }


def answer_id(client_id: str | None) -> str:
    """The id of an answer: the request's, X-Request-Id, or a new one, since KServe's clients need one."""
    return client_id or request_id.get() or str(uuid.uuid4())


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def check_tensor_counts(
    parameters: Sized, of_inputs: Sequence[Sized], of_outputs: Sequence[Sized], limits: RequestLimits
) -> None:
    """Check how many inputs, outputs and parameters a request has.

    Args:
        of_inputs: the parameters of each input.
        of_outputs: the parameters of each output.

    Raises:
        LimitExceededError: there are more than the operator allows.
    """
    limits.check("max_tensors", len(of_inputs), "inputs", "inputs")
    limits.check("max_tensors", len(of_outputs), "outputs", "outputs")
    for each in (parameters, *of_inputs, *of_outputs):
        limits.check("max_parameters", len(each), "parameters", "parameters")


async def infer(runner: Runner, call: InferCall, limits: RequestLimits, encode: Callable[[AnswerTensors], T]) -> T:
    """Answer a request.

    Args:
        encode: encodes the answer for the wire; called in a thread for a large answer.

    Raises:
        LimitExceededError: the request exceeds a limit.
        InputError: the model does not take such a request.
        RunnerError: the model cannot answer it.
    """
    texts, columns = await read_input_tensors(runner, call.inputs, limits)
    check_generates(runner)
    resolved = resolve_options(runner, select_model_parameters(call.parameters), limits)
    if isinstance(texts[0], TextInput) and texts[0].words is not None and not resolved.answer.asks_for_records:
        # The answer to words always has a record for each word.
        resolved = replace(resolved, answer=resolved.answer.model_copy(update={"labels": True}))
    wanted, options = _resolve_outputs(runner, call, resolved, limits, from_tokens=isinstance(texts[0], TokenInput))
    predictions = await runner.infer(texts, options)
    _check_padded(predictions, limits)
    # The answer has a place for each token of the client's tensors, padding included.
    columns = columns if runner.task is Task.TOKEN_CLASSIFICATION else 0

    def render() -> T:
        return encode([(_build(runner, output, predictions, columns), output.binary) for output in wanted])

    return await render_off_loop(render, sum(_count_printed(output, predictions) for output in wanted))


async def stream(
    runner: Runner, call: InferCall, limits: RequestLimits
) -> AsyncGenerator[tuple[AnswerTensors, bool], None]:
    """Answer a request in parts, each with whether it is the last; only generators answer with several parts.

    Raises:
        InputError, RunnerError: as `infer`.
    """
    if (generator := runner.generator) is None or not generator.generates:
        yield await infer(runner, call, limits, lambda answer: answer), True
        return
    texts, _ = await read_input_tensors(runner, call.inputs, limits)
    if len(texts) != 1:
        raise InputError(f"the request has {len(texts)} texts; a stream continues one a request")
    options = resolve_options(runner, select_model_parameters(call.parameters), limits)
    [wanted], _ = _resolve_outputs(runner, call, options, limits, from_tokens=False)
    async with contextlib.aclosing(generator.stream(texts[0], options)) as deltas:
        async for delta in deltas:
            if delta is not None and (delta.text or delta.finish_reason):
                yield (
                    [(Tensor(wire_name(MAIN), BYTES, [1], [delta.text]), wanted.binary)],
                    delta.finish_reason is not None,
                )


def _build(runner: Runner, output: _ResolvedOutput, predictions: Sequence[Prediction], columns: int) -> Tensor:
    if output.top is None:
        return build_tensor(output.name, predictions, columns)
    scores = [prediction.arrays[output.scores] for prediction in predictions]
    return classification_tensor(wire_name(output.name), scores, output.top, runner.class_name, columns)


def _check_padded(predictions: Sequence[Prediction], limits: RequestLimits) -> None:
    """Check the records of the answer, whose tensors have as many places for each text as the longest list needs.

    Raises:
        LimitExceededError: they have too many.
    """
    sizes = [prediction.main.size for prediction in predictions if isinstance(prediction.main, Records)]
    if sizes:
        limits.check("max_answer_numbers", len(sizes) * max(sizes), "numbers of the answer (lists are padded)")


def _count_printed(output: _ResolvedOutput, predictions: Sequence[Prediction]) -> int:
    """The cost of an output, in printed numbers; a binary output is only copied."""
    if output.name == MAIN and output.top is None:
        numbers = sum(map(count_numbers, predictions))
        copied = output.binary and isinstance(predictions[0].main, Numbers)
        return numbers // _COPIED if copied else numbers
    name = output.scores or output.name
    records = [prediction.main for prediction in predictions if isinstance(prediction.main, Records)]
    if records and name in records[0].columns:
        numbers = sum(each.columns[name].size for each in records)
    else:
        numbers = sum(prediction.arrays[name].size for prediction in predictions if name in prediction.outputs)
    return numbers // _COPIED if output.binary and output.top is None else numbers


def _resolve_outputs(
    runner: Runner, call: InferCall, options: Options, limits: RequestLimits, from_tokens: bool
) -> tuple[list[_ResolvedOutput], Options]:
    """The outputs of the answer, and the options, which request these outputs of the model."""
    all_binary = _read_boolean(call.parameters, "binary_data_output", call.binary)
    if from_tokens:
        # Tokens have no offsets in a text.
        options = replace(options, outputs=options.outputs - {OFFSETS})
    defaults = [spec.name for spec in runner.outputs(options)]
    if not call.outputs:
        return [_ResolvedOutput(name, all_binary) for name in defaults], options
    if len({output.name for output in call.outputs}) < len(call.outputs):
        raise InputError("the request names an output twice")
    output_names = list(dict.fromkeys([*defaults, *(spec.name for spec in runner.named_outputs())]))
    wanted = [_resolve_output(runner, output, output_names, all_binary, options, limits) for output in call.outputs]
    names = {output.scores or output.name for output in wanted}
    if OFFSETS in names and from_tokens:
        raise InputError(f"{wire_name(OFFSETS)} is of texts, and the request has tokens")
    return wanted, replace(options, outputs=frozenset(names - {MAIN}))


def _resolve_output(
    runner: Runner,
    requested: RequestedOutput,
    output_names: Sequence[str],
    all_binary: bool,
    options: Options,
    limits: RequestLimits,
) -> _ResolvedOutput:
    """An output that the request names.

    Args:
        output_names: the runners' names of the outputs that there are.
        all_binary: whether outputs are binary unless the request says otherwise.
    """
    name = output_name(requested.name)
    if name not in output_names or requested.name != wire_name(name):
        raise InputError(
            f"Unexpected inference output '{requested.name}' for model '{runner.name}'; "
            f"there are {', '.join(map(wire_name, output_names))}"
        )
    binary = _read_boolean(requested.parameters, "binary_data", all_binary)
    top = requested.parameters.get("classification")
    if top is None:
        return _ResolvedOutput(name, binary)
    return _ResolvedOutput(name, binary, _read_top(top, limits), _find_scores(name, output_names, options))


def _read_boolean(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InputError(f"the parameter {name} must be true or false")
    return value


def _read_top(top: Any, limits: RequestLimits) -> int:
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise InputError("the parameter classification must be a number of classes, 1 or more")
    limits.check("max_top_k", top, "classes (classification)", "classification")
    return top


def _find_scores(name: str, output_names: Sequence[str], options: Options) -> str:
    """The output with the scores of an output's classes; for the main output, that of its classes."""
    of_main = LOGITS if options.form is AnswerForm.RAW_LOGITS else PROBABILITIES
    scores = of_main if name == MAIN else name
    if scores not in (LOGITS, PROBABILITIES) or scores not in output_names:
        raise InputError(
            f"output {wire_name(name)!r} has no scores of classes, which the parameter classification asks for"
        )
    return scores
