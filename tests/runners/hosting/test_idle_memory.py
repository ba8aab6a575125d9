from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest

from runners.hosting.idle_memory import Excess, _resident, configure_heaps, release_memory
from tests.servers import ROOT
from tests.waiting import eventually

MIB = 2**20
IDLE, BUSY = False, True
# Options of mallopt.
MMAP, TRIM = -3, -1

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems give memory back themselves")


@pytest.mark.parametrize(
    ("looks", "found"),
    [
        pytest.param([(500, IDLE), (520, IDLE), (540, IDLE), (505, IDLE)], [0, 0, 1, 0], id="idle: what is over the least"),
        pytest.param([(500, IDLE), *[(540, IDLE)] * 5], [0, 1, 1, 1, 0, 0], id="idle: what does not go is in use"),
        pytest.param([(500, IDLE), (400, IDLE), (500, IDLE)], [0, 0, 1], id="the least may shrink"),
        pytest.param([(500, IDLE), *[(700, BUSY)] * 4], [0, 1, 0, 0, 0], id="busy: what is back at once is needed"),
        pytest.param([(500, IDLE), (700, BUSY), (520, BUSY), (600, BUSY)], [0, 1, 0, 1], id="busy: what a request left"),
        pytest.param([(500, IDLE), (700, BUSY), (700, BUSY), (900, BUSY)], [0, 1, 0, 1], id="busy: more than before"),
        pytest.param([(500, IDLE), (700, BUSY), (700, BUSY), (700, IDLE)], [0, 1, 0, 1], id="it idles again"),
        pytest.param([(700, BUSY), (710, BUSY), (500, IDLE), (700, IDLE)], [0, 0, 0, 1], id="busy from the start"),
        pytest.param([(500, IDLE), *[(700, BUSY)] * 12], [0, 1, *[0] * 9, 1, 0], id="always busy: again after a minute"),
    ],
)  # fmt: skip
def test_what_is_more_than_needed(looks: list[tuple[int, bool]], found: list[int]) -> None:
    excess = Excess()
    assert [excess.find(resident * MIB, is_busy) for resident, is_busy in looks] == [bool(each) for each in found]


PIECES = """
import asyncio
from runners.hosting.idle_memory import _resident, release_memory
from tests.waiting import eventually

async def main():
    giving = asyncio.create_task(release_memory(lambda: True, lambda: False, period=0.05))
    await asyncio.sleep(0.5)
    # Pieces too small for mappings of their own; the last one keeps the heap from ending before the others.
    pieces = [bytes(100_000) for _ in range(2000)]
    last = pieces.pop()
    most = _resident()
    pieces.clear()
    await eventually(lambda: _resident() <= most - 100 * 2**20, seconds=60)
    giving.cancel()

asyncio.run(main())
"""


@on_linux
def test_what_requests_leave_in_the_heap_goes_back_to_the_system() -> None:
    """In a process of its own, whose heap has no holes that the pieces would fill."""
    subprocess.run([sys.executable, "-c", PIECES], cwd=ROOT, check=True)


THREADS = """
import ctypes, sys, threading
from runners.hosting.idle_memory import _resident, configure_heaps

if sys.argv[1] == "few":
    configure_heaps()
before = _resident()
ready = threading.Barrier(16)

def allocate():
    # Beyond the end of a heap of 64 MiB there is another one; what is freed first lets the threshold of trimming grow.
    bytes(30 * 2**20)
    ready.wait()
    pieces = [bytes(100_000) for _ in range(200)]
    ready.wait()
    del pieces
    ready.wait()

threads = [threading.Thread(target=allocate, daemon=True) for _ in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ctypes.CDLL(None).malloc_trim(0)
print((_resident() - before) // 2**20)
"""


def kept_by_threads(heaps: str) -> int:
    """MiB that 16 threads of a new process leave in its heaps."""
    environment = {name: value for name, value in os.environ.items() if name != "MALLOC_ARENA_MAX"}
    run = subprocess.run([sys.executable, "-c", THREADS, heaps], env=environment, capture_output=True, check=True)
    return int(run.stdout)


@on_linux
def test_threads_keep_little_in_few_heaps() -> None:
    assert kept_by_threads("few") < 100 < kept_by_threads("many")


BATCHES = """
import ctypes, resource, sys, threading
from runners.hosting.idle_memory import configure_heaps
# PR_SET_THP_DISABLE: a huge page is one page fault.
assert ctypes.CDLL(None).prctl(41, 1, 0, 0, 0) == 0
if sys.argv[1] == "configured":
    configure_heaps()

def run_batch():
    tensors = [bytearray(size * 2**20) for size in (19, 5, 19, 5, 19)]

def count_page_faults():
    run_batch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        run_batch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=count_page_faults)
thread.start()
thread.join()
"""


@on_linux
@pytest.mark.parametrize(("heaps", "least", "most"), [("configured", 0, 100), ("default", 10_000, 10**9)])
def test_the_tensors_of_the_next_batch_cost_no_page_faults(heaps: str, least: int, most: int) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", BATCHES, heaps], env=environment, capture_output=True, check=True)
    assert least <= int(run.stdout) <= most


class Glibc:
    """A glibc whose blocks of a heap have at most so many MiB; remembers the options that were set."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.options: list[tuple[int, int]] = []

    def mallopt(self, option: int, value: int) -> int:
        if option == MMAP and value > self.most * MIB:
            return 0
        self.options.append((option, value // MIB))
        return 1


@pytest.mark.parametrize(
    ("most", "variables", "options"),
    [
        pytest.param(2**30, [], [(MMAP, 1024), (TRIM, 1024)], id="glibc from 2.35 on"),
        pytest.param(32, [], [(MMAP, 32), (TRIM, 1024)], id="older glibc"),
        pytest.param(16, [], [], id="the one threshold would fix the other"),
        pytest.param(2**30, ["MALLOC_MMAP_THRESHOLD_"], [(TRIM, 1024)], id="the operator fixed it"),
        pytest.param(2**30, ["MALLOC_TRIM_THRESHOLD_"], [(MMAP, 1024)], id="the operator's threshold of trimming"),
    ],
)
def test_thresholds_of_the_heap(
    most: int, variables: list[str], options: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    glibc = Glibc(most)
    monkeypatch.setattr("ctypes.CDLL", lambda _: glibc)
    monkeypatch.setattr(os, "environ", dict.fromkeys([*variables, "MALLOC_ARENA_MAX"], "1"))
    configure_heaps()
    assert glibc.options == options


@on_linux
async def test_what_an_error_keeps_goes_back_to_the_system() -> None:
    gc.collect()
    gc.disable()
    try:
        giving = asyncio.create_task(release_memory(lambda: True, lambda: False, period=0.05))
        await asyncio.sleep(0.5)
        most = fail_with(200 * MIB)
        await wait_below(most - 150 * MIB)
        giving.cancel()
    finally:
        gc.enable()


def fail_with(size: int) -> int:
    """Let an error and its frame keep each other and so many bytes; how many are in memory then."""
    body = bytearray(size)
    body[::4096] = b"a" * len(body[::4096])
    try:
        raise ValueError(len(body))
    except ValueError as error:
        kept = error
    assert kept.__traceback__ is not None
    return _resident()


async def wait_below(size: int) -> None:
    await eventually(lambda: _resident() <= size, seconds=60)


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def passes() -> Iterator[list[int]]:
    """The generation of each pass of the collector."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def grow() -> list[list[int]]:
    """So many objects that Python would look at all of them, again and again."""
    return [[] for _ in range(500_000)]


async def run_beside(busy: bool, longest: float, seconds: float) -> None:
    # Never ready, so that no excess of memory is looked for.
    task = asyncio.create_task(release_memory(lambda: False, lambda: busy, period=0.01, longest=longest))
    await asyncio.sleep(0)
    grow()
    await asyncio.sleep(seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_without_it_a_growing_heap_is_looked_at_as_a_whole(passes: list[int]) -> None:
    grow()
    assert 2 in passes


async def test_under_load_there_is_no_full_pass(passes: list[int]) -> None:
    await run_beside(busy=True, longest=60, seconds=0.1)
    assert 1 in passes
    assert 2 not in passes


@pytest.mark.parametrize(("busy", "longest"), [(False, 60), (True, 0.02)])
async def test_when_idle_or_after_a_while_old_garbage_is_collected(busy: bool, longest: float) -> None:
    cycle = _Cycle()
    gc.collect()
    gone = weakref.ref(cycle)
    del cycle
    await run_beside(busy, longest, seconds=0.2)
    assert gone() is None


async def test_python_decides_again_once_it_is_stopped() -> None:
    before = gc.get_threshold()
    await run_beside(busy=False, longest=60, seconds=0)
    assert gc.get_threshold() == before


async def test_nothing_is_looked_at_where_nothing_happened(passes: list[int]) -> None:
    gc.collect()
    passes.clear()
    task = asyncio.create_task(release_memory(lambda: False, lambda: False, period=0.01))
    await asyncio.sleep(0.1)
    task.cancel()
    assert passes.count(2) <= 1
