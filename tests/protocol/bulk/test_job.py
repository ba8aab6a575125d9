"""A job goes on where a break has ended it, and only the same job does."""

from __future__ import annotations

import asyncio
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from protocol.bulk.job import Job, PartWorker, run_parts
from protocol.bulk.parts import Part, PartSummary
from protocol.bulk.predictor import Predictor
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
        with PartWorker(pickle.loads(pickle.dumps(job)), Predictor(served.runner, {}, served.arguments)) as worker:
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
    (job.folder / "00000001-errors-0.jsonl.7.tmp").write_text("{")
    job.check()
    with job.open(4, MODEL):
        assert sorted(path.name for path in job.folder.iterdir()) == [
            "00000000-errors-1.jsonl", "00000005-errors-1.jsonl", "job.json", "lock",
        ]  # fmt: skip
        done = job.find_done()
        assert {number: part.errors for number, part in done.items()} == {0: 1, 5: 1}
        run_some(served, job, [part for part in parts if part.number not in done])
        job.finish()
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
    (job.folder / "job.json").write_text("{}")
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


def test_what_a_stream_leaves_is_removed(tmp_path: Path) -> None:
    job = Job(Path("-"), tmp_path / "out.jsonl", "text", {})
    job.folder.mkdir()
    (job.folder / "job.json").write_text('{"input": "-"}')
    job.name_part(0, 0).write_text("{}\n")
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
