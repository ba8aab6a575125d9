"""A job on Ray Data, whose actors answer parts of the input on one machine or on many.

Ray passes the places of parts and what has become of them; the actors read the input and write the files of parts. So
no text is copied through Ray's object store, and a part is in one file however often Ray begins it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, chdir, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from protocol.bulk.job import Job
from protocol.bulk.part_worker import PartWorker
from protocol.bulk.parts import Part, PartSummary
from runners.core.errors import ArgumentsError, RunnerError, describe_os_error, log_failure, one_line, refer_to
from runners.core.machine import count_cores

_EXTRA = "pip install 'bentoml-huggingface-runtime[ray]'"
# While an actor reads or writes a part, it predicts others.
_PARTS_AT_ONCE = 3
# Ray begins the parts of a dead actor again, without end if they kill each actor.
_MOST_TRIES = 4
# Little more than Ray's least: it is reserved in /dev/shm, which is small in containers.
_STORE_BYTES = 80 * 10**6

# Ray's workers import modules from the folder in which Ray was started first; a user's own may have any modules.
_CODE = Path(__file__).resolve().parents[2]
_HEAD = re.compile(r"([^:/]+):(\d+)")
_REACH_SECONDS = 10.0
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

# Loads the model, for one of so many processes that share this machine's cores.
OpenWorker: TypeAlias = Callable[[int], AbstractAsyncContextManager[PartWorker]]


@dataclass(frozen=True, slots=True)
class RayWorkers:
    """The actors of a job.

    Attributes:
        job: with absolute paths, which are the same on all machines.
        open_worker: loads the model in an actor. It is pickled: its module must be installed on all machines.
        count: how many actors there are; None for one on each GPU, or on each machine if there are none.
        gpus: how many GPUs of its machine each has, if the machines have some.
    """

    job: Job
    open_worker: OpenWorker
    count: int | None
    gpus: int

    def run(self, ray: Any, parts: Sequence[Part]) -> Iterator[PartSummary]:
        """Answer the parts; what has become of each, in the order in which they end.

        Args:
            ray: the module, connected.

        Raises:
            ArgumentsError: Ray has no room for the actors.
            RunnerError: the model cannot be loaded or has died, or a machine does not see the files.
        """
        if not parts:
            return
        try:
            for row in self._plan(ray, parts).iter_rows():
                if row["failure"]:
                    raise RunnerError(row["failure"])
                yield PartSummary(row["number"], row["rows"], row["errors"])
        except ray.exceptions.RayError as error:
            raise RunnerError(f"Ray could not finish the job: {_COLOURS.sub('', one_line(error))}") from error

    def _plan(self, ray: Any, parts: Sequence[Part]) -> Any:
        from ray.data import ActorPoolStrategy

        machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
        gpus = self.gpus if any(machine.get("GPU") for machine in machines) else 0
        count = self.count or count_workers(machines, gpus)
        cores = share_cores(machines, count, gpus)
        places = ray.data.from_items([asdict(part) for part in parts], override_num_blocks=len(parts))
        return places.map_batches(
            _Actor,
            batch_size=1,
            compute=ActorPoolStrategy(
                size=min(count, len(parts)),
                max_tasks_in_flight_per_actor=_PARTS_AT_ONCE,
                max_concurrent_calls_per_actor=_PARTS_AT_ONCE,
            ),
            num_cpus=cores,
            num_gpus=gpus,
            fn_constructor_kwargs={
                "job": self.job,
                "open_worker": self.open_worker,
                "cores": cores,
                "sizes": {path: path.stat().st_size for path in (self.job.input, self.job.description_path)},
            },
        )


@contextmanager
def connect_ray() -> Iterator[Any]:
    """The module of Ray, connected to the cluster that Ray finds, or else to one of its own on this machine.

    Raises:
        ArgumentsError: Ray is not installed, does not start, or does not reach the cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray.data import DataContext
    except ImportError as error:
        raise ArgumentsError(f"--ray needs the packages of Ray Data: {_EXTRA}") from error
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        _reach(address)
        with chdir(_CODE):
            _start(ray)
    except (OSError, RuntimeError, ValueError) as error:
        found = f"the cluster at RAY_ADDRESS={address} is not reached" if address else "Ray does not start"
        raise ArgumentsError(f"--ray: {found}: {one_line(error)}") from error
    # The job has a progress bar of its own.
    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        yield ray
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Connect to the head of a cluster: Ray itself would end this process if it is not there.

    Args:
        address: HOST:PORT, or anything else that Ray takes, which is not tried.

    Raises:
        OSError: there is no answer.
    """
    if found := _HEAD.fullmatch(address):
        socket.create_connection((found[1], int(found[2])), _REACH_SECONDS).close()


def _start(ray: Any) -> None:
    own: dict[str, Any] = {"num_cpus": count_cores(), "object_store_memory": _STORE_BYTES, "include_dashboard": False}
    try:
        ray.init(**own, logging_level=logging.ERROR)
    except ValueError:
        # RAY_ADDRESS names a cluster, or `ray start` has started one here: its resources cannot be set.
        ray.init(logging_level=logging.ERROR)


def count_workers(machines: Sequence[Mapping[str, float]], gpus: int) -> int:
    """How many actors there are if nobody says it.

    Args:
        machines: the CPU and GPU of each, as Ray counts them.
        gpus: how many each actor has.
    """
    if gpus:
        return max(1, sum(int(machine.get("GPU", 0)) // gpus for machine in machines))
    return max(1, sum(machine.get("CPU", 0) >= 1 for machine in machines))


def share_cores(machines: Sequence[Mapping[str, float]], workers: int, gpus: int) -> int:
    """The most cores that each of equal actors can have.

    Args:
        machines, gpus: as for `count_workers`.

    Raises:
        ArgumentsError: there is no room for so many actors.
    """
    largest = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
    for cores in range(largest, 0, -1):
        places = [
            min([int(machine.get("CPU", 0)) // cores, *([int(machine.get("GPU", 0)) // gpus] if gpus else [])])
            for machine in machines
        ]
        if sum(places) >= workers:
            return cores
    total, total_gpus = (sum(int(machine.get(kind, 0)) for machine in machines) for kind in ("CPU", "GPU"))
    needs, has = ("a core", f"cores: {total}") if not gpus else (f"a core and GPUs: {gpus}", f"GPUs: {total_gpus}")
    raise ArgumentsError(f"--ray: each of {workers} workers needs {needs}; Ray's machines have too few ({has})")


class _Actor:
    """A process on one of the machines, which loads the model when its first part comes."""

    def __init__(self, job: Job, open_worker: OpenWorker, cores: int, sizes: Mapping[Path, int]) -> None:
        """
        Args:
            cores: how many of its machine's it has.
            sizes: the bytes of the files that it must see.
        """
        self._job = job
        self._open_worker = open_worker
        self._cores = cores
        self._sizes = sizes
        self._opened: asyncio.Future[PartWorker] | None = None

    async def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        part = Part(**{name: int(values[0]) for name, values in batch.items()})
        failure = ""
        try:
            summary = await self._run(part)
        # Ray would log an error with its stack, and begin the part again.
        except Exception as error:
            summary, failure = PartSummary(part.number, 0, 0), _describe(error)
        return {name: [value] for name, value in {**asdict(summary), "failure": failure}.items()}

    async def _run(self, part: Part) -> PartSummary:
        if self._opened is None:
            check_files(self._sizes)
        tries = self._job.folder / f"{part.number:08}.tries.tmp"
        if count_try(tries, part) > 1 and (done := self._job.find_done().get(part.number)) is not None:
            # An actor has died between the end of its work and its answer.
            return done
        if self._opened is None:
            self._opened = asyncio.ensure_future(self._open())
        # All of the first parts wait for it.
        summary = await (await asyncio.shield(self._opened)).run(part)
        tries.unlink(missing_ok=True)
        return summary

    async def _open(self) -> PartWorker:
        # Kept, because a collected context manager would close the model. Ray ends this process.
        self._context = self._open_worker(max(1, count_cores() // self._cores))
        return await self._context.__aenter__()


def check_files(sizes: Mapping[Path, int]) -> None:
    """
    Raises:
        RunnerError: this machine does not have a file of that size.
    """
    for path, size in sizes.items():
        try:
            found = path.stat().st_size
        except OSError:
            found = None
        if found != size:
            raise RunnerError(
                f"the machine {socket.gethostname()} does not see {path} as it is where the job was started: with "
                "--ray --input and --output have the same paths on all machines, on a file system that they share"
            )


def count_try(path: Path, part: Part) -> int:
    """Count in a file how often a part has begun.

    Raises:
        RunnerError: it has begun too often.
    """
    with path.open("ab") as file:
        file.write(b".")
        count = file.tell()
    if count > _MOST_TRIES:
        raise RunnerError(
            f"{_MOST_TRIES} workers have died while they loaded the model or answered the {part.rows} rows from line "
            f"{part.line} on: they may have too little memory"
        )
    return count


def _describe(error: Exception) -> str:
    if isinstance(error, RunnerError):
        return str(error)
    if isinstance(error, OSError):
        return f"{describe_os_error(error)} (on {socket.gethostname()})"
    log_failure(error, "a part cannot be answered")
    return f"an unexpected error on {socket.gethostname()}, which its log has (reference {refer_to(error)})"
