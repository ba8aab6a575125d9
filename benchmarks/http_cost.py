"""What HTTP costs: the service without a model against a bare uvicorn + Starlette route.

    python -m benchmarks.http_cost

Prints, for each, the server's own CPU time a request and the latency that 16 connections see.
"""

from __future__ import annotations

import sys
from statistics import median

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from benchmarks.cpu import measure, serving
from benchmarks.load import Load, bodies, drive
from benchmarks.run import serve

_SECONDS = 4.0
_ROUNDS = 3
_BENTOML = [sys.executable, "-m", "bentoml", "serve", "benchmarks.instant_service:Runtime", "--port={port}"]
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
    with serve(_BARE) as bare, serve(_BENTOML) as ours:
        measured: dict[str, list[tuple[float, Load]]] = {bare: [], ours: []}
        for _ in range(_ROUNDS):
            for url, results in measured.items():
                results.append(_measure(url))
    figures = {}
    for name, url in (("uvicorn + Starlette", bare), ("this server", ours)):
        cost = median(cost for cost, _ in measured[url])
        p50, p99 = (median(getattr(load, which) for _, load in measured[url]) for which in ("p50", "p99"))
        figures[name] = cost
        sys.stdout.write(
            f"{name}: {cost:.0f} us of CPU a request; 16 connections: p50 {p50:.1f} ms, p99 {p99:.1f} ms\n"
        )
    sys.stdout.write(f"difference: {figures['this server'] - figures['uvicorn + Starlette']:.0f} us\n")


def _measure(url: str) -> tuple[float, Load]:
    requests = bodies("v1", ["a text of some words, as long as many are"], 1)
    return measure(serving(url), drive(url + "/v1/models/model:predict", requests, 16, 1, _SECONDS))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        uvicorn.run(_bare_app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
    else:
        main()
