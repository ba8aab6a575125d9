from __future__ import annotations

import sys
from pathlib import Path

import pytest

from protocol.bulk.parts import Part
from protocol.bulk.ray_job import check_files, connect_ray, count_try, count_workers, share_cores
from runners.core.errors import ArgumentsError, RunnerError

_SMALL, _LARGE, _GPUS = {"CPU": 4.0}, {"CPU": 16.0}, {"CPU": 16.0, "GPU": 2.0}


@pytest.mark.parametrize(
    ("machines", "gpus", "workers"),
    [
        ([_SMALL], 0, 1),
        ([_SMALL, _LARGE, {"memory": 1.0}], 0, 2),
        ([_GPUS, _GPUS, _SMALL], 1, 4),
        ([_GPUS, _GPUS], 2, 2),
    ],
)
def test_as_many_workers_as_machines_or_gpus(machines: list[dict[str, float]], gpus: int, workers: int) -> None:
    assert count_workers(machines, gpus) == workers


@pytest.mark.parametrize(
    ("machines", "workers", "gpus", "cores"),
    [
        ([{"CPU": 2.0}], 1, 0, 2),
        ([{"CPU": 2.0}], 2, 0, 1),
        ([_SMALL, _SMALL], 2, 0, 4),
        # One on the small machine, or all on the large one.
        ([_SMALL, _LARGE], 2, 0, 8),
        ([_SMALL, _LARGE], 4, 0, 4),
        ([_GPUS, _SMALL], 2, 1, 8),
        ([_GPUS, _GPUS], 2, 2, 16),
    ],
)
def test_workers_get_equal_parts_of_the_cores(
    machines: list[dict[str, float]], workers: int, gpus: int, cores: int
) -> None:
    assert share_cores(machines, workers, gpus) == cores


@pytest.mark.parametrize(
    ("machines", "gpus", "error"),
    [
        ([{"CPU": 2.0}], 0, r"--ray: each of 3 workers needs a core; Ray's machines have too few \(cores: 2\)"),
        ([_GPUS], 1, r"--ray: each of 3 workers needs a core and GPUs: 1; Ray's machines have too few \(GPUs: 2\)"),
        ([], 0, r"cores: 0"),
    ],
)
def test_too_many_workers(machines: list[dict[str, float]], gpus: int, error: str) -> None:
    with pytest.raises(ArgumentsError, match=error):
        share_cores(machines, 3, gpus)


def test_a_machine_must_see_the_same_files(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text("12345")
    check_files({path: 5})
    for sizes in ({path: 4}, {tmp_path / "other": 5}):
        with pytest.raises(RunnerError, match=r"does not see .*: with --ray --input and --output have the same paths"):
            check_files(sizes)


def test_a_part_that_kills_workers_ends_the_job(tmp_path: Path) -> None:
    path, part = tmp_path / "tries", Part(3, 0, 10, 1024, 3073)
    assert [count_try(path, part) for _ in range(4)] == [1, 2, 3, 4]
    with pytest.raises(
        RunnerError, match="4 workers have died while they loaded the model or answered the 1024 rows from line 3073 on"
    ):
        count_try(path, part)


def test_ray_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ArgumentsError, match=r"pip install 'bentoml-huggingface-runtime\[ray\]'"), connect_ray():
        pass
