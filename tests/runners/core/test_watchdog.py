from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from runners.core.device_thread import DeviceThread
from runners.core.watchdog import Watchdog
from tests.waiting import wait_until


class Source:
    """One turn, which lasts until `go_on` is set."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self._has_run = False

    def take(self) -> Callable[[], None] | None:
        if self._has_run:
            return None
        self._has_run = True
        return self.wait_for_nothing

    def wait_for_nothing(self) -> None:
        secret = "a text of a client"
        self.go_on.wait(len(secret))

    def end(self, error: BaseException | None) -> None:
        pass


class Engine:
    """Something that owes a result since a moment."""

    stuck = False

    def __init__(self, since: float | None) -> None:
        self.since = since

    def owes_since(self) -> float | None:
        return self.since

    def describe_stall(self, seconds: float) -> str:
        return f"nothing for {seconds:.0f} s"


def test_the_server_is_live_once_nothing_is_stuck(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 100.0)
    first, second, idle = Engine(80.0), Engine(95.0), Engine(None)
    watched = [first, second, idle]
    watchdog = Watchdog(lambda: watched, 10)
    for _ in range(2):
        assert watchdog.check()
        assert [each.stuck for each in watched] == [True, False, False]
        assert caplog.messages == ["the server is not live (--watchdog_seconds=10): nothing for 20 s"]
    second.since = 70.0
    assert watchdog.check()
    first.since = 99.0
    assert watchdog.check()
    assert [each.stuck for each in watched] == [False, True, False]
    # It is unloaded.
    del watched[1]
    assert not watchdog.check()
    assert caplog.messages[1:] == [
        "the server is not live (--watchdog_seconds=10): nothing for 30 s",
        "the server is live again: nothing is stuck any more",
    ]


def test_a_long_turn_is_noticed_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    device, source = DeviceThread(), Source()
    watchdog = Watchdog(lambda: [device], 0.1)
    assert not watchdog.check()
    device.attach(source)
    wait_until(watchdog.check, 5)
    assert device.stuck
    assert watchdog.check()
    [line] = caplog.messages
    assert line.startswith("the server is not live (--watchdog_seconds=0.1): a batch has not ended for 0.")
    assert "< Source.wait_for_nothing (" in line
    assert "a text of a client" not in line
    source.go_on.set()
    wait_until(lambda: not watchdog.check(), 5)
    assert not device.stuck
    assert "live again" in caplog.messages[-1]
    device.close()


@pytest.mark.parametrize("seconds", [0, 60])
def test_other_turns_are_no_matter(seconds: float) -> None:
    device, source = DeviceThread(), Source()
    watchdog = Watchdog(lambda: [device], seconds)
    device.attach(source)
    wait_until(device.owes_since, 5)
    assert not watchdog.check()
    source.go_on.set()
    device.close()


def test_a_job_such_as_a_load_does_not_trip_it(caplog: pytest.LogCaptureFixture) -> None:
    device, go_on = DeviceThread(), threading.Event()
    watchdog = Watchdog(lambda: [device], 0.01)
    with caplog.at_level(logging.WARNING):
        loading = device.run(lambda: go_on.wait(0.3))
        while not loading.done():
            assert not watchdog.check()
    device.close()
