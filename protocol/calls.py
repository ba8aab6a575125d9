"""What every protocol does with a model: find it, check that it is ready, read the options, render off the loop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.errors import InvalidRequestError, MethodNotAllowedError, ModelNotFoundError
from runners.errors import ModelNotReadyError
from runners.inference import ClassScores, Models, Options, Output, Prediction, Runner, VocabularyScores

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

    return Route(path, guarded, methods=["POST", "GET", "PUT", "PATCH", "DELETE", "OPTIONS"])


def find_model(models: Models, name: str) -> Runner:
    """The model of that name.

    Raises:
        ModelNotFoundError: there is none.
    """
    runner = models.find(name)
    if runner is None:
        raise ModelNotFoundError(name)
    return runner


def require_ready(runner: Runner) -> None:
    """Refuse a call to a model that is still loading, before its body is read.

    Raises:
        ModelNotReadyError: with KServe's text.
    """
    if not runner.ready:
        raise ModelNotReadyError(f"Model with name {runner.name} is not ready.")


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


async def render(renderer: Callable[[Sequence[Prediction]], T], predictions: Sequence[Prediction]) -> T:
    """Call a renderer, in a thread where there is much to render."""
    numbers = sum(
        prediction.output.values.size
        for prediction in predictions
        if isinstance(prediction.output, ClassScores | VocabularyScores)
    )
    if numbers <= _RENDER_INLINE:
        return renderer(predictions)
    return await anyio.to_thread.run_sync(renderer, predictions)
