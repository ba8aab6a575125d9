"""`python -m tests.gpu` on a machine that has no GPU, and no package but torch, transformers, tokenizers and pytest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.bare import link_packages, run_bare
from tests.gpu.conftest import NO_GPU


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_packages(tmp_path_factory.mktemp("packages"))


def read_figures(printed: str) -> list[dict[str, Any]]:
    """The JSON lines."""
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


def test_bare_packages_are_few(packages: Path) -> None:
    names = "bentoml", "msgspec", "prometheus_client", "pydantic", "pytest_asyncio", "starlette", "vllm", "xdist"
    tried = [f"importlib.util.find_spec({name!r})" for name in names]
    ended = run_bare(packages, "-c", f"import importlib.util\nprint({', '.join(tried)})")
    assert ended.stdout.split() == ["None"] * len(names)


@pytest.mark.slow
def test_a_rehearsal_runs_from_a_bare_tree(packages: Path) -> None:
    ended = run_bare(packages, "-m", "tests.gpu", "--device", "cpu", "-k", "distilbert and embedding")
    *figures, summary = read_figures(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {figure["dtype"] for figure in figures} == {"float32", "float16", "bfloat16"}
    assert all(figure["family"] == "distilbert" and 0 < figure["value"] < 0.1 for figure in figures)
    assert summary == {"figure": "tests", "value": 3, "unit": "passed", "failed": [], "skipped": {}}


@pytest.mark.slow
def test_without_a_gpu_each_test_is_skipped_by_name(packages: Path) -> None:
    ended = run_bare(packages, "-m", "tests.gpu", "-k", "distilbert", CUDA_VISIBLE_DEVICES="")
    [summary] = read_figures(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert summary["value"] == 0
    assert [*summary["skipped"]] == [NO_GPU]
