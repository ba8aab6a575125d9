"""Drives a started server: fills its pools, then mixed traffic, in phases."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path
from random import Random

from tests.soak import grpc_requests, http_requests
from tests.soak.callers import ANSWER_SECONDS, GrpcCaller, HttpCaller, Leaver
from tests.soak.grpc_requests import GrpcRequest
from tests.soak.http_client import Connection
from tests.soak.http_requests import HttpRequest, large_request, render, with_number
from tests.soak.phases import LOAD_SECONDS
from tests.soak.servers import SPARE, touch_model
from tests.soak.tally import Tally
from tests.soak.traffic import Action, Weighted

# Of the callers, so many speak gRPC.
_GRPC_SHARE = 1 / 4
# Beside what else a caller does, of the weight of all that.
_LEAVING_SHARE = 0.06
# Connections at once: the server reads large bodies in as many threads as 64.
_BURST = 96
_BURSTS = 3
_LOADED_SECONDS = 120.0


class Reloader:
    """Loads models again, through the repository API; the spare one it unloads before."""

    def __init__(self, port: int, models: dict[str, Path], tally: Tally) -> None:
        self._port = port
        self._models = models
        self._tally = tally

    async def load_in_turn(self) -> None:
        """Load one model after the other, over the time of a phase of load."""
        for name, path in self._models.items():
            await asyncio.sleep(LOAD_SECONDS / (len(self._models) + 1))
            await self.load(name, path)

    async def load_all(self) -> None:
        """Load each model, all at once."""
        await asyncio.gather(*(self.load(name, path) for name, path in self._models.items()))

    async def load(self, name: str, path: Path) -> None:
        """Load a model whose folder has changed."""
        touch_model(path)
        for verb in ("unload", "load") if name == SPARE else ("load",):
            request, _ = with_number(render("POST", f"/v2/repository/models/{name}/{verb}"), self._tally.requests)
            connection = await Connection.open(self._port)
            try:
                async with asyncio.timeout(_LOADED_SECONDS):
                    response = await connection.ask(request)
            except (OSError, TimeoutError) as error:
                await self._tally.count_unanswered(f"no answer ({error!r}) to the {verb} of {name}")
                return
            finally:
                connection.close()
            if response.status != 200:
                self._tally.count_wrong(f"{verb} of {name}: {response.status} {response.body!r}")


class Driver:
    """All callers of a server, and what they ask."""

    def __init__(self, port: int, grpc_port: int, callers: int, random: Random, tally: Tally) -> None:
        grpc_count = max(round(callers * _GRPC_SHARE), 1)
        numbers = count()
        self._port = port
        self._tally = tally
        self._http = [HttpCaller(port, tally, numbers) for _ in range(max(callers - grpc_count, 1))]
        self._grpc = [GrpcCaller(grpc_port, tally) for _ in range(grpc_count)]
        self._leaver = Leaver(port, self._grpc[0], tally, random)
        self._requests = http_requests.make_requests()
        self._calls = grpc_requests.make_requests()

    async def ask_each_once(self) -> None:
        """Ask each request once, with nothing beside it: later answers are compared with these."""
        for request in self._requests:
            await self._http[0].ask(request)
        for call in self._calls:
            await self._grpc[0].ask(call)

    async def fill_pools(self, reloader: Reloader) -> None:
        """Make the server start all threads that it starts as they are needed."""
        request = large_request()
        for _ in range(_BURSTS):
            await asyncio.gather(reloader.load_all(), *(self._ask_over_new_connection(request) for _ in range(_BURST)))

    def weigh_actions(self) -> list[list[Weighted]]:
        """What each caller does: HTTP or gRPC, leaving now and then."""
        ways = (
            self._leaver.leave_before_answer, self._leaver.leave_in_body, self._leaver.leave_in_stream,
            self._leaver.cancel_call,
        )  # fmt: skip
        total = sum(request.weight for request in self._requests)
        leaving = [Weighted(total * _LEAVING_SHARE / len(ways), way) for way in ways]
        return [
            *([*(Weighted(each.weight, _bind_http(caller, each)) for each in self._requests), *leaving] for caller in self._http),
            *([Weighted(each.weight, _bind_grpc(caller, each)) for each in self._calls] for caller in self._grpc),
        ]  # fmt: skip

    async def close(self) -> None:
        for caller in self._http:
            caller.close()
        for channel in self._grpc:
            await channel.close()

    async def _ask_over_new_connection(self, request: HttpRequest) -> None:
        caller = HttpCaller(self._port, self._tally, count(), 4 * ANSWER_SECONDS)
        await caller.ask(request)
        caller.close()


def _bind_http(caller: HttpCaller, request: HttpRequest) -> Action:
    return lambda: caller.ask(request)


def _bind_grpc(caller: GrpcCaller, request: GrpcRequest) -> Action:
    return lambda: caller.ask(request)
