"""In the parent process: BentoML's arbiter, circus, which starts and stops the workers, with this server's manners.

By itself it looks for dead workers every ten seconds, replaces none in a container, waits a day for workers to end, and
forgets a SIGTERM that comes while it is busy.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from circus.arbiter import Arbiter
from circus.exc import ConflictError
from circus.sighandler import SysHandler
from circus.watcher import Watcher

from runners.core.arguments import Arguments
from runners.hosting.failures import exit_after_failure
from runners.hosting.life.channel import create_channel
from runners.hosting.life.deaths import WorkerMetrics, classify_death
from runners.hosting.life.signals import STOP_SIGNALS, ignore_hangups
from runners.hosting.life.stand_in import StandIn
from runners.hosting.life.supervisor import SupervisedWorker, Supervisor, kill_group
from runners.hosting.metrics_folder import VARIABLE, merge_ended_processes

logger = logging.getLogger(__name__)

# Workers that are busy closing their models get this long after the drain.
CLOSING_SECONDS = 10.0
_RETRY_SECONDS = 0.02
# Tools such as `timeout` send a signal to a process and to its group, which has it twice.
_SAME_SIGNAL_SECONDS = 0.5
# So many workers in a row that die before they are ready end the server: another one would die too.
_MOST_DEATHS_BEFORE_READY = 3


def supervise_workers(arguments: Arguments, service: str) -> WorkerLifeCycle:
    """Let the arbiter that BentoML starts next in this process run the workers of a service under supervision."""
    workers = WorkerLifeCycle(arguments, service)
    initialize = Arbiter.initialize

    def begin(arbiter: Any) -> None:
        Arbiter.initialize = initialize
        initialize(arbiter)
        workers.begin(arbiter)

    Arbiter.initialize = begin
    # Circus would lose a signal that comes before it has started the workers, and start them again on SIGHUP.
    handled = (*STOP_SIGNALS, signal.SIGHUP)
    SysHandler.SIGNALS = [number for number in SysHandler.SIGNALS if number not in handled]
    return workers


class WorkerLifeCycle:
    """The workers' starts, deaths and replacements, up to the end of the server.

    Another service may depend on this one (`bentoml.depends`): then it is the one that listens for clients, and the
    arbiter runs its workers too, which nobody supervises.
    """

    def __init__(self, arguments: Arguments, service: str) -> None:
        self._arguments = arguments
        self._service = service
        self._arbiter: Any = None
        self._stand_in: StandIn
        self._supervisor: Supervisor
        self._metrics: WorkerMetrics
        # The sockets of the worker that is being started.
        self._channel: tuple[socket.socket, socket.socket]
        self._stopping_since: float | None = None
        self._deaths_before_ready = 0
        self._running: set[int] = set()
        # Of the processes that the arbiter has reaped before this class saw that they had ended.
        self._exit_codes: dict[int, int | None] = {}

    def begin(self, arbiter: Any) -> None:
        """Take over an arbiter that listens and has started no worker."""
        self._arbiter = arbiter
        # The socket and the workers of a service that another one depends on have its name.
        if is_private := self._service in arbiter.sockets:
            listener = arbiter.sockets[self._service]
        else:
            [listener] = arbiter.sockets.values()
        self._stand_in = StandIn(listener, self._arguments)
        self._supervisor = Supervisor(self._stand_in, self._note_end)
        self._metrics = WorkerMetrics()
        name = f"service_{self._service}" if is_private else "service"
        for watcher in arbiter.watchers:
            watcher.graceful_timeout = self._stop_seconds
            if watcher.name == name:
                self._configure(watcher)
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._handle)

    def _configure(self, watcher: Watcher) -> None:
        watcher.respawn = True
        # vLLM's engine ends with its worker, which drains first.
        watcher.stop_children = False
        watcher.hooks |= {
            "before_spawn": self._before_spawn, "after_spawn": self._after_spawn, "after_reap": self._after_reap
        }  # fmt: skip

    @property
    def _stop_seconds(self) -> float:
        """How long a worker may take to end."""
        return self._arguments.shutdown_delay_seconds + self._arguments.drain_seconds + CLOSING_SECONDS

    # What the arbiter calls.

    def _before_spawn(self, watcher: Watcher, **_: Any) -> bool:
        self._channel = create_channel(watcher.env)
        ignore_hangups(logs=False)
        return True

    def _after_spawn(self, pid: int, **_: Any) -> bool:
        ignore_hangups(logs=True)
        parent, worker = self._channel
        worker.close()
        # The kernel may give the id of a process that has ended again.
        self._exit_codes.pop(pid, None)
        self._supervisor.adopt(pid, parent)
        self._running.add(pid)
        self._metrics.set_workers(len(self._running))
        return True

    def _after_reap(self, process_pid: int, exit_code: int | None, **_: Any) -> None:
        self._exit_codes[process_pid] = exit_code

    # Called in the supervisor's thread.

    def _note_end(self, worker: SupervisedWorker) -> None:
        self._arbiter.loop.add_callback(self._replace, worker)

    async def _replace(self, worker: SupervisedWorker) -> None:
        """Report the end of a worker, and let the arbiter notice it now."""
        pid = worker.pid
        if self._stopping_since is None:
            # A worker that has lost its connection cannot be told anything any more.
            kill_group(pid)
        exit_code = await self._wait_for_exit_code(pid)
        # The processes of its engine are left.
        kill_group(pid)
        self._running.discard(pid)
        self._metrics.set_workers(len(self._running))
        if self._stopping_since is None:
            self._report_death(worker, exit_code)
        # The report may have ended the server.
        if self._stopping_since is None:
            await self._retry(self._arbiter.manage_watchers)
            # The arbiter has reaped the worker.
            await asyncio.to_thread(merge_ended_processes, Path(os.environ[VARIABLE]))

    async def _wait_for_exit_code(self, pid: int) -> int | None:
        """The exit code of a process that is ending, which is left to the arbiter; None if the code is lost."""
        while pid not in self._exit_codes:
            try:
                ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # noqa: ASYNC222
            except ChildProcessError:
                break
            if ended is not None:
                return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
            await asyncio.sleep(_RETRY_SECONDS)
        return self._exit_codes.get(pid)

    def _report_death(self, worker: SupervisedWorker, exit_code: int | None) -> None:
        reason, description = classify_death(exit_code, worker.was_frozen)
        self._metrics.add_death(reason)
        self._deaths_before_ready = 0 if worker.was_ready else self._deaths_before_ready + 1
        ends = True
        if self._arguments.on_worker_death == "exit":
            consequence = "the server ends (--on_worker_death=exit)"
        elif self._deaths_before_ready == _MOST_DEATHS_BEFORE_READY:
            consequence = f"the server ends, because {_MOST_DEATHS_BEFORE_READY} workers in a row have never been ready"
        else:
            ends, consequence = False, "another one replaces it"
        logger.error("the worker with process id %d %s; %s", worker.pid, description, consequence)
        if ends:
            self.fail()

    # The end of the server.

    def fail(self) -> None:
        """Stop the server with an exit code of 1."""
        if self._stopping_since is None:
            atexit.register(exit_after_failure)
            self._begin_stop()

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._stopping_since is None:
            logger.info("%s: the server drains", signal.Signals(number).name)
            self._begin_stop()
        elif time.monotonic() - self._stopping_since > _SAME_SIGNAL_SECONDS:
            for pid in self._supervisor.pids:
                kill_group(pid)
            os._exit(128 + number)

    def _begin_stop(self) -> None:
        self._stopping_since = time.monotonic()
        self._supervisor.drain()
        self._arbiter.loop.add_callback_from_signal(self._stop)

    async def _stop(self) -> None:
        self._arbiter.exit_stack.close()
        # BentoML's own `stop` would wait for itself where the arbiter runs in a thread.
        await self._retry(lambda: Arbiter.stop(self._arbiter))
        self._stand_in.report()

    async def _retry(self, command: Callable[[], Any]) -> None:
        """Run a command of the arbiter's, once it runs no other one."""
        while True:
            try:
                await command()
                return
            except ConflictError:
                await asyncio.sleep(_RETRY_SECONDS)
