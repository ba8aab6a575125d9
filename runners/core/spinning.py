"""How long OpenMP's threads spin at barriers: long while this process has its cores alone, shortly beside others.

A step of generation takes hundreds of barriers. Threads that sleep at each cost a third of the tokens; threads that
spin for cores which others have cost nearly all of them. libgomp reads its spin counts once, but uses the short one,
of OMP_WAIT_POLICY, whenever the process has more OpenMP threads than cores. A second team of threads, which does
nothing, thus switches to short spinning, and its end switches back. The numbers that are computed do not change.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_TASKS = Path("/proc/self/task")
_GOMP = "libgomp.so.1"
# libgomp's own default, about 3 ms; with OMP_WAIT_POLICY=ACTIVE the short count is 1,000 instead of 100.
_ENVIRONMENT = {"GOMP_SPINCOUNT": "300000", "OMP_WAIT_POLICY": "ACTIVE"}
_SHORT_ENVIRONMENT = {"GOMP_SPINCOUNT": "1000"}
_SECONDS = 0.25
# Parts of the time in which threads that could run waited for a core.
_CONTENDED, _ALONE = 0.15, 0.05
# Samples whose mean tells that a process is alone again; a batch that begins makes a single sample of it restless.
_CALM_SAMPLES = 4
# Seconds of threads in a sample below which it says nothing.
_LEAST_SECONDS = 0.05
# Set once the environment is that of other processes: libgomp has read it as it was before.
_inherited = threading.Event()
# Seconds of this process's CPU time before which no sample is taken: it idles.
_IDLE_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class ThreadTimes:
    """Nanoseconds that the threads of this process ran, and that they could have run but waited for a core."""

    ran: int
    waited: int


class Contention:
    """Decides from samples whether other processes want this one's cores."""

    def __init__(self) -> None:
        self.contended = False
        self._recent: deque[ThreadTimes] = deque(maxlen=_CALM_SAMPLES)
        self._last: ThreadTimes | None = None

    def update(self, times: ThreadTimes) -> bool:
        """Add a sample; whether the threads shall spin shortly."""
        last, self._last = self._last, times
        if last is None:
            return self.contended
        # Threads that have ended take their times with them.
        sample = ThreadTimes(max(0, times.ran - last.ran), max(0, times.waited - last.waited))
        if sample.ran + sample.waited < _LEAST_SECONDS * 1e9:
            return self.contended
        self._recent.append(sample)
        if _part_waited([sample]) > _CONTENDED:
            self.contended = True
            self._recent.clear()
        elif len(self._recent) == _CALM_SAMPLES and _part_waited(self._recent) < _ALONE:
            self.contended = False
        return self.contended


def _part_waited(samples: Collection[ThreadTimes]) -> float:
    ran, waited = sum(sample.ran for sample in samples), sum(sample.waited for sample in samples)
    return waited / (ran + waited)


class SpinControl:
    """A thread that samples the contention and switches the spinning, until it is closed."""

    def __init__(self, hold_team: Callable[[threading.Event], None], tasks: Path = _TASKS) -> None:
        """
        Args:
            hold_team: makes the second team, and keeps it until the event is set.
        """
        self._hold_team = hold_team
        self._tasks = tasks
        self._closed = threading.Event()
        self._release: threading.Event | None = None
        self._thread = threading.Thread(target=self._run, name="spinning", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, threads: int) -> SpinControl | None:
        """Control the spinning of this many threads; None where nobody prepared that, or libgomp offers no way to.

        Call it after torch has been imported.
        """
        if not _is_prepared() or threads == 1:
            return None
        try:
            gomp = ctypes.CDLL(_GOMP, mode=os.RTLD_NOLOAD)
            body = ctypes.cast(gomp.omp_get_thread_num, ctypes.c_void_p)
            parallel = gomp.GOMP_parallel
        except (OSError, AttributeError) as error:
            logger.warning(
                "OpenMP's threads spin long beside other processes too, which takes most of the speed there: %s; "
                "GOMP_SPINCOUNT=1000 lets them spin shortly", error
            )  # fmt: skip
            return None
        # One thread more than libgomp sees cores.
        team = max(2, int(gomp.omp_get_num_procs()) - threads + 2)

        def hold(release: threading.Event) -> None:
            parallel(body, None, ctypes.c_uint(team), ctypes.c_uint(0))
            release.wait()

        return cls(hold)

    @property
    def spins_shortly(self) -> bool:
        return self._release is not None

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        contention = Contention()
        sampled = 0.0
        while not self._closed.wait(_SECONDS):
            used = time.process_time()
            if used - sampled < _IDLE_SECONDS:
                continue
            sampled = used
            times = read_times(self._tasks)
            if times is not None:
                self._switch(contention.update(times))
        self._switch(False)

    def _switch(self, shortly: bool) -> None:
        if shortly is self.spins_shortly:
            return
        logger.debug("OpenMP's threads spin %s at barriers", "shortly" if shortly else "long")
        if self._release is not None:
            self._release.set()
            self._release = None
        else:
            self._release = threading.Event()
            threading.Thread(target=self._hold_team, args=(self._release,), name="second-team", daemon=True).start()


def prepare_spin_control() -> None:
    """Make libgomp's threads spin long, or shortly beside a second team; call it before importing torch.

    Does nothing where the operator has set how they spin. They spin shortly where the kernel does not say how long
    threads wait, or torch has no libgomp of its own: with another OpenMP they would spin without an end.
    """
    if not {*_ENVIRONMENT}.isdisjoint(os.environ):
        return
    os.environ.update(_ENVIRONMENT if _has_gomp() and read_times() is not None else _SHORT_ENVIRONMENT)


def _has_gomp() -> bool:
    torch = importlib.util.find_spec("torch")
    return torch is not None and torch.origin is not None and (Path(torch.origin).parent / "lib" / _GOMP).is_file()


def inherit_short_spinning() -> None:
    """Let the processes that this one starts spin shortly: nobody controls them. Call it after importing torch."""
    if _is_prepared() and not _inherited.is_set():
        _inherited.set()
        del os.environ["OMP_WAIT_POLICY"]
        os.environ.update(_SHORT_ENVIRONMENT)


def _is_prepared() -> bool:
    """Whether libgomp can be switched: nothing but `prepare_spin_control` has set how threads spin."""
    return _inherited.is_set() or all(os.environ.get(name) == value for name, value in _ENVIRONMENT.items())


def read_times(tasks: Path = _TASKS) -> ThreadTimes | None:
    """The times of all threads; None where the kernel does not count them."""
    ran = waited = 0
    try:
        for task in tasks.iterdir():
            try:
                fields = (task / "schedstat").read_text().split()
            except (FileNotFoundError, ProcessLookupError):
                # The thread has ended, before the file was opened or after.
                continue
            ran, waited = ran + int(fields[0]), waited + int(fields[1])
    except (OSError, ValueError, IndexError):
        return None
    return ThreadTimes(ran, waited) if ran else None
