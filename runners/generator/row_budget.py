"""Which sequences have rows: what fits, and how many one request may hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from runners.generator.generation_request import Generation

MAX_ROWS = 64
# Of the rows that others leave, a request gets this part: the next one finds room whatever the first one asks for.
_LARGEST_SHARE = 3 / 4


class Room:
    """The rows that are free beside those of sequences."""

    def __init__(self, busy: Sequence[Generation]) -> None:
        self._held: Counter[Hashable] = Counter()
        for generation in busy:
            self._held[generation.owner] += generation.most_rows
        self.free = MAX_ROWS - sum(self._held.values())

    def may_hold(self, generation: Generation, others_wait: bool) -> bool:
        """Whether its request may hold its rows too: any while it is alone, or else a sequence, or up to its share."""
        held, rows = self._held[generation.owner], generation.most_rows
        alone = not others_wait and held == MAX_ROWS - self.free
        return alone or not held or held + rows <= (self.free + held) * _LARGEST_SHARE

    def find_excess(self) -> tuple[Hashable, int] | None:
        """The request that has more rows than its share when it is not alone, and how many more."""
        owner, held = max(self._held.items(), key=lambda item: item[1], default=(None, 0))
        excess = held - int((self.free + held) * _LARGEST_SHARE)
        return (owner, excess) if excess > 0 else None

    def add(self, generation: Generation) -> None:
        """Let it have rows."""
        self._held[generation.owner] += generation.most_rows
        self.free -= generation.most_rows
