"""The thread that runs all models of a device: it loads them, and then they take turns.

They share one thread because of libgomp: after another thread has run a parallel operator, batches take 8-26 % longer.

Turns are ordered by start-time fair queueing, and their costs are the seconds that they took. The start tag of a
model's turn is the finish tag of its last turn, or the start tag of the turn that ran last, whichever is later. So a
model with little work waits for one turn of each other model at most, and busy models get equal shares of the time.
Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996.

A load is a job, which would keep all models waiting; it calls `give_way` between its steps.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any, NoReturn, Protocol, TypeVar

from runners.core.errors import EngineDeadError, ModelNotReadyError, RunnerError, without_message
from runners.core.log_labels import model_context
from runners.core.spinning import SpinControl

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LONGEST_TURN_SECONDS = 10.0
# The innermost calls of a stuck thread that the log shows.
_MOST_CALLS = 64
# The log leaves out where packages are installed.
_PACKAGES = "/site-packages/"


class DeviceFailedError(BaseException):
    """The device cannot be used by this process any more. Raised in a turn or a job, it ends the models of all."""


class WorkSource(Protocol):
    """The work of one model, in turns."""

    def take(self) -> Callable[[], None] | None:
        """The work of the next turn, such as a batch; None if nothing waits. Called with `changed` held."""

    def end(self, error: BaseException | None) -> None:
        """Refuse what waits; no turn runs, and none will. Called once, in any thread.

        Args:
            error: what a turn raised, which ends the model; None if the source is detached or the thread closed.
        """


class _State(Enum):
    """The states of a flow, in order."""

    ATTACHED = auto()
    # No turn is taken any more, but one or more may run.
    DETACHED = auto()
    ENDING = auto()
    ENDED = auto()


@dataclass(slots=True, eq=False)
class _Flow:
    """The turns of a source.

    Attributes:
        context: what its turns run in: it names the model in log records.
        finish: finish tag of its last turn, in seconds.
        last_turn: number of its last turn.
        running: how many of its turns run now.
        error: what one of them raised.
    """

    source: WorkSource
    context: Context
    finish: float = 0.0
    last_turn: int = 0
    running: int = 0
    error: BaseException | None = None
    state: _State = _State.ATTACHED


class _Current(threading.local):
    """What the current thread runs.

    Attributes:
        device: whose thread it is.
        since: when its job last owed the turns of models nothing; None outside of a job.
    """

    device: DeviceThread | None = None
    since: float | None = None


_current = _Current()


def give_way() -> bool:
    """In a job: let waiting turns run for as long as the job has run before. Elsewhere it does nothing.

    Call it where turns may run torch operators: nothing is timed, and no state of the process is changed for a while.

    Returns:
        Whether turns have run.
    """
    if _current.device is None or _current.since is None:
        return False
    return _current.device._give_way(_current.since)


class DeviceThread:
    """Runs jobs one after another, and between them the turns of attached sources.

    Attributes:
        changed: the lock of all sources' queues; notify it when work is added.
        position: which of this machine's GPUs the models run on, if they run on one, counted from 0.
        stuck: whether a turn takes so long that it is not expected to end; the watchdog sets it.
    """

    def __init__(self, threads: int = 1, position: int = 0) -> None:
        """
        Args:
            threads: how many turns run at once; more than one only if the turns wait for another machine.
            position: which GPU the models run on; beyond the last GPU it begins again.
        """
        self.position = position
        lock = threading.RLock()
        # Only idle threads of this device wait for it, so that one notification suffices.
        self.changed = threading.Condition(lock)
        self._ended = threading.Condition(lock)
        self._flows: dict[WorkSource, _Flow] = {}
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        # The virtual time, and the largest finish tag, which it becomes when no work waits.
        self._time = self._latest = 0.0
        self._turns = 0
        self._count = threads
        self._threads: list[threading.Thread] = []
        # When the turns that run now began, by the ids of their threads.
        self._begun: dict[int, float] = {}
        self.stuck = False
        self._closed = False
        self._failure: BaseException | None = None
        self._spin_control: SpinControl | None = None

    @property
    def failed(self) -> bool:
        """Whether an error has ended the thread, and with it all models."""
        return self._failure is not None

    @property
    def failure(self) -> str | None:
        """Which error has ended the thread; None while it runs."""
        error = self._failure
        return None if error is None else str(error) or type(error).__name__

    def owes_since(self) -> float | None:
        """When the longest running turn began; see `Watched.owes_since`. Jobs do not count."""
        return min(self._begun.copy().values(), default=None)

    def describe_stall(self, seconds: float) -> str:
        """Where the thread of the longest running turn stands; see `Watched.describe_stall`."""
        begun = self._begun.copy()
        stack = describe_stack(min(begun, key=begun.__getitem__)) if begun else "a turn that has ended"
        return f"a batch has not ended for {seconds:.1f} s; its thread stands in {stack}"

    def run(self, work: Callable[[], T]) -> Future[T]:
        """Run a job, such as the load of a model, when the running turn and the jobs before it are over.

        Returns:
            Its result or error; an EngineDeadError if it finds that the device has failed.

        Raises:
            EngineDeadError: the thread has died.
            ModelNotReadyError: it is closed.
        """
        future: Future[T] = Future()
        # It holds the labels of log records.
        in_context = partial(copy_context().run, work)
        with self.changed:
            self._start()
            self._jobs.append((in_context, future))
            self.changed.notify()
        return future

    def attach(self, source: WorkSource) -> None:
        """Run the turns of a source from now on.

        Raises:
            EngineDeadError: the thread has died.
            ModelNotReadyError: it is closed.
        """
        with self.changed:
            self._start()
            self._flows[source] = _Flow(source, model_context())
            self.changed.notify()

    def detach(self, source: WorkSource) -> None:
        """End a source. Returns once its running turn is over, unless that takes very long or calls this itself."""
        with self.changed:
            flow = self._flows.get(source)
        if flow is not None:
            self._end_flow(flow)
            self._wait_for([flow])

    def close(self) -> None:
        """End all sources and the thread. Returns once the running turn is over; a running job is not waited for."""
        self._wait_for(self._end_all())

    def control_spinning(self, threads: int) -> None:
        """Control how long this many OpenMP threads spin until the thread ends; call it after torch is imported."""
        with self.changed:
            if self._spin_control is None and not self._closed:
                self._spin_control = SpinControl.start(threads)

    def _start(self) -> None:
        if self._closed:
            raise self._closed_error()
        if not self._threads:
            threads = range(self._count)
            self._threads = [threading.Thread(target=self._work, name="model", daemon=True) for _ in threads]
            for thread in self._threads:
                thread.start()

    def _closed_error(self) -> RunnerError:
        if self.failed:
            return EngineDeadError.of_server()
        return ModelNotReadyError.of_shutdown()

    def _work(self) -> None:
        _current.device = self
        while (work := self._wait()) is not None:
            work()
            # Else the waiting thread would keep the last batch in memory.
            del work

    def _wait(self) -> Callable[[], None] | None:
        """Wait for the next job or turn; None once closed."""
        with self.changed:
            while not self._closed:
                if self._jobs:
                    return partial(self._run_job, *self._jobs.popleft())
                if (turn := self._take_turn()) is not None:
                    return turn
                self.changed.wait()
            return None

    def _run_job(self, work: Callable[[], Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        _current.since = time.perf_counter()
        try:
            future.set_result(work())
        except DeviceFailedError as error:
            _current.since = None
            self._end_all(error)
            future.set_exception(EngineDeadError(f"the device has failed: {error}"))
            return
        except BaseException as error:
            future.set_exception(error)
        give_way()
        _current.since = None

    def _give_way(self, since: float) -> bool:
        start = time.perf_counter()
        owed, had = start - since, 0.0
        # The turns are no job: they give no way.
        _current.since = None
        try:
            while had < owed and (turn := self._take_turn()) is not None:
                turn()
                had = time.perf_counter() - start
        finally:
            # If turns took longer than owed, the job runs that long before the next turns; unused time is not kept.
            _current.since = time.perf_counter() + max(0.0, had - owed)
        return had > 0

    def _take_turn(self) -> Callable[[], None] | None:
        """The next turn of all sources; None if nothing waits."""
        with self.changed:
            attached = [flow for flow in self._flows.values() if flow.state is _State.ATTACHED]
            for flow in sorted(attached, key=self._rank):
                try:
                    work = flow.source.take()
                except Exception as error:
                    work = partial(_fail, error)
                if work is not None:
                    self._time = max(self._time, flow.finish)
                    self._turns += 1
                    flow.last_turn = self._turns
                    flow.running += 1
                    return partial(self._run_turn, flow, work, self._time)
            self._time = self._latest
            return None

    def _rank(self, flow: _Flow) -> tuple[float, int]:
        return max(self._time, flow.finish), flow.last_turn

    def _run_turn(self, flow: _Flow, work: Callable[[], None], start_tag: float) -> None:
        thread, start = threading.get_ident(), time.perf_counter()
        self._begun[thread] = start
        error: BaseException | None = None
        try:
            # A copy, because a context runs once at a time, and several threads may run turns of one source.
            flow.context.copy().run(work)
        except BaseException as raised:
            error = raised
        del self._begun[thread]
        with self.changed:
            flow.running -= 1
            flow.finish = max(flow.finish, start_tag + time.perf_counter() - start)
            self._latest = max(self._latest, flow.finish)
            flow.error = flow.error or error
        if error is not None and not isinstance(error, Exception):
            self._end_all(error)
            return
        if error is not None or flow.state is not _State.ATTACHED:
            self._end_flow(flow)
        if error is not None:
            logger.error("a model has died", exc_info=without_message(error))

    def _end_flow(self, flow: _Flow) -> None:
        """Take a source's turns no more, and end it once none runs."""
        with self.changed:
            if flow.state in (_State.ENDING, _State.ENDED):
                return
            flow.state = _State.DETACHED if flow.running else _State.ENDING
            if flow.running:
                return
        try:
            flow.source.end(flow.error)
        except Exception as error:
            # The thread goes on with the other models.
            logger.error("a model could not refuse what waits for it", exc_info=without_message(error))
        finally:
            with self.changed:
                flow.state = _State.ENDED
                if self._flows.get(flow.source) is flow:
                    del self._flows[flow.source]
                self._ended.notify_all()

    def _end_all(self, error: BaseException | None = None) -> Collection[_Flow]:
        if error is not None:
            logger.error("the thread that runs all models has died", exc_info=error)
        with self.changed:
            self._closed = True
            self._failure = self._failure or error
            flows, jobs, control = [*self._flows.values()], [*self._jobs], self._spin_control
            self._jobs.clear()
            self._spin_control = None
            for flow in flows:
                flow.error = flow.error or error
            self.changed.notify_all()
        for flow in flows:
            self._end_flow(flow)
        for _, future in jobs:
            if future.set_running_or_notify_cancel():
                future.set_exception(self._closed_error())
        if control is not None:
            control.close()
        return flows

    def _wait_for(self, flows: Collection[_Flow]) -> None:
        """Wait until sources have ended: a thread that is killed inside torch aborts the process."""
        if _current.device is not self:
            with self.changed:
                self._ended.wait_for(lambda: all(flow.state is _State.ENDED for flow in flows), _LONGEST_TURN_SECONDS)


def describe_stack(thread: int) -> str:
    """The calls of a thread in one line, the innermost first: names of functions, files and lines, and no values."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "a thread that has ended"
    calls = [
        f"{call.f_code.co_qualname} ({call.f_code.co_filename.rpartition(_PACKAGES)[2]}:{line})"
        for call, line in traceback.walk_stack(frame)
    ]
    return " < ".join(calls[:_MOST_CALLS])


def _fail(error: Exception) -> NoReturn:
    raise error
