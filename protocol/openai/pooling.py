"""vLLM's `pooling`, for models on this server's own engine; vLLM answers for a model on vLLM.

https://docs.vllm.ai/en/latest/models/pooling_models/#pooling-api
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from msgspec import Meta
from starlette.responses import Response

from protocol.http.body import Body
from protocol.model_selection import SelectModel
from protocol.openai.array_answers import ArrayFields, Arrays, answer_arrays
from protocol.openai.classify import score_classes
from protocol.openai.embeddings import check_activation
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.pooling_requests import count_input_usage, read_inputs
from protocol.vectors import list_vectors
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner
from runners.core.task import Task

# What vLLM calls what a model does with a text; the first one is the default.
POOLING_TASKS: Mapping[Task, Sequence[str]] = {
    Task.TEXT_EMBEDDING: ("embed",),
    Task.SEQUENCE_CLASSIFICATION: ("classify",),
    Task.TEXT_RANKING: ("classify",),
    Task.ZERO_SHOT_CLASSIFICATION: ("classify",),
    Task.TOKEN_CLASSIFICATION: ("token_classify",),
}


class PoolingRequest(ArrayFields, kw_only=True):
    """The body of `pooling`."""

    task: str | None = None
    dimensions: Annotated[int, Meta(ge=1, lt=2**31)] | None = None


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
    normalize = None
    if task == "embed":
        check_activation(runner, call.use_activation)
        normalize = call.use_activation
    options = call.resolve(runner, limits, dimensions=call.dimensions, normalize=normalize)
    inputs = call.truncate(inputs, runner)
    arrays: Arrays
    if task == "embed":
        predictions = await runner.infer(inputs, options)
        arrays = list_vectors(predictions)
    else:
        predictions, arrays = await score_classes(runner, inputs, options, call.use_activation)
    head = call.describe_answer("pooling", runner)
    return await answer_arrays(call, head, arrays, count_input_usage(predictions), ("pooling", "data"))


def _choose_task(runner: Runner, name: str | None) -> str:
    """
    Raises:
        InputError: the model does not do what the request asks for.
    """
    assert runner.task is not None
    tasks = POOLING_TASKS[runner.task]
    if name is not None and name not in tasks:
        raise InputError(f"the task of {runner.name} can only be {' or '.join(tasks)}, not {name[:40]}", "task")
    return name or tasks[0]
