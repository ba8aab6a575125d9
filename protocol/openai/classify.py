"""vLLM's `classify`, for models on this server's own engine; vLLM answers for a model on vLLM.

https://docs.vllm.ai/en/latest/models/pooling_models/classify/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from protocol.http.body import Body, json_response
from protocol.http.rendering import render_off_loop
from protocol.model_selection import SelectModel
from protocol.openai.array_answers import Arrays
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.pooling_requests import InputFields, count_input_usage, read_inputs
from runners.core.predictions import LOGITS, PROBABILITIES, RELEVANCE, Options, Prediction, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner
from runners.core.task import Task

# The label of a text takes as long to render as this many numbers.
_NUMBERS_A_TEXT = 8
# In Infinity's form each class has its label, which takes as long.
_NUMBERS_A_CLASS = 8


class ClassifyRequest(InputFields, kw_only=True):
    """The body of `classify`. With `use_activation` of false the answer has logits instead of probabilities.

    `raw_scores` is Infinity's field, and its answer differs.
    """

    raw_scores: bool | None = None


_decoder = BodyDecoder(ClassifyRequest, ParameterSet.CLASSIFY)


async def answer_classify(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `classify` with the probability of every class, and the most likely class, for every text.

    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: the body is malformed, or asks for something that this engine does not do.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
        RunnerError: the model cannot read a text.
    """
    call, inputs = await read_inputs(_decoder, body, limits)
    runner = select(call.model)
    options = call.resolve(runner, limits)
    if call.raw_scores is not None:
        call.use_activation = not call.raw_scores
    inputs = call.truncate_inputs(inputs, runner)
    predictions, scores = await score_classes(runner, inputs, options, call.use_activation)
    head = call.describe_answer("classify", runner)
    usage = count_input_usage(predictions)
    numbers_per_class = 1 if call.raw_scores is None else _NUMBERS_A_CLASS
    numbers = sum(numbers_per_class * each.size + _NUMBERS_A_TEXT for each in scores)

    def render() -> Response:
        if call.raw_scores is not None:
            data = (_list_classes(runner, each) for each in scores)
            return json_response({**head, "object": "classify", "data": data, "usage": usage}, numbers)
        return json_response({**head, "data": _describe_texts(runner, scores), "usage": usage}, numbers)

    return await render_off_loop(render, numbers)


async def score_classes(
    runner: Runner, inputs: Sequence[TextInput | TokenInput], options: Options, use_activation: bool | None
) -> tuple[list[Prediction], Arrays]:
    """
    Returns:
        The predictions, and the scores of each: float32 [classes] for a text, [tokens, classes] for its tokens.
    """
    activated = RELEVANCE if runner.task is Task.TEXT_RANKING else PROBABILITIES
    output = LOGITS if use_activation is False else activated
    predictions = await runner.infer(inputs, replace(options, outputs=frozenset({output})))
    return predictions, [np.atleast_1d(prediction.arrays[output]) for prediction in predictions]


def _list_classes(runner: Runner, scores: NDArray[np.float32]) -> list[dict[str, Any]]:
    """The classes of a text in Infinity's form, best first."""
    order = np.argsort(-scores, kind="stable").tolist()
    return [{"label": runner.class_name(index), "score": float(scores[index])} for index in order]


def _describe_texts(runner: Runner, scores: Arrays) -> Iterator[dict[str, Any]]:
    for index, probabilities in enumerate(scores):
        label = runner.class_name(int(probabilities.argmax()))
        yield {"index": index, "label": label, "probs": probabilities, "num_classes": len(probabilities)}
