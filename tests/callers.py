"""Callers that send requests without a pause, as users behind a load balancer do, and note what becomes of each."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import httpx

# Longer than any answer of a tiny model takes: a request that takes as long hangs.
_HANGS_SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """What became of a request.

    Attributes:
        at: when it ended, by `time.monotonic`.
        status: of the answer, or the name of the error of the connection.
    """

    at: float
    status: int | str
    text: str = ""


class Callers:
    """Threads that POST the same body until they are stopped; each has a connection of its own, and keeps it alive."""

    def __init__(self, url: str, body: object, count: int) -> None:
        self.outcomes: list[Outcome] = []
        self._url = url
        self._body = body
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._call) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Callers:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return sum(outcome.status == 200 for outcome in self.outcomes)

    @property
    def failures(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.status != 200]

    def _call(self) -> None:
        with httpx.Client(timeout=_HANGS_SECONDS) as client:
            while not self._stopped.is_set():
                try:
                    response = client.post(self._url, json=self._body)
                    outcome = Outcome(time.monotonic(), response.status_code, response.text)
                except httpx.TransportError as error:
                    outcome = Outcome(time.monotonic(), type(error).__name__)
                self.outcomes.append(outcome)
                if outcome.status != 200:
                    time.sleep(0.05)
