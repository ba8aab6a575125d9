"""Turns of models in one thread, on a clock that only turns and jobs advance."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import cycle
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runners.core.device_thread import DeviceFailedError, DeviceThread, give_way
from runners.core.errors import EngineDeadError, ModelNotReadyError
from runners.core.spinning import SpinControl
from tests.waiting import wait_until

_SECONDS = 30
# Tracebacks have the line that raises it.
_SECRET = ValueError("a secret")


class Bench:
    """A device and its clock.

    Attributes:
        ran: the name and the seconds of each turn and each step of a job, in order.
        most: after so many of these, sources have no more work.
    """

    def __init__(self, most: int = 100) -> None:
        self.device = DeviceThread()
        self.now = 0.0
        self.ran: list[tuple[str, float]] = []
        self.most = most

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.ran]

    def spend(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.ran.append((name, seconds))

    def attach(self, name: str, *costs: float, arrival: int = 0, turns: int | None = None) -> Source:
        source = Source(self, name, costs, arrival, turns)
        self.device.attach(source)
        return source

    def work(self, steps: Sequence[float]) -> None:
        """As a load: it gives way after each step."""
        for seconds in steps:
            self.spend("job", seconds)
            give_way()

    @contextmanager
    def run(self) -> Iterator[None]:
        """Attach sources within the block; after it the device runs until they have no more work."""
        with patch("runners.core.device_thread.time", SimpleNamespace(perf_counter=lambda: self.now)):
            free = threading.Event()
            held = self.device.run(free.wait)
            yield
            free.set()
            held.result(_SECONDS)
            wait_until(lambda: len(self.ran) >= self.most, _SECONDS)
            self.device.close()


class Source:
    """Work whose turns cost these seconds, in a cycle."""

    def __init__(self, bench: Bench, name: str, costs: Sequence[float], arrival: int, turns: int | None) -> None:
        """
        Args:
            arrival: after how many turns of all sources its work arrives.
            turns: how many it has; None for as many as the bench wants.
        """
        self._bench = bench
        self._name = name
        self._costs = cycle(costs)
        self._arrival = arrival
        self._left = bench.most if turns is None else turns
        self.ended: list[BaseException | None] = []

    def take(self) -> Callable[[], None] | None:
        done = len(self._bench.ran)
        return self.run if self._left and self._arrival <= done < self._bench.most else None

    def run(self) -> None:
        self._left -= 1
        self._bench.spend(self._name, next(self._costs))

    def end(self, error: BaseException | None) -> None:
        self.ended.append(error)


class Faulty(Source):
    """Work whose turn raises an error."""

    def __init__(self, bench: Bench, error: BaseException, fails_to_take: bool = False) -> None:
        super().__init__(bench, "faulty", [1], 0, 1)
        self._error = error
        self._fails_to_take = fails_to_take

    def take(self) -> Callable[[], None] | None:
        if self._fails_to_take:
            raise self._error
        return super().take()

    def run(self) -> None:
        raise self._error


costs = st.lists(st.integers(1, 100), min_size=1, max_size=4)


@given(st.lists(costs, min_size=1, max_size=5), st.integers(1, 100), st.integers(0, 60))
def test_new_work_waits_for_the_running_turn_only(busy: list[list[int]], cost: int, turns_before: int) -> None:
    bench = Bench()
    arrival = len(busy) + turns_before
    with bench.run():
        for index, each in enumerate(busy):
            bench.attach(str(index), *each)
        bench.attach("new", cost, arrival=arrival, turns=1)
    assert bench.names.index("new") == arrival


@given(st.lists(costs, min_size=2, max_size=5), st.integers(0, 50))
def test_busy_sources_get_equal_shares_of_the_time(busy: list[list[int]], late: int) -> None:
    """From the time when all have work, the seconds of two of them differ by no more than a turn of each."""
    bench = Bench(most=150)
    with bench.run():
        for index, each in enumerate(busy):
            bench.attach(str(index), *each, arrival=late if index == 0 else 0)
    begin = late + len(busy)
    had: Counter[str] = Counter()
    for name, seconds in bench.ran[begin:]:
        had[name] += int(seconds)
        for index, each in enumerate(busy):
            assert had["0"] - had[str(index)] <= max(busy[0]) + max(each)
            assert had[str(index)] - had["0"] <= max(busy[0]) + max(each)


def test_a_little_work_goes_before_much() -> None:
    """A caller who asks again and again waits for one long turn of others each time."""
    bench = Bench(most=20)
    with bench.run():
        bench.attach("flooded", 100)
        caller = bench.attach("caller", 20)
        take, asked = caller.take, [0]

        def take_later() -> Callable[[], None] | None:
            # The next request comes during the turn after the answer.
            if bench.names and bench.names[-1] == "caller":
                return None
            asked[0] += 1
            return take()

        caller.take = take_later  # type: ignore[method-assign]
    assert bench.names == ["flooded", "caller"] * 10


def test_idle_time_is_not_made_up_for() -> None:
    """What had nothing to do gets no more than its share afterwards, and what was busy alone no less."""
    bench = Bench(most=40)
    with bench.run():
        bench.attach("busy", 10)
        bench.attach("late", 10, arrival=20)
    assert bench.names == ["busy"] * 20 + ["late", "busy"] * 10


@pytest.mark.parametrize(
    ("steps", "cost", "expected"),
    [
        # Turns for as long as the job has run.
        ([30, 30], 10, ["job", *["turn"] * 3, "job", *["turn"] * 3]),
        # What a turn takes beyond that is the job's next.
        ([30, 30, 30, 30, 30], 100, ["job", "turn", "job", "job", "job", "turn", "job"]),
        ([100], 70, ["job", "turn", "turn"]),
    ],
)
def test_a_job_gives_way(steps: list[float], cost: float, expected: list[str]) -> None:
    bench = Bench(len(expected))
    with bench.run():
        bench.device.run(lambda: bench.work(steps))
        bench.attach("turn", cost)
    assert bench.names == expected


def test_jobs_are_done_in_order_and_the_next_waits_for_the_turns_that_one_owes() -> None:
    bench = Bench(8)
    with bench.run():
        for name in ("first", "second"):
            bench.device.run(lambda name=name: bench.spend(name, 30))  # type: ignore[misc]
        bench.attach("turn", 10)
    assert bench.names == ["first", *["turn"] * 3, "second", *["turn"] * 3]


def test_a_job_does_not_keep_the_time_that_no_turn_needs_for_later_ones() -> None:
    bench = Bench(5)
    with bench.run():
        bench.device.run(lambda: bench.work([500, 30, 30]))
        bench.attach("turn", 30, arrival=2)
    assert bench.names == ["job", "job", "turn", "job", "turn"]


def test_only_a_job_gives_way() -> None:
    assert not give_way()
    bench = Bench(4)
    with bench.run():
        bench.attach("other", 1, turns=2)
        nested = bench.attach("nested", 1, turns=2)
        run = nested.run

        def give_way_and_run() -> None:
            give_way()
            run()

        nested.run = give_way_and_run  # type: ignore[method-assign]
    assert bench.names == ["other", "nested"] * 2


def test_a_job_returns_or_raises() -> None:
    device = DeviceThread()
    assert device.run(lambda: threading.current_thread().name).result(_SECONDS) == "model"
    with pytest.raises(ZeroDivisionError):
        device.run(lambda: 1 / 0).result(_SECONDS)
    assert device.run(lambda: 3).result(_SECONDS) == 3
    device.close()


def test_a_cancelled_job_is_not_done() -> None:
    device, free = DeviceThread(), threading.Event()
    device.run(free.wait)
    done: list[int] = []
    cancelled: Future[None] = device.run(lambda: done.append(1))
    assert cancelled.cancel()
    free.set()
    device.run(lambda: None).result(_SECONDS)
    assert not done
    device.close()


@pytest.mark.parametrize("fails_to_take", [False, True])
def test_an_error_ends_its_source_only(fails_to_take: bool, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(10)
    error = ValueError("a secret")
    with bench.run():
        faulty = Faulty(bench, error, fails_to_take)
        bench.device.attach(faulty)
        other = bench.attach("other", 1)
    assert faulty.ended == [error]
    assert bench.names == ["other"] * 10
    assert not bench.device.failed
    assert other.ended == [None], "when the device is closed"
    assert "a model has died" in caplog.text
    assert "a secret" not in caplog.text


@pytest.mark.parametrize("error", [SystemExit(), DeviceFailedError("an illegal address")])
@pytest.mark.parametrize("while_a_job_gives_way", [False, True])
def test_an_error_that_ends_the_thread_ends_all_sources(
    error: BaseException, while_a_job_gives_way: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    control = SpinControl(lambda _: None)
    monkeypatch.setattr(SpinControl, "start", lambda _: control)
    bench = Bench()
    device, free = bench.device, threading.Event()
    device.control_spinning(2)
    held = device.run(free.wait)
    if while_a_job_gives_way:
        device.run(lambda: bench.work([1, 1]))
    sources = [bench.attach("other", 1, arrival=1000), Faulty(bench, error)]
    device.attach(sources[1])
    free.set()
    held.result(_SECONDS)
    wait_until(lambda: all(source.ended for source in sources), _SECONDS)
    assert [source.ended for source in sources] == [[error], [error]]
    wait_until(lambda: not any(thread.is_alive() for thread in device._threads), _SECONDS)
    assert device.failed
    assert not control._thread.is_alive()
    for ask in (lambda: device.run(lambda: None), lambda: device.attach(sources[0])):
        with pytest.raises(EngineDeadError):
            ask()
    assert "the thread that runs all models has died" in caplog.text


class Unending(Source):
    """Work whose end raises an error."""

    def end(self, error: BaseException | None) -> None:
        super().end(error)
        raise _SECRET


@pytest.mark.parametrize("error", [ValueError(), None])
def test_a_failing_end_leaves_the_others_running(error: Exception | None, caplog: pytest.LogCaptureFixture) -> None:
    """The source ends after an error of its turn, or because it is detached in a turn."""
    bench = Bench(10)
    with bench.run():
        source = Unending(bench, "unending", [1], 0, 1)

        def fail_or_detach() -> None:
            if error is not None:
                raise error
            bench.device.detach(source)

        source.run = fail_or_detach  # type: ignore[method-assign]
        bench.device.attach(source)
        other = bench.attach("other", 1)
    assert source.ended == [error]
    assert bench.names == ["other"] * 10
    assert other.ended == [None], "when the device is closed"
    assert not bench.device.failed
    assert "a model could not refuse what waits for it" in caplog.text
    assert "a secret" not in caplog.text


def test_a_failing_end_does_not_keep_others_from_ending() -> None:
    bench, free = Bench(), threading.Event()
    device = bench.device
    device.run(free.wait)
    waiting: Future[None] = device.run(lambda: None)
    sources = [Unending(bench, "unending", [1], 1000, 1), Source(bench, "other", [1], 1000, 1)]
    for source in sources:
        device.attach(source)
    device.close()
    free.set()
    assert [source.ended for source in sources] == [[None], [None]]
    with pytest.raises(ModelNotReadyError, match="shutting down"):
        waiting.result(_SECONDS)


class Running:
    """A source whose one turn runs until it is let go."""

    def __init__(self, device: DeviceThread) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.ended_after: list[bool] = []
        self._is_over = False
        device.attach(self)

    def take(self) -> Callable[[], None] | None:
        return None if self.begun.is_set() else self.run

    def run(self) -> None:
        self.begun.set()
        assert self.let_go.wait(_SECONDS)
        self._is_over = True

    def end(self, error: BaseException | None) -> None:
        self.ended_after.append(self._is_over)


@pytest.mark.parametrize("stop", [lambda device, source: device.detach(source), lambda device, _: device.close()])
def test_ending_waits_for_the_running_turn(stop: Callable[[DeviceThread, Running], None]) -> None:
    device = DeviceThread()
    source = Running(device)
    assert source.begun.wait(_SECONDS)
    ending = threading.Thread(target=stop, args=(device, source))
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    assert source.ended_after == []
    source.let_go.set()
    ending.join(_SECONDS)
    assert source.ended_after == [True]
    device.close()


@pytest.mark.parametrize("stop", [lambda device, source: device.detach(source), lambda device, _: device.close()])
def test_who_ends_a_source_waits_for_another_thread_that_ends_it(
    stop: Callable[[DeviceThread, Source], None],
) -> None:
    bench = Bench()
    device = bench.device
    source = bench.attach("ending", 1, arrival=1000)
    end, begun, let_go = source.end, threading.Event(), threading.Event()

    def end_late(error: BaseException | None) -> None:
        begun.set()
        assert let_go.wait(_SECONDS)
        end(error)

    source.end = end_late  # type: ignore[method-assign]
    first = threading.Thread(target=device.detach, args=(source,))
    first.start()
    assert begun.wait(_SECONDS)
    second = threading.Thread(target=stop, args=(device, source))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    let_go.set()
    for thread in (first, second):
        thread.join(_SECONDS)
    assert source.ended == [None]
    device.close()


def test_ending_does_not_wait_for_a_turn_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.core.device_thread._LONGEST_TURN_SECONDS", 0.05)
    device = DeviceThread()
    source = Running(device)
    assert source.begun.wait(_SECONDS)
    device.detach(source)
    device.close()
    assert source.ended_after == []
    source.let_go.set()
    wait_until(lambda: source.ended_after == [True], _SECONDS)


def test_a_turn_may_end_its_own_source() -> None:
    bench = Bench(5)
    with bench.run():
        source = bench.attach("once", 1)
        run = source.run

        def detach_and_run() -> None:
            bench.device.detach(source)
            run()

        source.run = detach_and_run  # type: ignore[method-assign]
        bench.attach("other", 1)
    assert bench.names == ["once", *["other"] * 4]
    assert source.ended == [None]


def test_a_source_is_ended_while_a_job_runs() -> None:
    """A model is unloaded while another one loads."""
    bench, free = Bench(), threading.Event()
    loading = bench.device.run(free.wait)
    source = bench.attach("model", 1, arrival=1000)
    bench.device.detach(source)
    assert source.ended == [None]
    free.set()
    loading.result(_SECONDS)
    bench.device.close()


def test_a_closed_device_does_no_jobs() -> None:
    device, free = DeviceThread(), threading.Event()
    device.run(free.wait)
    waiting: Future[None] = device.run(lambda: None)
    device.close()
    free.set()
    with pytest.raises(ModelNotReadyError, match="shutting down"):
        waiting.result(_SECONDS)
    with pytest.raises(ModelNotReadyError, match="shutting down"):
        device.run(lambda: None)


def test_several_turns_run_at_once_if_they_wait_for_another_machine() -> None:
    device = DeviceThread(2)
    running = [Running(device) for _ in range(3)]
    assert all(source.begun.wait(_SECONDS) for source in running[:2])
    assert not running[2].begun.wait(0.05)
    for source in running:
        source.let_go.set()
    assert running[2].begun.wait(_SECONDS)
    device.close()
    assert [source.ended_after for source in running] == [[True]] * 3
