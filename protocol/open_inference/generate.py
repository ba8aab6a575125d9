"""The generate extension of the Open Inference Protocol: text in, text out, at once or as a stream.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/generate_rest.yaml
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.generated_choices import Choice, describe_token, name_finish, render_logprobs
from protocol.http.body import Body, check_kept_parameters, decode_json, encode_part, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.errors import describe_error
from protocol.http.rendering import note_rendering
from protocol.http.routing import post_route, served_name
from protocol.http.sse import stream_events
from protocol.request_parameters import select_model_parameters
from protocol.service_paths import describe_service
from runners.core.errors import InputError
from runners.core.generation import GenerationRequest
from runners.core.models import Models, find_ready_model
from runners.core.predictions import Options, Text, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import TextGenerator

_TEXT = "text_input"
_DETAILS = "details"
_decoder = msgspec.json.Decoder(dict[str, Any])


def routes(models: Models, limits: RequestLimits) -> list[Route]:
    """`generate` and `generate_stream` of every model."""

    async def generate(request: Request) -> Response:
        runner = _find_generator(models, request, "generate")
        call = await _read(runner, await read_body(request, limits), limits)
        if call.details:
            return await until_disconnect(request, _generate_details(runner, call))
        [prediction] = await until_disconnect(request, runner.infer([TextInput(call.text)], call.options))
        output = prediction.main
        assert isinstance(output, Text)
        return json_response(_answer(runner, call, output.value))

    async def generate_stream(request: Request) -> Response:
        runner = _find_generator(models, request, "generate_stream")
        call = await _read(runner, await read_body(request, limits), limits)
        streaming = stream_events(_stream(runner, call), _render_error)
        return await until_disconnect(request, streaming)

    return [
        post_route(f"/v2/models/{{name:path}}{form}/{verb}", endpoint)
        for verb, endpoint in (("generate", generate), ("generate_stream", generate_stream))
        for form in ("/versions/{version}", "")
    ]


def _find_generator(models: Models, request: Request, call: str) -> TextGenerator:
    """
    Raises:
        ModelNotFoundError, ModelNotReadyError: there is no such model, or it is not loaded.
        InputError: the model does not generate text; the message lists what it serves.
    """
    runner = find_ready_model(models, *served_name(request))
    if (generator := runner.generator) is None or not generator.generates:
        raise InputError(f"{runner.name} does not serve {call}: {describe_service(runner)}")
    return generator


@dataclass(frozen=True, slots=True)
class _Call:
    """A request.

    Attributes:
        answer_id: the client's id, which the answer repeats; None without one.
        details: whether the answer says why the output ended, and the log probabilities of its tokens.
    """

    answer_id: str | None
    text: str
    options: Options
    details: bool


async def _read(runner: TextGenerator, body: Body, limits: RequestLimits) -> _Call:
    """The request in a body, with the options of its `parameters` and, as in Triton, of its other fields."""

    def read(data: bytes) -> dict[str, Any]:
        fields = decode_json(data, _decoder, limits)
        check_kept_parameters(data, {**fields, _TEXT: None}, limits)
        return fields

    fields = await body.decode(read)
    text = fields.get(_TEXT)
    if not isinstance(text, str):
        raise InputError(f"{_TEXT} must be a string" if _TEXT in fields else f"the body has no {_TEXT}")
    parameters = fields.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InputError("parameters must be an object")
    limits.check("max_parameters", len(fields) + len(parameters or ()), "parameters", "parameters")
    top_level_parameters = {name: value for name, value in fields.items() if name not in (_TEXT, "parameters", "id")}
    # A wrong field is refused even if `parameters` overrides it.
    details = _pop_details(top_level_parameters, False)
    options = resolve_options(runner, select_model_parameters(top_level_parameters), limits)
    if parameters:
        details = _pop_details(parameters, details)
        options = resolve_options(runner, select_model_parameters({**top_level_parameters, **parameters}), limits)
    if details:
        options = replace(options, sampling=replace(options.sampling, logprobs=0))
    return _Call(fields["id"] if isinstance(fields.get("id"), str) else None, text, options, details)


def _pop_details(parameters: dict[str, Any], default: bool) -> bool:
    """Remove the protocol's own parameter `details`.

    Returns:
        Its value; the default if it is missing or null.

    Raises:
        InputError: the value is no boolean.
    """
    details = parameters.pop(_DETAILS, None)
    if details is None:
        return default
    if not isinstance(details, bool):
        raise InputError(f"the parameter {_DETAILS} must be true or false", _DETAILS)
    return details


def _answer(runner: TextGenerator, call: _Call, text: str) -> dict[str, Any]:
    answer = {"model_name": runner.name, "model_version": runner.version, "text_output": text}
    return answer if call.answer_id is None else {"id": call.answer_id, **answer}


async def _generate_details(runner: TextGenerator, call: _Call) -> Response:
    choice = Choice()
    request = GenerationRequest([call.text], call.options.sampling, call.options.prompt)
    async with runner.generate(request) as accepted:
        async for _, delta in accepted.deltas:
            choice.add(delta)

    def render() -> Response:
        details = {"finish_reason": name_finish(choice.finish_reason, choice.stop_reason), **_list_tokens(choice)}
        return json_response({**_answer(runner, call, choice.text), "details": details})

    note_rendering()
    return await render_logprobs(render, choice.logprobs_count)


def _list_tokens(choice: Choice) -> dict[str, Any]:
    return {"logprobs": encode_part(describe_token(entry.chosen) for entry in choice.logprobs)}


async def _stream(runner: TextGenerator, call: _Call) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The events; None comes first, once the request is accepted.

    Details have a finish reason, so only the last event can have them. It has the last token, as the protocol asks,
    and the log probabilities of all tokens.
    """
    choice = Choice()
    async with contextlib.aclosing(runner.stream(TextInput(call.text), call.options)) as deltas:
        async for delta in deltas:
            if delta is None:
                yield None
                continue
            if call.details:
                choice.add(delta)
            if delta.text or delta.finish_reason:
                event = {**_answer(runner, call, delta.text), "done": delta.finish_reason is not None}
                if call.details and delta.finish_reason is not None:
                    event["details"] = await render_logprobs(partial(_finish, choice), choice.logprobs_count)
                yield event


def _finish(choice: Choice) -> dict[str, Any]:
    return {
        "finish_reason": name_finish(choice.finish_reason, choice.stop_reason),
        "token": describe_token(choice.logprobs[-1].chosen),
        **_list_tokens(choice),
    }


def _render_error(error: Exception) -> dict[str, Any]:
    return {"error": describe_error(error)[1]}
