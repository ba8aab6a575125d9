"""The commands for GPUs on a machine without one, with no package but torch, transformers, tokenizers and pytest."""

from __future__ import annotations

import json
from collections import Counter
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


@pytest.mark.slow
def test_a_benchmark_is_rehearsed_from_a_bare_tree(packages: Path) -> None:
    ended = run_bare(packages, "-m", "benchmarks.gpu", "--device", "cpu", "--quick")
    figures = read_figures(ended.stdout)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    measured = [figure for figure in figures if "value" in figure]
    assert all(figure["value"] > 0 and figure["card"] == "cpu" for figure in measured)
    expected = {
        "matrix products": 4, "share of the limit, forward pass": 8, "share of the limit, closed loop": 12, "texts a second": 16,
        "embeddings, engine": 1, "graphs, on to off": 3, "double buffering, on to off": 3,
    }  # fmt: skip
    counts = Counter(figure["figure"] for figure in measured)
    assert {name: counts[name] for name in expected} == expected
    assert sum(figure.get("errors", 0) for figure in measured) == 0
    skipped = {figure["figure"]: figure["skipped"] for figure in figures if "skipped" in figure}
    assert skipped["embeddings, sentence-transformers"] == "sentence_transformers is not installed"
    assert skipped["embeddings over HTTP, Infinity"] == "bentoml is not installed"


def test_a_benchmark_without_a_gpu_says_so(packages: Path) -> None:
    ended = run_bare(packages, "-m", "benchmarks.gpu", CUDA_VISIBLE_DEVICES="")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: no GPU that torch can use")
