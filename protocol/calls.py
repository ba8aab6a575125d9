"""What every protocol does with a model: find it, check that it is ready, read the options, render off the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.errors import InvalidRequestError, MethodNotAllowedError, ModelNotFoundError
from runners.errors import ModelNotReadyError
from runners.inference import Models, Options, Output, Prediction, Runner, Text, TextInput

T = TypeVar("T")

# Rendering takes about 0.1 us a number; what takes longer than a few ms must not hold up the event loop.
_RENDER_INLINE = 20_000


def post_route(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route for POST that answers other methods with 405 even where a later route has a path like its own."""

    async def guarded(request: Request) -> Response:
        if request.method != "POST":
            raise MethodNotAllowedError(
                f"{request.method} is not allowed on {request.url.path}; allowed: POST", allowed="POST"
            )
        return await endpoint(request)

    route = Route(path, guarded)
    # All methods, so that the router does not answer for some of them itself.
    route.methods = None
    return route


def find_model(models: Models, name: str) -> Runner:
    """The model of that name.

    Raises:
        ModelNotFoundError: there is none.
    """
    runner = models.find(name)
    if runner is None:
        raise ModelNotFoundError(name)
    return runner


def find_ready_model(models: Models, name: str) -> Runner:
    """The model of that name, once it is loaded: called before a request's body is read.

    Raises:
        ModelNotFoundError: there is none.
        ModelNotReadyError: it is still loading; with KServe's text.
    """
    runner = find_model(models, name)
    if not runner.ready:
        raise ModelNotReadyError(f"Model with name {runner.name} is not ready.")
    return runner


def resolve_options(runner: Runner, parameters: Mapping[str, Any] | None) -> Options:
    """The operator's options, changed by what the request's parameters say; other parameters are not ours.

    Raises:
        InvalidRequestError: a parameter is no boolean, or they exclude each other.
    """
    options = runner.default_options
    if not parameters:
        return options
    flags = {name: parameters[name] for name in _OPTION_PARAMETERS if name in parameters}
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise InvalidRequestError(f"the parameter {name} must be true or false")
    asked = [output for name, output in _OUTPUT_BY_PARAMETER.items() if flags.get(name)]
    if len(asked) > 1:
        raise InvalidRequestError(f"the parameters {' and '.join(_OUTPUT_BY_PARAMETER)} exclude each other")
    if asked:
        options = replace(options, output=asked[0])
    elif any(flags.get(name) is False and options.output is output for name, output in _OUTPUT_BY_PARAMETER.items()):
        options = replace(options, output=Output.LABELS)
    return replace(options, offsets=flags.get("return_offsets_mapping", options.offsets))


_OUTPUT_BY_PARAMETER = {"return_probabilities": Output.PROBABILITIES, "return_raw_logits": Output.RAW_LOGITS}
_OPTION_PARAMETERS = (*_OUTPUT_BY_PARAMETER, "return_offsets_mapping")


async def infer(request: Request, runner: Runner, texts: Sequence[TextInput], options: Options) -> Sequence[Prediction]:
    """Ask the model, and stop if the client goes away meanwhile.

    Raises:
        ClientDisconnect: the client has gone; its texts will not run.
    """
    work = asyncio.ensure_future(runner.infer(texts, options))
    watch = asyncio.ensure_future(_wait_for_disconnect(request))
    watch.add_done_callback(lambda _: work.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        watch.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def render(renderer: Callable[[Sequence[Prediction]], T], predictions: Sequence[Prediction]) -> T:
    """Call a renderer, in a thread where there is much to render."""
    numbers = sum(
        prediction.output.values.size for prediction in predictions if not isinstance(prediction.output, Text)
    )
    if numbers <= _RENDER_INLINE:
        return renderer(predictions)
    return await asyncio.to_thread(renderer, predictions)
