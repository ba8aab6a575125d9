"""What the callers have seen: latencies, and what went wrong."""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np

_MOST_SHOWN = 20
_PAUSE_SECONDS = 0.1


@dataclass
class Tally:
    """Counts of a run.

    Attributes:
        answered: requests with an answer, right or not.
        left: requests whose clients left.
        unanswered: requests that should have been answered and were not.
        wrong: answers that were not what the same request got before, or had another status.
        examples: what went wrong first.
    """

    answered: int = 0
    left: int = 0
    unanswered: int = 0
    wrong: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    latencies: dict[str, array[float]] = field(default_factory=lambda: defaultdict(lambda: array("f")))

    def count(self, kind: str, status: object, seconds: float) -> None:
        self.answered += 1
        self.statuses[f"{kind}: {status}"] += 1
        self.latencies[kind].append(seconds)

    async def count_unanswered(self, fault: str) -> None:
        """Count a request without an answer, and wait: where there is no server any more, all end at once."""
        self.unanswered += 1
        self._keep(fault)
        await asyncio.sleep(_PAUSE_SECONDS)

    def count_wrong(self, fault: str) -> None:
        """Count a wrong answer."""
        self.wrong += 1
        self._keep(fault)

    def _keep(self, fault: str) -> None:
        if len(self.examples) < _MOST_SHOWN:
            self.examples.append(fault)

    @property
    def requests(self) -> int:
        """All that the server has had to deal with."""
        return self.answered + self.left

    def quantiles(self, since: dict[str, int] | None = None) -> dict[str, tuple[float, float]]:
        """p50 and p99 in seconds by kind, and of all as `all`.

        Args:
            since: the number of latencies of each kind that do not count.
        """
        starts = since or {}
        taken = {kind: np.asarray(values[starts.get(kind, 0) :]) for kind, values in self.latencies.items()}
        taken["all"] = np.concatenate([*taken.values(), np.empty(0)])
        return {
            kind: (float(np.quantile(values, 0.5)), float(np.quantile(values, 0.99)))
            for kind, values in sorted(taken.items())
            if len(values)
        }

    def mark(self) -> dict[str, int]:
        """The number of latencies by now, for `quantiles`."""
        return {kind: len(values) for kind, values in self.latencies.items()}
