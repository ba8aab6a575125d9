"""The order of what waits: by turns of requests, whatever each of them asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runners.generator.fair_queue import FairQueue, Verdict


@dataclass(eq=False)
class Waiting:
    """What the queue knows of a sequence."""

    owner: str
    number: int
    length: int = 10
    cancelled: bool = False
    waiting: bool = False


def take(queue: FairQueue) -> Any:
    return queue.take(lambda _: Verdict.TAKE)


def fill(queue: FairQueue, owner: str, count: int, length: int = 10) -> list[Any]:
    waiting: list[Any] = [Waiting(owner, number, length) for number in range(count)]
    for each in waiting:
        queue.push(each)
    return waiting


def test_a_request_of_one_goes_before_the_rest_of_a_request_of_a_thousand() -> None:
    queue = FairQueue()
    fill(queue, "large", 1000)
    first = [take(queue) for _ in range(10)]
    assert [each.number for each in first] == list(range(10)), "a request's own are in order"
    fill(queue, "small", 1)
    assert "small" in [take(queue).owner for _ in range(2)]


def test_turns_are_by_tokens() -> None:
    queue = FairQueue()
    fill(queue, "long", 100, length=90)
    fill(queue, "short", 100, length=10)
    taken = [take(queue) for _ in range(50)]
    tokens = {owner: sum(each.length for each in taken if each.owner == owner) for owner in ("long", "short")}
    assert abs(tokens["long"] - tokens["short"]) <= 90


def test_many_requests_of_one_are_in_order() -> None:
    queue = FairQueue()
    for owner in "abcdef":
        fill(queue, owner, 1)
    assert "".join(take(queue).owner for _ in range(6)) == "abcdef"
    assert take(queue) is None


def test_a_request_that_may_not_run_yet_does_not_hold_up_others() -> None:
    queue = FairQueue()
    fill(queue, "full", 3)
    fill(queue, "free", 1)
    assert queue.take(lambda each: Verdict.PASS if each.owner == "full" else Verdict.TAKE).owner == "free"  # type: ignore[union-attr]
    assert queue.take(lambda _: Verdict.STOP) is None
    assert [take(queue).owner for _ in range(3)] == ["full"] * 3


def test_those_whose_clients_have_gone_are_not_taken_and_not_kept() -> None:
    queue = FairQueue()
    alive = fill(queue, "alive", 1)
    for index in range(1000):
        for gone in fill(queue, f"gone {index}", 2):
            gone.cancelled = True
            queue.discard(gone)
    assert len(queue) == 1
    assert len(queue._heap) < 100
    some = fill(queue, "some", 3)
    some[0].cancelled = True
    queue.discard(some[0])
    assert [take(queue) for _ in range(4)] == [alive[0], *some[1:], None]


def test_what_has_run_before_is_first_and_all_can_be_drained() -> None:
    queue = FairQueue()
    fill(queue, "other", 2)
    again: list[Any] = [Waiting("again", number) for number in range(2)]
    queue.push_first(again)
    assert take(queue) is again[0]
    assert {each.owner for each in queue.drain()} == {"again", "other"}
    assert len(queue) == 0
    assert take(queue) is None
