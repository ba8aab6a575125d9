"""Which sequences get rows of the batch: how many are free, and how many one request may hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from runners.generator.sequence_state import Generation

MAX_ROWS = 64
# Of the rows that others leave free, a request gets this part, so that the next request finds room.
_LARGEST_SHARE = 3 / 4


class FreeRows:
    """The rows that are free beside those of running sequences."""

    def __init__(self, busy: Sequence[Generation]) -> None:
        """
        Args:
            busy: the sequences that have rows.
        """
        self._held: Counter[Hashable] = Counter()
        for generation in busy:
            self._held[generation.owner] += generation.most_rows
        self.count = MAX_ROWS - sum(self._held.values())

    def may_hold(self, generation: Generation, others_wait: bool) -> bool:
        """Whether a sequence's request may hold the rows of the sequence too.

        A request may hold any number of rows while it is alone; otherwise one sequence, or up to its share.
        """
        held, rows = self._held[generation.owner], generation.most_rows
        is_alone = not others_wait and held == MAX_ROWS - self.count
        return is_alone or not held or held + rows <= (self.count + held) * _LARGEST_SHARE

    def find_excess(self) -> tuple[Hashable, int] | None:
        """The request that holds more rows than its share, and how many more; to be used where others wait."""
        owner, held = max(self._held.items(), key=lambda item: item[1], default=(None, 0))
        excess = held - int((self.count + held) * _LARGEST_SHARE)
        return (owner, excess) if excess > 0 else None

    def take(self, generation: Generation) -> None:
        """Give a sequence its rows."""
        self._held[generation.owner] += generation.most_rows
        self.count -= generation.most_rows


class Reservation:
    """The rows that are kept free for one sequence of several rows, while narrower sequences overtake it."""

    def __init__(self) -> None:
        self._sequence: Generation | None = None
        self._overtaking: set[Generation] = set()

    def update(self, busy: Sequence[Generation]) -> None:
        """End the reservation if its sequence does not wait any more, and forget sequences that have ended."""
        if self._sequence is not None and not self._sequence.waiting:
            self._sequence = None
            self._overtaking.clear()
        self._overtaking.intersection_update(busy)

    def allows(self, generation: Generation, free: FreeRows) -> bool:
        """Whether a sequence may have its rows now; reserves rows for the first one that has to wait."""
        if self._sequence is None and generation.most_rows > free.count:
            self._sequence = generation
        if self._sequence is None or generation is self._sequence:
            return generation.most_rows <= free.count
        overtaking = sum(sequence.most_rows for sequence in self._overtaking)
        return generation.most_rows <= min(free.count, MAX_ROWS - self._sequence.most_rows - overtaking)

    def add_overtaking(self, generation: Generation) -> None:
        """Count the rows of a sequence that starts, if another one waits for rows."""
        if self._sequence is not None:
            self._overtaking.add(generation)
