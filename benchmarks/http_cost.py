"""What HTTP costs: the service without a model against a bare uvicorn + Starlette route.

    python -m benchmarks.http_cost

Prints, for each, the server's own CPU time a request and the latency that 16 connections see; once more with a line of
JSON in the log for each request. They are measured in turn; the difference and the ratio of each pair are the result.
"""

from __future__ import annotations

import contextlib
import sys
from functools import partial
from statistics import median

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.closed_loop import Load
from benchmarks.cpu import describe_spread, measure, serving
from benchmarks.load import bodies, drive
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import LOGGED, instant_words, serve

_SECONDS = 3.0
_ROUNDS = 6
_LOGGING = "this server with a line of JSON"
_BARE = [sys.executable, "-m", "benchmarks.http_cost", "{port}"]


async def _echo(request: Request) -> Response:
    await request.json()
    return JSONResponse({"predictions": [1]})


async def _ready(_: Request) -> Response:
    return Response()


def _bare_app() -> Starlette:
    return Starlette(
        routes=[
            Route("/v1/models/model:predict", _echo, methods=["POST"]),
            Route("/v2/health/ready", _ready),
        ]
    )


def main() -> None:
    words = {"uvicorn + Starlette": _BARE, "this server": instant_words(), _LOGGING: [*instant_words(), *LOGGED]}
    with contextlib.ExitStack() as servers:
        urls = {name: servers.enter_context(serve(each)) for name, each in words.items()}
        found = take_turns({name: partial(_measure, url) for name, url in urls.items()}, _ROUNDS)
    costs = {name: [cost for cost, _ in measured] for name, measured in found.items()}
    for name, measured in found.items():
        p50, p99 = (median(getattr(load, which) for _, load in measured) for which in ("p50", "p99"))
        sys.stdout.write(
            f"{name}: {median(costs[name]):.0f} us of CPU a request; "
            f"16 connections: p50 {p50:.1f} ms, p99 {p99:.1f} ms\n"
        )
    bare, *others = costs
    for name in others:
        differences = [cost - least for cost, least in zip(costs[name], costs[bare], strict=True)]
        ratio = Ratio.of(costs[name], costs[bare])
        sys.stdout.write(f"{name} over {bare}: {describe_spread(differences, 0)} us by pair, {ratio} times\n")


def _measure(url: str) -> tuple[float, Load]:
    requests = bodies("v1", ["a text of some words, as long as many are"], 1)
    return measure(serving(url), drive(url + "/v1/models/model:predict", requests, 16, 1, _SECONDS))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvicorn.run(_bare_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
    else:
        main()
