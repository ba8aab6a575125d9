"""The work of a command in this process, to its end or to a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeAlias

import uvloop

from runners.core.errors import OutputClosedError
from runners.hosting.life.signals import STOP_SIGNALS

# Added to the number of a signal in the exit code of a process that it has ended.
_SIGNALLED = 128
_BROKEN_PIPE = _SIGNALLED + signal.SIGPIPE
# A model that is stopped gets this long: its batch ends first.
_CLOSE_SECONDS = 5.0

OnSignal: TypeAlias = Callable[[signal.Signals], None]


class StoppedError(KeyboardInterrupt):
    """A signal has ended the work."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)
        self.number = number


def end_on_signals() -> None:
    """End at once on a signal to stop: nothing has been written yet."""
    for number in STOP_SIGNALS:
        signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def run_work(work: Callable[[], Coroutine[Any, Any, None]], on_signal: OnSignal) -> int | None:
    """Run work to its end, or to a signal; a second signal ends the process at once.

    Args:
        on_signal: called with the first signal.

    Returns:
        The exit code of a signal, or of a reader of the output who wants no more; else None.

    Raises:
        Exception: what `work` raises; of a group its first error.
    """
    runner = _WorkRunner(on_signal)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
            loop.run(runner.run(work))
    except (Exception, asyncio.CancelledError) as error:
        if runner.signal is not None:
            return _SIGNALLED + runner.signal
        cause = _find_cause(error)
        if isinstance(cause, OutputClosedError):
            return _BROKEN_PIPE
        raise cause from None
    return None


class _WorkRunner:
    def __init__(self, on_signal: OnSignal) -> None:
        self.signal: signal.Signals | None = None
        self._on_signal = on_signal

    async def run(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number, task)
        await work()

    def _stop(self, number: signal.Signals, task: asyncio.Task[None]) -> None:
        if self.signal is not None:
            os._exit(_SIGNALLED + number)
        self.signal = number
        self._on_signal(number)
        task.cancel()
        # A load, or a reader of the standard output, may take longer.
        timer = threading.Timer(_CLOSE_SECONDS, os._exit, [_SIGNALLED + number])
        timer.daemon = True
        timer.start()


@contextmanager
def raise_on_signal(on_signal: OnSignal) -> Iterator[None]:
    """Raise an error on the first signal to stop, in work that has no event loop; the second ends the process.

    Raises:
        StoppedError: a signal has come.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for each in STOP_SIGNALS:
            signal.signal(each, _end)
        on_signal(signal.Signals(number))
        raise StoppedError(signal.Signals(number))

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, _end)


def end_process(code: int) -> NoReturn:
    """End this process with the exit code of its work; after a signal at once, while its threads may still run."""
    if code > _SIGNALLED:
        sys.stderr.flush()
        # The interpreter would end under the threads of a load, which aborts the process.
        os._exit(code)
    raise SystemExit(code)


def _find_cause(error: BaseException) -> BaseException:
    """The first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end(number: int, _: FrameType | None) -> None:
    os._exit(_SIGNALLED + number)
