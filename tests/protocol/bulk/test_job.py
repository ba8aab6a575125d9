"""A job goes on where a break has ended it, and only the same job does."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from protocol.bulk.job import Job
from protocol.bulk.part_worker import PartWorker, run_parts
from protocol.bulk.parts import Part, PartSummary
from protocol.bulk.text_answerer import TextAnswerer
from runners.core.errors import InputError
from tests.protocol.conftest import Run
from tests.served import Served

ROWS = 25
MODEL = {"model": "sentiment", "model_files": "1"}


@pytest.fixture
def served(run: Run) -> Served:
    return run("fill_mask")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    texts = ["a [MASK]" if row % 10 else "no mask" for row in range(ROWS)]
    (tmp_path / "in.jsonl").write_text(
        "".join(json.dumps({"id": row, "text": text}) + "\n" for row, text in enumerate(texts))
    )
    return Job(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "text", {})


def run_some(served: Served, job: Job, parts: list[Part]) -> list[PartSummary]:
    """Run parts of a job as a process of its own would."""

    async def run_all() -> list[PartSummary]:
        done: list[PartSummary] = []
        with PartWorker(pickle.loads(pickle.dumps(job)), TextAnswerer(served.runner, {}, served.arguments)) as worker:
            await run_parts(parts, worker, done.append)
        return done

    return asyncio.run(run_all())


def test_a_job_in_two_processes_with_a_break(served: Served, job: Job) -> None:
    job.check()
    parts = job.plan(4)
    assert [part.rows for part in parts] == [4, 4, 4, 4, 4, 4, 1]
    with job.open(4, MODEL):
        assert run_some(served, job, [parts[0], parts[5]]) == [PartSummary(0, 4, 1), PartSummary(5, 4, 1)]
        assert not job.output.exists()
    # A process that was killed while it wrote.
    (job.folder / "00000001.jsonl.7.tmp").write_text("{")
    job.part_path(2).write_text("{}\n")
    job.check()
    with job.open(4, MODEL):
        assert sorted(path.name for path in job.folder.iterdir()) == [
            "00000000.json", "00000000.jsonl", "00000005.json", "00000005.jsonl", "job.json", "lock",
        ]  # fmt: skip
        done = job.find_done()
        assert done == {0: PartSummary(0, 4, 1), 5: PartSummary(5, 4, 1)}
        run_some(served, job, [part for part in parts if part.number not in done])
        job.finish(len(parts))
    assert not job.folder.exists()
    rows = [json.loads(line) for line in job.output.read_text().splitlines()]
    assert [row["id"] for row in rows] == [*range(ROWS)]
    assert [row["id"] for row in rows if "error" in row] == [0, 10, 20]
    with pytest.raises(InputError, match=r"out.jsonl exists already: choose another --output, or move it away"):
        job.check()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"part_rows": 5}, "part_rows was 4, is 5"),
        ({"model": {"model": "other", "model_files": "1"}}, 'model was "sentiment", is "other"'),
        ({"model": {**MODEL, "top_k": 3}}, "top_k was null, is 3"),
        ({"text_column": "body"}, 'text_column was "text", is "body"'),
        ({"parameters": {"top_k": 3}}, 'parameters was {}, is {"top_k": 3}'),
        ({"content": '{"text": "another [MASK]"}\n'}, "input_bytes was"),
    ],
)
def test_another_job_is_refused(change: dict[str, Any], error: str, served: Served, job: Job) -> None:
    with job.open(4, MODEL):
        run_some(served, job, [job.plan(4)[0]])
    if (content := change.get("content")) is not None:
        job.input.write_text(content)
    other = Job(job.input, job.output, change.get("text_column", "text"), change.get("parameters", {}))
    with pytest.raises(InputError) as raised, other.open(change.get("part_rows", 4), change.get("model", MODEL)):
        pass
    assert f"out.jsonl.parts has parts of another job: {error}" in str(raised.value)
    assert str(raised.value).endswith(
        f"Set them as they were to go on with it, choose another --output, or delete {job.folder} to begin again"
    )
    assert len(job.find_done()) == 1


def test_a_job_without_parts_leaves_nothing(job: Job) -> None:
    with pytest.raises(KeyError), job.open(4, MODEL):
        raise KeyError
    assert not job.folder.exists()
    # One that was killed may leave the folder, which says nothing of another job.
    job.folder.mkdir()
    (job.folder / "job.json").write_text('{"input": "another"}')
    with job.open(4, MODEL):
        pass


def test_one_process_at_a_time(job: Job) -> None:
    with (
        job.open(4, MODEL),
        pytest.raises(InputError, match=r"another process writes .*out.jsonl already"),
        job.open(4, MODEL),
    ):
        pass


def test_a_folder_of_others_is_left_alone(job: Job) -> None:
    job.folder.mkdir()
    (job.folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"is no folder of this command: it has thesis.txt"), job.open(4, MODEL):
        pass
    assert (job.folder / "thesis.txt").exists()


def test_a_file_in_place_of_the_folder(job: Job) -> None:
    job.folder.touch()
    with (
        pytest.raises(InputError, match=r"out.jsonl.parts must be the folder of the parts, and is none"),
        job.open(4, MODEL),
    ):
        pass


def test_what_a_stream_leaves_is_removed(tmp_path: Path) -> None:
    job = Job(Path("-"), tmp_path / "out.jsonl", "text", {})
    job.folder.mkdir()
    (job.folder / "job.json").write_text('{"input": "-"}')
    job.part_path(0).write_text("{}\n")
    with job.open(4, MODEL):
        assert not job.find_done()
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("nowhere/out.jsonl", "there is no folder"),
        ("out.txt", "its name must end with .jsonl, .ndjson, .csv, .parquet"),
    ],
)
def test_a_wrong_output(output: str, error: str, job: Job) -> None:
    with pytest.raises(InputError, match=error):
        Job(
            job.input, job.output.with_name(output) if "/" not in output else job.output.parent / output, "text", {}
        ).check()


def replace_input(job: Job) -> None:
    """As long as before, and of as many rows."""
    job.input.write_text(job.input.read_text().replace("film", "play").replace("mask", "MASK"))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (replace_input, r"in.jsonl has changed during the job: begin again"),
        (lambda job: job.part_path(3).unlink(), r"out.jsonl.parts has lost 00000003.jsonl: the same command writes it"),
        (lambda job: job.output.write_text("mine"), r"out.jsonl exists already: choose another --output, or move it"),
        (lambda job: job.output.symlink_to("nowhere"), r"out.jsonl exists already"),
    ],
)
def test_nothing_is_joined_after_a_change_during_the_job(
    change: Callable[[Job], None], error: str, served: Served, job: Job
) -> None:
    parts = job.plan(4)
    with job.open(4, MODEL):
        run_some(served, job, [*parts])
        change(job)
        with pytest.raises(InputError, match=error):
            job.finish(len(parts))
    assert not job.output.exists() or job.output.read_text() == "mine"
    assert len(job.find_done()) >= 6


def test_a_part_of_other_rows_ends_the_job(served: Served, job: Job) -> None:
    parts = job.plan(4)
    first, others = job.input.read_text().split("\n", 1)
    job.input.write_text(f"{first}\n{others.replace(chr(10), ' ')}")
    with pytest.raises(ExceptionGroup) as raised, job.open(4, MODEL):
        run_some(served, job, [*parts])
    assert str(raised.value.exceptions[0]).startswith(f"{job.input} has changed during the job: begin again")


def test_a_folder_that_cannot_be_removed_at_the_end(served: Served, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS keeps the open file of the lock in it: the output is whole all the same."""

    def refuse(path: object, **_: object) -> None:
        raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(path))

    parts = job.plan(4)
    with job.open(4, MODEL):
        run_some(served, job, [*parts])
        monkeypatch.setattr("os.rmdir", refuse)
        job.finish(len(parts))
    monkeypatch.undo()
    assert len(job.output.read_text().splitlines()) == ROWS
    assert [*job.folder.iterdir()] == []


def test_a_part_that_is_written_again_is_in_one_file(served: Served, job: Job) -> None:
    """A worker of Ray that was taken for dead may do so."""
    parts = job.plan(4)
    with job.open(4, MODEL):
        run_some(served, job, [*parts])
        job.part_path(1).write_text('{"id": "old"}\n')
        run_some(served, job, [parts[1]])
        job.finish(len(parts))
    assert [json.loads(line)["id"] for line in job.output.read_text().splitlines()] == [*range(ROWS)]


@pytest.mark.parametrize("content", ["[]", "{}", "{", "5"])
def test_a_damaged_description(content: str, job: Job) -> None:
    job.folder.mkdir()
    job.description_path.write_text(content)
    with pytest.raises(InputError, match=r"job.json is damaged: delete .*out.jsonl.parts to begin again"):
        job.open(4, MODEL).__enter__()


def test_a_job_that_was_killed_when_it_was_done(job: Job) -> None:
    job.folder.mkdir()
    (job.folder / "joined.tmp").write_text("{}\n")
    os.link(job.folder / "joined.tmp", job.output)
    with pytest.raises(InputError, match="exists already"):
        job.check()
    assert not job.folder.exists()


def test_an_output_of_others_keeps_the_parts(job: Job) -> None:
    job.folder.mkdir()
    (job.folder / "joined.tmp").write_text("{}\n")
    job.output.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        job.check()
    assert job.folder.exists()


def test_it_is_killed_while_parts_are_joined(job: Job) -> None:
    parts = 2000
    lines = [json.dumps({"id": number, "text": "a" * 50_000}) + "\n" for number in range(parts)]
    with job.open(4, MODEL):
        for number, line in enumerate(lines):
            job.part_path(number).write_text(line)
            job.note_done(PartSummary(number, 1, 0))
    program = f"import pickle; pickle.loads({pickle.dumps(job)!r}).finish({parts})"
    with subprocess.Popen([sys.executable, "-c", program]) as process:
        while not (job.folder / "joined.tmp").exists():
            assert process.poll() is None
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not job.output.exists()
    with job.open(4, MODEL):
        assert len(job.find_done()) == parts
        job.finish(parts)
    assert job.output.read_text() == "".join(lines)
    assert not job.folder.exists()


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_full_disk_is_named(ending: str, served: Served, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(job.input, job.output.with_suffix(f".{ending}"), "text", {})
    parts = job.plan(4)
    with job.open(4, MODEL):
        # Each write to it fails so.
        monkeypatch.setattr("protocol.bulk.durable_file.uuid4", lambda: UUID(int=7))
        path = job.part_path(0)
        path.with_name(f"{path.name}.{UUID(int=7).hex}.tmp").symlink_to("/dev/full")
        with pytest.raises(ExceptionGroup) as raised:
            run_some(served, job, [parts[0]])
    error = raised.value.exceptions[0]
    assert isinstance(error, OSError)
    assert error.filename == str(job.part_path(0))
