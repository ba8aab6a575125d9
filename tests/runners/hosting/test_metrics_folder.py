"""The folder of each parent process, and what it does where no folder can be made."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from pathlib import Path
from typing import IO, Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from runners.core.errors import ArgumentsError
from runners.core.metrics_lock import lock_files
from runners.hosting import metrics_folder
from runners.hosting.metrics_folder import (
    VARIABLE,
    enter_metrics_folder,
    make_metrics_folder,
    merge_ended_processes,
)

PARENT = """
import os, sys
from runners.hosting.metrics_folder import make_metrics_folder
make_metrics_folder(os.environ)
print(os.environ["PROMETHEUS_MULTIPROC_DIR"], flush=True)
sys.stdin.read()
"""
WORKER = """
import sys
from runners.core.metric_families import *
counter, gauge = CounterFamily("requests", "", ["a"]), GaugeFamily("waiting", "", ["a"])
histogram = HistogramFamily("seconds", "", bounds=(1.0, 2.0))
counter.add((sys.argv[1],), 2)
gauge.set((sys.argv[1],), 3)
with counting:
    for value in (0.5, 1.5, 9.0):
        histogram.series().observe(value)
flush()
print("written", flush=True)
sys.stdin.read()
"""
# Above the largest number of a process.
_NO_PROCESS = 2**22 + 1
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def only_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(metrics_folder, "_SHARED_MEMORY", str(tmp_path / "shared"))


def start_parent(place: Path) -> tuple[subprocess.Popen[str], Path]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], env={**os.environ, VARIABLE: str(place)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    return parent, Path(parent.stdout.readline().strip())


def test_folders_of_killed_parents_are_removed_and_others_are_not(tmp_path: Path) -> None:
    killed, left = start_parent(tmp_path)
    living, other = start_parent(tmp_path)
    killed.kill()
    killed.wait()
    assert left.is_dir()
    environment: dict[str, str] = {}
    make_metrics_folder(environment)
    own = Path(environment[VARIABLE])
    assert {*tmp_path.glob("huggingface*")} == {own, other}
    living.communicate()
    assert not other.exists(), "a parent removes its folder when it ends"


def test_servers_that_start_together_keep_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one looks for stale folders at the moment in which this one locks its own."""
    flock = fcntl.flock

    def look_first(file: IO[bytes], operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            metrics_folder._remove_stale(tmp_path)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", look_first)
    environment: dict[str, str] = {}
    make_metrics_folder(environment)
    assert Path(environment[VARIABLE]).is_dir()
    metrics_folder._remove_stale(tmp_path)
    assert Path(environment[VARIABLE]).is_dir()


def test_a_worker_has_the_folder_of_its_parent() -> None:
    environment: dict[str, str] = {}
    make_metrics_folder(environment)
    own = environment[VARIABLE]
    environment[VARIABLE] = "BentoML's"
    enter_metrics_folder(environment)
    assert environment[VARIABLE] == own


def test_the_operators_folder_wins(tmp_path: Path) -> None:
    environment = {VARIABLE: str(tmp_path / "chosen")}
    make_metrics_folder(environment)
    assert Path(environment[VARIABLE]).parent == tmp_path / "chosen"


@pytest.mark.parametrize("free", [0, 2**20])
def test_a_full_disk_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Writing to a mapped file would kill the process."""

    def measure(place: Path) -> Any:
        return Usage(2**30, 0, free if place == tmp_path else 2**30)

    monkeypatch.setattr(shutil, "disk_usage", measure)
    environment: dict[str, str] = {}
    make_metrics_folder(environment)
    assert Path(environment[VARIABLE]).parent == tmp_path / "shared"


def test_without_a_folder_one_line_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 2**20))
    with pytest.raises(ArgumentsError) as error:
        make_metrics_folder({})
    assert str(error.value) == (
        f"metrics need a folder: {tmp_path} has 1.0 MiB free, and 8 are needed; {tmp_path}/shared has 1.0 MiB free, "
        f"and 8 are needed. Set TMPDIR or {VARIABLE} to another one"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentsError, match=r"file cannot be used \(File exists\)\. Set TMPDIR"):
        make_metrics_folder({VARIABLE: str(tmp_path / "file")})


def start_worker(folder: Path, label: str) -> subprocess.Popen[str]:
    """A worker that has written its metrics, and runs."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, label], env={**os.environ, VARIABLE: str(folder)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert worker.stdout is not None
    assert worker.stdout.readline() == "written\n"
    return worker


def read(folder: Path) -> dict[tuple[str, str], float]:
    """The values of all workers, as /metrics reads them, by name and label."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return {
        (sample.name, "".join(sample.labels.values())): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def test_the_counts_of_ended_workers_stay_in_one_file_of_each_kind(tmp_path: Path) -> None:
    living = start_worker(tmp_path, "x")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for ended in range(1, 4):
        worker = start_worker(tmp_path, "xy"[ended % 2])
        counts = read(tmp_path)
        worker.kill()
        worker.wait()
        merge_ended_processes(tmp_path)
        assert {path.name for path in {*tmp_path.iterdir()} - before.keys()} == {
            "counter_ended.db", "histogram_ended.db"
        }  # fmt: skip
        assert {key: value for key, value in counts.items() if key[0] != "waiting"} == {
            key: value for key, value in read(tmp_path).items() if key[0] != "waiting"
        }
    assert read(tmp_path) == {
        ("requests_total", "x"): 4, ("requests_total", "y"): 4, ("waiting", "x"): 3, ("seconds_sum", ""): 44,
        ("seconds_count", ""): 12, ("seconds_bucket", "1.0"): 4, ("seconds_bucket", "2.0"): 8,
        ("seconds_bucket", "+Inf"): 12,
    }  # fmt: skip
    assert before == {path: path.read_bytes() for path in before}
    living.kill()
    living.wait()


def test_no_scrape_sees_counts_while_they_move(tmp_path: Path) -> None:
    """Neither twice nor not at all: a counter that falls is a restart to Prometheus."""
    worker = start_worker(tmp_path, "x")
    worker.kill()
    worker.wait()
    files = {*tmp_path.iterdir()}
    with lock_files(tmp_path, moves=False), lock_files(tmp_path, moves=False):
        merging = threading.Thread(target=merge_ended_processes, args=(tmp_path,))
        merging.start()
        merging.join(0.2)
        assert {*tmp_path.iterdir()} == files
    merging.join()
    assert not files & {*tmp_path.iterdir()}


def test_a_full_disk_leaves_the_counts_of_ended_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the parent process would end, as it writes to a mapped file. What waited in a dead worker waits no more."""
    worker = start_worker(tmp_path, "x")
    worker.kill()
    worker.wait()
    files = {*tmp_path.iterdir()}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 2**20))
    merge_ended_processes(tmp_path)
    assert files - {*tmp_path.iterdir()} == {tmp_path / f"gauge_livesum_{worker.pid}.db"}


# Empty, and with an entry whose key is no JSON.
@pytest.mark.parametrize("content", [b"", struct.pack("ii", 32, 0) + struct.pack("i4sdd", 4, b"nope", 5.0, 0.0)])
def test_a_file_that_cannot_be_read_keeps_no_other(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a worker that died while it made the file."""
    worker = start_worker(tmp_path, "x")
    worker.kill()
    worker.wait()
    ended = f"counter_{_NO_PROCESS}.db", f"histogram_{_NO_PROCESS}.db"
    for name in ended:
        (tmp_path / name).write_bytes(content)
    merge_ended_processes(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"counter_ended.db", "histogram_ended.db"}
    assert read(tmp_path)["requests_total", "x"] == 2
    assert sorted(line.partition(": ")[2].partition(":")[0] for line in caplog.messages) == sorted(ended)
