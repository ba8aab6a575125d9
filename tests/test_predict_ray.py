"""`predict --ray` on a real Ray: a cluster of two machines on this one, each of one core."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runners.core.machine import count_cores
from tests.demo_models import FOLDER, make_demo_models
from tests.servers import ROOT, free_port

pytestmark = pytest.mark.slow
TEXTS = ("I like it", "I do not like it", "Wolfgang lives in Berlin", "So it is")
# Of several parts.
MANY_ROWS = 3_200
_SMALL_STORE = "--object-store-memory=80000000"


class Cluster:
    """The head of a cluster and a second machine, which are processes of this machine."""

    def __init__(self, home: Path) -> None:
        self.environment = {
            "HF_HUB_OFFLINE": "1",
            "RAY_TMPDIR": str(home),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._home = home
        self._port = free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        self._start("--head", f"--port={self._port}", "--include-dashboard=false")
        self._start(f"--address=127.0.0.1:{self._port}")
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self._port}"

    def _start(self, *words: str) -> None:
        log = self._home / f"start-{len(self._processes)}.log"
        command = [str(Path(sys.executable).parent / "ray"), "start", *words, "--num-cpus=1", _SMALL_STORE, "--block"]
        with log.open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **self.environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        wait_until(lambda: "block forever" in log.read_text(), log)

    def find_actors(self) -> list[psutil.Process]:
        """The processes that have the model, or load it."""
        found = []
        for process in self._processes:
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "MapWorker" in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def stop(self) -> None:
        children = [each for one in self._processes for each in psutil.Process(one.pid).children(recursive=True)]
        for process in self._processes:
            process.kill()
            process.wait()
        for child in children:
            with contextlib.suppress(psutil.Error):
                child.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    make_demo_models(("sentiment", "token_classification", "minilm"))
    # The path of a socket has 107 bytes at most, of which Ray takes 60.
    home = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    started = Cluster(home)
    try:
        started.start()
        yield started
    finally:
        started.stop()
        shutil.rmtree(home, ignore_errors=True)


def wait_until(is_so: Callable[[], bool], what: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def command(model: str, source: Path, output: Path, *words: str) -> list[str]:
    paths = [f"--model_dir={FOLDER / model}", f"--input={source}", f"--output={output}"]
    return [sys.executable, "launch.py", "predict", *paths, "--dtype=float32", *words]


def run(words: Sequence[str], environment: Mapping[str, str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True)


@contextlib.contextmanager
def start(words: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment}, stderr=output)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def write_texts(path: Path, count: int) -> Path:
    """Each row differs by its number."""
    path.write_text("".join(json.dumps({"id": row, "text": TEXTS[row % len(TEXTS)]}) + "\n" for row in range(count)))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def has_part(output: Path) -> bool:
    return any(output.with_name(f"{output.name}.parts").glob("0*.json"))


@pytest.mark.parametrize("model", ["sentiment", "token_classification"])
def test_classes_are_those_of_one_process(model: str, cluster: Cluster, tmp_path: Path) -> None:
    source, alone, together = write_texts(tmp_path / "in.jsonl", 1100), tmp_path / "alone.jsonl", tmp_path / "ray.jsonl"
    assert run(command(model, source, alone), cluster.environment).returncode == 0
    done = run(command(model, source, together, "--ray"), cluster.environment)
    assert done.returncode == 0, done.stderr
    assert "1100 rows in " in done.stderr
    assert together.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_that_the_answers_have(ending: str, cluster: Cluster, tmp_path: Path) -> None:
    """Only the options of a loaded model tell that the answers have it."""
    source, output = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    columns = {"text": ["Sarah"], "offset_mapping": ["mine"]}
    if ending == "csv":
        source.write_text("text,offset_mapping\nSarah,mine\n")
    else:
        pq.write_table(pa.table(columns), source)
    options = ['--parameters={"return_offsets_mapping": true}', "--ray"]
    done = run(command("token_classification", source, output, *options), cluster.environment)
    assert done.returncode == 1
    assert "the input has a column offset_mapping already, which the output would have" in done.stderr
    assert not output.exists()


def test_a_folder_with_modules_of_the_same_names(cluster: Cluster, tmp_path: Path) -> None:
    """Workers import none of the modules in the folder in which the command runs."""
    source, output = write_texts(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    for name in ("predict", "runners", "protocol"):
        (tmp_path / f"{name}.py").write_text("raise ValueError('this is somebody else')")
    words = command("sentiment", source, output, "--ray", "--workers=1")
    words[1] = str(ROOT / "launch.py")
    done = run(words, cluster.environment, tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read(output)) == 4


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    source, output, address = write_texts(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl", f"127.0.0.1:{free_port()}"
    done = run(command("sentiment", source, output, "--ray"), {"HF_HUB_OFFLINE": "1", "RAY_ADDRESS": address})
    assert done.returncode == 1
    assert f"--ray: the cluster at RAY_ADDRESS={address} is not reached" in done.stderr
    assert not output.exists()


def test_numbers_are_those_of_one_process(cluster: Cluster, tmp_path: Path) -> None:
    """Up to the last bits, which follow from the number of cores."""
    source, alone, together = write_texts(tmp_path / "in.jsonl", 40), tmp_path / "alone.jsonl", tmp_path / "ray.jsonl"
    assert run(command("minilm", source, alone), cluster.environment).returncode == 0
    done = run(command("minilm", source, together, "--ray", "--workers=1"), cluster.environment)
    assert done.returncode == 0, done.stderr
    for one, other in zip(read(alone), read(together), strict=True):
        assert one.pop("prediction") == pytest.approx(other.pop("prediction"), abs=1e-6)
        assert one == other


def test_a_killed_worker_costs_no_row_and_doubles_none(cluster: Cluster, tmp_path: Path) -> None:
    source, output = write_texts(tmp_path / "in.jsonl", MANY_ROWS), tmp_path / "out.jsonl"
    log = tmp_path / "log"
    with start(command("sentiment", source, output, "--ray"), cluster.environment, log) as process:
        wait_until(lambda: has_part(output), log)
        actors = cluster.find_actors()
        for actor in actors:
            actor.kill()
        assert actors
        assert not output.exists()
        assert process.wait(120) == 0, log.read_text()
    assert [row["id"] for row in read(output)] == list(range(MANY_ROWS))
    assert all("prediction" in row for row in read(output))


def test_a_job_that_was_ended_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    source, output = write_texts(tmp_path / "in.jsonl", MANY_ROWS), tmp_path / "out.jsonl"
    words, log = command("sentiment", source, output, "--ray"), tmp_path / "log"
    with start(words, cluster.environment, log) as process:
        wait_until(lambda: has_part(output), log)
        assert cluster.find_actors()
        process.kill()
    # The workers end with the command.
    wait_until(lambda: not cluster.find_actors(), "workers")
    with start(words, cluster.environment, log) as process:
        wait_until(lambda: bool(cluster.find_actors()), log)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert "SIGINT has ended the work; the same command goes on where it has ended" in log.read_text()
    wait_until(lambda: not cluster.find_actors(), "workers")
    assert not output.exists()
    alone = [word for word in words if word != "--ray"]
    done = run(alone, cluster.environment)
    assert done.returncode == 0, done.stderr
    assert "of which are answered already" in done.stderr
    assert [row["id"] for row in read(output)] == list(range(MANY_ROWS))


def test_without_a_cluster_ray_starts_on_this_machine(cluster: Cluster, tmp_path: Path) -> None:
    source, output, home = write_texts(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl", Path(tempfile.mkdtemp("ray"))
    environment = {**cluster.environment, "RAY_ADDRESS": "", "RAY_TMPDIR": str(home)}
    done = run(command("sentiment", source, output, "--ray", f"--workers={count_cores()}"), environment)
    shutil.rmtree(home)
    assert done.returncode == 0, done.stderr
    assert len(read(output)) == 4


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--workers=3"], "--ray: each of 3 workers needs a core; Ray's machines have too few (cores: 2)"),
        (['--parameters={"top_k": "many"}'], "top_k"),
    ],
)
def test_errors_that_the_cluster_finds(words: list[str], error: str, cluster: Cluster, tmp_path: Path) -> None:
    source, output = write_texts(tmp_path / "in.jsonl", 4), tmp_path / "out.jsonl"
    done = run(command("sentiment", source, output, "--ray", *words), cluster.environment)
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--ray", "a text"], "--ray needs files: --input=FILE and --output=FILE"),
        (["--ray", "--input={source}"], "--ray needs files: --input=FILE and --output=FILE"),
        (["--ray", "--input=-", "--output=out.jsonl"], "--ray needs files: --input=FILE and --output=FILE"),
        (["--workers=2", "a text"], "--workers=2 is a number of Ray's workers: it needs --ray"),
        (["--ray", "--workers=0", "a text"], "workers"),
    ],
)
def test_errors_of_the_command_line(words: list[str], error: str, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "in.jsonl", 4)
    model = f"--model_dir={FOLDER / 'sentiment'}"
    words = [word.format(source=source) for word in words]
    done = run([sys.executable, "launch.py", "predict", model, *words], {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 1
    assert error in done.stderr
