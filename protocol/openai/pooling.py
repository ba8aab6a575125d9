"""vLLM's `pooling`, for models on this server's own engine; vLLM answers for a model on vLLM.

https://docs.vllm.ai/en/latest/models/pooling_models/#pooling-api
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from starlette.responses import Response

from protocol.http.body import Body
from protocol.http.rendering import render_off_loop
from protocol.model_selection import SelectModel
from protocol.openai.array_answers import ArrayFields, Arrays, answer_arrays
from protocol.openai.classify import score_classes
from protocol.openai.embeddings import check_activation
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.pooling_requests import count_input_usage, read_inputs
from protocol.vectors import list_vectors, unit_vectors
from runners.core.errors import InputError
from runners.core.number_types import PositiveInt
from runners.core.predictions import TOKEN_EMBEDDINGS, Prediction, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner
from runners.core.task import Task

TextInputs = Sequence[TextInput | TokenInput]

# vLLM's names of what the models of a task do with a text; the first one is the default.
POOLING_TASKS: Mapping[Task, Sequence[str]] = {
    Task.TEXT_EMBEDDING: ("embed", "token_embed"),
    Task.SEQUENCE_CLASSIFICATION: ("classify",),
    Task.TEXT_RANKING: ("classify",),
    Task.ZERO_SHOT_CLASSIFICATION: ("classify",),
    Task.TOKEN_CLASSIFICATION: ("token_classify",),
}


class PoolingRequest(ArrayFields, kw_only=True):
    """The body of `pooling`."""

    task: str | None = None
    dimensions: PositiveInt | None = None


_decoder = BodyDecoder(PoolingRequest, ParameterSet.POOLING)


async def answer_pooling(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `pooling` with a vector, or the scores of the text or of its tokens, for every text.

    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: the body is malformed, or asks for something that this engine does not do.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
        RunnerError: the model cannot read a text.
    """
    call, inputs = await read_inputs(_decoder, body, limits)
    runner = select(call.model)
    task = _choose_task(runner, call.task)
    inputs = call.truncate_inputs(inputs, runner)
    predictions, arrays = await _RUN[task](runner, call, inputs, limits)
    head = call.describe_answer("pooling", runner)
    return await answer_arrays(call, head, arrays, count_input_usage(predictions), ("pooling", "data"))


async def _embed(
    runner: Runner, call: PoolingRequest, inputs: TextInputs, limits: RequestLimits
) -> tuple[list[Prediction], Arrays]:
    check_activation(runner, call.use_activation)
    options = call.resolve(runner, limits, dimensions=call.dimensions, normalize=call.use_activation)
    predictions = await runner.infer(inputs, options)
    return predictions, list_vectors(predictions)


async def _embed_tokens(
    runner: Runner, call: PoolingRequest, inputs: TextInputs, limits: RequestLimits
) -> tuple[list[Prediction], Arrays]:
    """The last layer's vectors, special tokens' included, with length 1 if the model normalizes its vectors."""
    if call.dimensions is not None:
        raise InputError("dimensions is for the task embed", "dimensions")
    options = replace(call.resolve(runner, limits), outputs=frozenset({TOKEN_EMBEDDINGS}))
    predictions = await runner.infer(inputs, options)
    arrays = [prediction.arrays[TOKEN_EMBEDDINGS] for prediction in predictions]
    is_normalized = runner.supported_options.normalizes if call.use_activation is None else call.use_activation
    if not is_normalized:
        return predictions, arrays
    numbers = sum(array.size for array in arrays)
    return predictions, await render_off_loop(lambda: [*map(unit_vectors, arrays)], numbers)


async def _classify(
    runner: Runner, call: PoolingRequest, inputs: TextInputs, limits: RequestLimits
) -> tuple[list[Prediction], Arrays]:
    options = call.resolve(runner, limits, dimensions=call.dimensions)
    return await score_classes(runner, inputs, options, call.use_activation)


_RUN = {"embed": _embed, "token_embed": _embed_tokens, "classify": _classify, "token_classify": _classify}


def _choose_task(runner: Runner, name: str | None) -> str:
    """
    Raises:
        InputError: the model does not do what the request asks for.
    """
    assert runner.task is not None
    tasks = POOLING_TASKS[runner.task]
    if name is not None and name not in tasks:
        raise InputError(f"Unsupported task: {name[:40]!r}; {runner.name} can {' or '.join(tasks)}", "task")
    return name or tasks[0]
