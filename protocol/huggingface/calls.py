"""Calls of models: bodies of the Hugging Face inference protocol, read by task, and their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body import check_kept_parameters, convert_json, decode_json
from protocol.http.disconnects import until_disconnect
from protocol.http.rendering import render
from protocol.huggingface.answers import EncoderForm, RenderAnswer
from protocol.huggingface.generation import GENERATION_FORMS, answer_generation
from protocol.huggingface.generation_requests import GenerationBody, SequenceBody, merge_nested
from protocol.huggingface.parameters import read_parameters
from protocol.huggingface.requests import EncoderRequest
from protocol.huggingface.tasks import HubTask, choose_task
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import Runner

_decoder = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class HubCall:
    """A body, read.

    Attributes:
        task: None if the request names none, and the model may do several.
        render: makes the answer of an encoder; None for a generator's.
    """

    task: HubTask | None
    body: EncoderRequest | GenerationBody
    render: RenderAnswer | None = None


def read_call(
    data: bytes,
    runner: Runner,
    task: HubTask | None,
    encoder_forms: Mapping[HubTask, EncoderForm],
    limits: RequestLimits,
) -> HubCall:
    """
    Args:
        task: the one that the request names; None for the model's.
        encoder_forms: how encoders answer.

    Raises:
        LimitExceededError: the body exceeds a limit of the operator's.
        InputError: it is malformed, or has a field that this server does not implement.
    """
    fields = decode_json(data, _decoder, limits)
    chosen = task or choose_task(runner, fields)
    if chosen in encoder_forms and fields.get("stream"):
        raise InputError(f"stream is not supported for {chosen}", "stream")
    form = GENERATION_FORMS.get(chosen) or encoder_forms[chosen]
    if form.request is SequenceBody:
        fields = merge_nested(fields)
    parameters = read_parameters(fields, form.parameters, chosen, limits)
    check_kept_parameters(data, parameters, limits)
    others = {name: fields[name] for name in ("inputs", "stream") if name in fields}
    body = convert_json({**others, "parameters": parameters}, form.request)
    render_answer = form.render if isinstance(form, EncoderForm) else None
    return HubCall(task if chosen is HubTask.TEXT2TEXT_GENERATION else chosen, body, render_answer)


async def answer_call(request: Request, runner: Runner, call: HubCall, limits: RequestLimits) -> Response:
    """
    Raises:
        InputError, LimitExceededError: the model cannot do what the body asks for.
    """
    body = call.body
    if isinstance(body, GenerationBody):
        generator = runner.generator
        assert generator is not None, "no other model generates"
        return await answer_generation(request, generator, call.task, body, limits)
    texts = body.read_texts(limits)
    options = resolve_options(runner, body.read_options(runner, limits), limits)
    predictions = await until_disconnect(request, runner.infer(texts, options))
    assert call.render is not None, "read_call sets it"
    return await render(partial(call.render, body, options), predictions)
