"""What HTTP costs: the service without a model against a bare uvicorn + Starlette route.

    python -m benchmarks.http_cost

Prints, for each, the server's own CPU time a request and the latency that 16 connections see. The two are measured in
turn; the difference and the ratio of each pair are the result.
"""

from __future__ import annotations

import sys
from statistics import median

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.cpu import describe_spread, measure, serving
from benchmarks.load import Load, bodies, drive
from benchmarks.run import instant_words, serve

_SECONDS = 3.0
_ROUNDS = 6
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
    with serve(_BARE) as bare, serve(instant_words()) as ours:
        pairs = [(_measure(bare), _measure(ours)) for _ in range(_ROUNDS)]
    for name, measured in zip(("uvicorn + Starlette", "this server"), zip(*pairs, strict=True), strict=True):
        cost = median(cost for cost, _ in measured)
        p50, p99 = (median(getattr(load, which) for _, load in measured) for which in ("p50", "p99"))
        sys.stdout.write(
            f"{name}: {cost:.0f} us of CPU a request; 16 connections: p50 {p50:.1f} ms, p99 {p99:.1f} ms\n"
        )
    costs = [(first, second) for (first, _), (second, _) in pairs]
    sys.stdout.write(f"difference by pair: {describe_spread([second - first for first, second in costs], 0)} us\n")
    sys.stdout.write(f"ratio by pair: {describe_spread([second / first for first, second in costs])}\n")


def _measure(url: str) -> tuple[float, Load]:
    requests = bodies("v1", ["a text of some words, as long as many are"], 1)
    return measure(serving(url), drive(url + "/v1/models/model:predict", requests, 16, 1, _SECONDS))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvicorn.run(_bare_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
    else:
        main()
