"""The routes of BentoML's methods: `POST /bentoml/{method}`, with the arguments as JSON.

BentoML has routes for the same methods, which no request reaches. They would hold bodies of any size, they know none of
this server's keys, records and time-outs, and they take twenty times as long as these. BentoML's clients need only
`/schema.json` and a route for each method that it names.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.bentoml_api.calls import Values, infer, read_json, read_values, select_from, stream, to_python
from protocol.bentoml_api.methods import METHODS, Method
from protocol.bentoml_api.pickles import PICKLE_TYPE, answer_pickle, is_pickled, may_pickle, read_pickle
from protocol.context import ServerContext
from protocol.http.body import read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.rendering import count_numbers, render, render_off_loop
from protocol.http.routing import Endpoint, post_route
from protocol.http.streams import stream_text
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner


def routes(context: ServerContext) -> list[Route]:
    """A route for each method, also for those that no model of this server answers."""
    return [post_route(method.path, _create_endpoint(context, method)) for method in METHODS.values()]


def _create_endpoint(context: ServerContext, method: Method) -> Endpoint:
    models, limits = context.models, context.arguments
    selection = select_from(models, method)

    async def answer(request: Request) -> Response:
        # A call that the only model does not serve is refused before its body is read.
        runner = selection.select() if len(models) == 1 else None
        body = await read_body(request, limits, [PICKLE_TYPE] if may_pickle(request) else ())
        pickled = is_pickled(request)
        read = _read_pickle if pickled else partial(read_json, limits=limits)
        values = await body.decode(lambda data: read(method, data))
        name = values.get("model")
        if runner is None or name is not None:
            runner = selection.select(name)
        if runner.generator is not None:
            return await until_disconnect(request, stream_text(stream(method, runner, values, limits)))
        return await until_disconnect(request, _infer(method, runner, values, limits, pickled))

    return answer


def _read_pickle(method: Method, body: bytes) -> Values:
    return read_values(method, read_pickle(body))


async def _infer(method: Method, runner: Runner, values: Values, limits: RequestLimits, pickled: bool) -> Response:
    predictions, renderer = await infer(method, runner, values, limits)
    if not pickled:
        return await render(renderer, predictions)
    numbers = sum(map(count_numbers, predictions))
    return await render_off_loop(lambda: answer_pickle(to_python(renderer(predictions))), numbers)
