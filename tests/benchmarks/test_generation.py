from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from benchmarks.generation import Measured, Plan, _drive, make_table
from tests.waiting import eventually


@pytest.mark.parametrize(
    ("prompt_seconds", "token_seconds", "seconds", "plan"),
    [
        pytest.param(2, 0.125, 400, Plan(64, 10), id="the most"),
        pytest.param(18, 0.5, 400, Plan(64, 8), id="the most tokens"),
        pytest.param(20, 2.5, 400, Plan(32, 4), id="four rounds of shorter answers"),
        pytest.param(90, 1, 400, Plan(10, 4), id="prompts take most of the time"),
        pytest.param(0, 50, 800, Plan(8, 2), id="two rounds of the shortest answers"),
        pytest.param(100, 500, 400, Plan(8, 1), id="one round in any case"),
        pytest.param(0, 0, 400, Plan(64, 10), id="a trial too fast to be measured"),
        pytest.param(1, -1, 400, Plan(64, 10), id="its tokens came before its prompts by the clock"),
    ],
)
def test_as_much_as_fits_the_time(prompt_seconds: float, token_seconds: float, seconds: float, plan: Plan) -> None:
    assert Plan.of(prompt_seconds, token_seconds, seconds) == plan


def test_ratios_are_those_of_pairs() -> None:
    speeds = {
        "server": (10.0, 22.0), "vLLM": (10.0, 20.0), "server on transformers": (5.0, 11.0),
        "server, beside busy": (4.0, 8.8), "server on transformers, beside busy": (2.5, 5.5),
    }  # fmt: skip
    table = make_table({8: {name: [Measured(one, 50, 0) for one in found] for name, found in speeds.items()}})
    assert "| server / vLLM | 8 | 1.05 (1.00-1.10) | 1.05, 0.41 to 1.69 |\n" in table
    assert "| server, beside busy / server | 8 | 0.40 (0.40-0.40) | 0.40, 0.40 to 0.40 |\n" in table
    assert "| server on transformers / server | 8 | 0.50 (0.50-0.50) |" in table


async def _refuse(_: web.Request) -> web.StreamResponse:
    return web.Response(status=503)


async def _hang(request: web.Request) -> web.StreamResponse:
    await eventually(lambda: request.transport is None)
    raise ConnectionError


async def _break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"data: {}\n")
    assert request.transport is not None
    request.transport.abort()
    return response


@pytest.mark.parametrize("fail", [_refuse, _hang, _break_off])
async def test_a_request_that_fails_is_an_error(
    fail: Callable[[web.Request], Awaitable[web.StreamResponse]], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ["answered", "failed"]

    async def answer(request: web.Request) -> web.StreamResponse:
        is_failure = (await request.json())["prompt"] == prompts[1]
        return await fail(request) if is_failure else web.Response(text="data: {}\n")

    application = web.Application()
    application.router.add_post("/", answer)
    monkeypatch.setattr("benchmarks.generation._TIMEOUT", aiohttp.ClientTimeout(total=2))
    async with TestServer(application) as server:
        measured = await _drive(str(server.make_url("/")), prompts, 2, 8)
    assert measured.errors == 1
