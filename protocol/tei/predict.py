"""`/predict`: the scores of a model's classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body import Body
from protocol.http.rendering import render
from protocol.records import list_records
from protocol.refused_parameters import RefusingDecoder
from protocol.tei.info import count_classes
from protocol.tei.parameters import REFUSED
from protocol.tei.requests import TruncationFields, infer
from runners.core.errors import EmptyInputError, InputError
from runners.core.predictions import Prediction, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner
from runners.core.task import Task


class TeiPredictRequest(TruncationFields, kw_only=True):
    """The body of `/predict`. `inputs` is a text, a pair of texts, or a list of lists of one or two texts."""

    inputs: str | list[str | list[str]]
    raw_scores: bool = False


_decoder = RefusingDecoder(TeiPredictRequest, REFUSED["/predict"])
# With these, the answer has all of the model's own classes.
_WHOLE: Mapping[str, Any] = {"threshold": None, "candidate_labels": []}


async def answer_predict(request: Request, runner: Runner, body: Body, limits: RequestLimits) -> Response:
    """Answer with the score of every class, best first."""

    def read(data: bytes) -> tuple[TeiPredictRequest, list[TextInput], bool]:
        call = _decoder.decode(data, limits)
        texts, is_single = _read_texts(call.inputs, limits)
        if any(not text.text and not text.pair for text in texts):
            raise EmptyInputError("inputs has an empty text; give at least a character")
        return call, texts, is_single

    call, texts, single = await body.decode(read)
    # That server applies a sigmoid to a single logit, as `/rerank` does; to several ones what the model's files say.
    usual = "sigmoid" if runner.task is Task.TEXT_RANKING else None
    function = "none" if call.raw_scores else usual
    classes = count_classes(runner)
    limits.check("max_top_k", classes, "classes of the model")
    parameters = call.to_options(top_k=classes, function_to_apply=function)
    # The operator's `threshold` would leave out classes, and `candidate_labels` replace them.
    parameters |= {name: value for name, value in _WHOLE.items() if name in runner.supported_options.names}
    options = resolve_options(runner, parameters, limits)
    predictions = await infer(request, runner, texts, options)

    def render_classes(answers: Sequence[Prediction]) -> Any:
        return list_records(answers[0].records) if single else (list_records(each.records) for each in answers)

    return await render(render_classes, predictions)


def _read_texts(inputs: str | list[str | list[str]], limits: RequestLimits) -> tuple[list[TextInput], bool]:
    """The texts and pairs, and whether the body has a single one outside of a list.

    Raises:
        LimitExceededError: there are more texts and pairs than the operator allows.
        InputError: the value has another form.
    """
    match inputs:
        case str(text):
            return [TextInput(text)], True
        case [str(text)]:
            return [TextInput(text)], True
        case [str(text), str(pair)]:
            return [TextInput(text, pair)], True
    limits.check("max_client_batch_size", len(inputs), "inputs")
    batch = []
    for each in inputs:
        match each:
            case [text]:
                batch.append(TextInput(text))
            case [text, pair]:
                batch.append(TextInput(text, pair))
    if not inputs or len(batch) < len(inputs):
        raise InputError(
            "inputs must be a text, a pair [text, text], or a list of lists that have one text or two: "
            "[[text], [text, text], ...]"
        )
    return batch, False
