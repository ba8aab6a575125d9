"""The generate extension of the Open Inference Protocol: text in, text out, at once or as a stream.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/generate_rest.yaml
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.body import Body, check_kept_parameters, decode_json, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.errors import describe_error
from protocol.http.routing import post_route, served_name
from protocol.http.sse import stream_events
from protocol.request_parameters import select_model_parameters
from protocol.service_paths import describe_service
from runners.core.errors import InputError
from runners.core.models import Models, find_ready_model
from runners.core.predictions import Options, Text, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import resolve_options
from runners.core.runner import TextGenerator

_TEXT = "text_input"
_decoder = msgspec.json.Decoder(dict[str, Any])


def routes(models: Models, limits: RequestLimits) -> list[Route]:
    """`generate` and `generate_stream` of every model."""

    async def generate(request: Request) -> Response:
        runner = _find_generator(models, request, "generate")
        call, text, options = await _read(runner, await read_body(request, limits), limits)
        [prediction] = await until_disconnect(request, runner.infer([TextInput(text)], options))
        output = prediction.main
        assert isinstance(output, Text)
        return json_response(_answer(runner, call, output.value))

    async def generate_stream(request: Request) -> Response:
        runner = _find_generator(models, request, "generate_stream")
        call, text, options = await _read(runner, await read_body(request, limits), limits)
        streaming = stream_events(_stream(runner, call, text, options), _render_error)
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


async def _read(runner: TextGenerator, body: Body, limits: RequestLimits) -> tuple[dict[str, Any], str, Options]:
    """The body, its text, and the options of its `parameters` and, as in Triton, of its other fields."""

    def read(data: bytes) -> dict[str, Any]:
        call = decode_json(data, _decoder, limits)
        check_kept_parameters(data, {**call, _TEXT: None}, limits)
        return call

    call = await body.decode(read)
    text = call.get(_TEXT)
    if not isinstance(text, str):
        raise InputError(f"{_TEXT} must be a string" if _TEXT in call else f"the body has no {_TEXT}")
    parameters = call.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InputError("parameters must be an object")
    limits.check("max_parameters", len(call) + len(parameters or ()), "parameters", "parameters")
    top_level_parameters = {name: value for name, value in call.items() if name not in (_TEXT, "parameters", "id")}
    # A wrong field is refused even if `parameters` overrides it.
    options = resolve_options(runner, select_model_parameters(top_level_parameters), limits)
    if parameters:
        options = resolve_options(runner, select_model_parameters({**top_level_parameters, **parameters}), limits)
    return call, text, options


def _answer(runner: TextGenerator, call: dict[str, Any], text: str) -> dict[str, Any]:
    answer = {"model_name": runner.name, "model_version": runner.version, "text_output": text}
    return {"id": call["id"], **answer} if isinstance(call.get("id"), str) else answer


async def _stream(
    runner: TextGenerator, call: dict[str, Any], text: str, options: Options
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The events; None comes first, once the request is accepted."""
    async with contextlib.aclosing(runner.stream(TextInput(text), options)) as deltas:
        async for delta in deltas:
            if delta is None:
                yield None
            elif delta.text or delta.finish_reason:
                yield {**_answer(runner, call, delta.text), "done": delta.finish_reason is not None}


def _render_error(error: Exception) -> dict[str, Any]:
    return {"error": describe_error(error)[1]}
