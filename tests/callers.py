"""Callers that send requests without a pause, as users behind a load balancer do, and note what becomes of each."""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Self

import grpc
import httpx

# Longer than any answer of a tiny model takes: a request that takes as long hangs.
_HANGS_SECONDS = 20.0
OK = 200

Send = Callable[[], tuple[int | str, str]]


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        caller: the number of its caller.
        began, at: when it began and ended, by `time.monotonic`.
        status: 200, another status of HTTP, the name of gRPC's status, or the name of the error of the connection.
    """

    caller: int
    began: float
    at: float
    status: int | str
    text: str = ""


class Callers(ABC):
    """Threads that send the same request until they are stopped; each has a connection of its own, and keeps it."""

    def __init__(self, count: int) -> None:
        self.outcomes: list[Outcome] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._call, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return sum(outcome.status == OK for outcome in self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != OK]

    @abstractmethod
    def _connect(self, number: int) -> contextlib.AbstractContextManager[Send]:
        """The connection of a caller, as a function that sends a request and returns its status and text."""

    def _call(self, number: int) -> None:
        with self._connect(number) as send:
            while not self._stopped.is_set():
                began = time.monotonic()
                status, text = send()
                self.outcomes.append(Outcome(number, began, time.monotonic(), status, text))
                if status != OK:
                    time.sleep(0.05)


class HttpCallers(Callers):
    """Callers that POST a body."""

    def __init__(self, url: str, body: object, count: int) -> None:
        """
        Args:
            url: `{caller}` in it is the number of a caller.
        """
        self._url = url
        self._body = body
        super().__init__(count)

    @contextlib.contextmanager
    def _connect(self, number: int) -> Iterator[Send]:
        url = self._url.format(caller=number)

        def send() -> tuple[int | str, str]:
            try:
                response = client.post(url, json=self._body)
            except httpx.TransportError as error:
                return type(error).__name__, str(error)
            return response.status_code, response.text

        with httpx.Client(timeout=_HANGS_SECONDS) as client:
            yield send


class GrpcCallers(Callers):
    """Callers of a unary method, without a deadline."""

    def __init__(self, address: str, method: str, message: bytes, count: int) -> None:
        """
        Args:
            address: `{caller}` in it is the number of a caller.
        """
        self._address = address
        self._method = method
        self._message = message
        super().__init__(count)

    @contextlib.contextmanager
    def _connect(self, number: int) -> Iterator[Send]:
        def send() -> tuple[int | str, str]:
            try:
                call(self._message)
            except grpc.RpcError as error:
                return error.code().name, error.details()
            return OK, ""

        with grpc.insecure_channel(
            self._address.format(caller=number), [("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = channel.unary_unary(self._method)
            yield send
