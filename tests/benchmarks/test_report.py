from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import summary
from benchmarks.report import make_table, ratio_to_best


def side(*speeds: float, **more: Any) -> list[dict[str, Any]]:
    return [{"texts_a_second": speed, **more} for speed in speeds]


def load(*speeds: float) -> list[dict[str, Any]]:
    return side(*speeds, p50=10.0, p95=20.0, p99=30.4, errors=0, cpu=41.26)


SIDES = {
    "server": load(26.0, 27.0, 28.0),
    "pipeline": load(13.0, 15.0, 14.0),
    "onnxruntime": load(20.0, 20.0, 20.0),
    "openvino": load(30.0, 9.0, 9.0),
    "model alone": side(26.0, 30.0, 28.0, of_limit=0.8),
}
RESULTS = {
    "date": "2026-11-27", "machine": "2 cores, AMD EPYC (family 25 model 1)", "instruction_sets": ["avx2"],
    "matrix_gflops": {"MKL": 165.0, "oneDNN": 143.0}, "versions": "torch 2.13.0",
    "tasks": {"sequence_classification": [{"callers": 32, "texts_a_request": 1, "sides": SIDES}]},
}  # fmt: skip
TABLE = """\
2026-11-27, 2 cores, AMD EPYC (family 25 model 1), avx2; float32 matrix products of 1536 rows: MKL 165, oneDNN 143 GFLOP/s; torch 2.13.0

### sequence_classification

| server, callers x texts a request | / FastAPI + pipeline | / FastAPI + ONNX Runtime | / FastAPI + OpenVINO | / model alone | / the best reference | model alone / matrix limit |
|---|--:|--:|--:|--:|--:|--:|
| 32 x 1 | 2.00 (1.80-2.00) | 1.35 (1.30-1.40) | 3.00 (0.87-3.11) | 1.00 (0.90-1.00) | 1.35 (1.30-1.40) | 0.80 (0.80-0.80) |
"""


def test_table_has_the_median_ratio_of_the_rounds_and_its_range() -> None:
    table = make_table(RESULTS)
    assert table.startswith(TABLE)
    assert "| FastAPI + OpenVINO | 32 x 1 | 9.0 | 10 | 20 | 30 | 0 | 41.3 |\n" in table
    assert "| model alone | 32 x 1 | 28.0 |  |  |  |  |  |\n" in table


def test_the_best_reference_is_the_fastest_in_most_rounds() -> None:
    assert ratio_to_best(SIDES).pairs == pytest.approx((1.3, 1.35, 1.4))


def test_bfloat16_is_compared_with_float32_and_with_its_own_ceiling() -> None:
    sides = {"server": load(50.0), "server bf16": load(90.0), "model alone bf16": side(100.0, of_limit=0.7)}
    tasks = {"fill_mask": [{"callers": 32, "texts_a_request": 1, "sides": sides}]}
    lines = make_table({**RESULTS, "tasks": tasks}).splitlines()
    assert lines[4] == "| server, callers x texts a request | bf16 / float32 | bf16 / model alone bf16 |"
    assert lines[6] == "| 32 x 1 | 1.80 | 0.90 |"


def test_another_server_has_speeds_and_no_ratios() -> None:
    tasks = {"bert": [{"callers": 1, "texts_a_request": 32, "sides": {"server": load(5.0)}}]}
    lines = make_table({**RESULTS, "tasks": tasks}).splitlines()
    assert lines[-1] == "| server | 1 x 32 | 5.0 | 10 | 20 | 30 | 0 | 41.3 |"
    assert not any("/ FastAPI" in line for line in lines)


def test_summary_replaces_the_figures_of_a_page(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "performance.md"
    results.write_text(json.dumps(RESULTS))
    page.write_text(f"# Performance\n\n{summary.MARK}\nold figures\n")
    summary.write_summary(results, page)
    text = page.read_text()
    assert text.startswith(f"# Performance\n\n{summary.MARK}\n![")
    assert "old figures" not in text
    assert "1.35 (1.30-1.40)" in text
    assert 1_000 < (tmp_path / "performance.svg").stat().st_size < 60_000


def test_a_page_without_its_mark_is_not_overwritten(tmp_path: Path) -> None:
    results, page = tmp_path / "results.json", tmp_path / "performance.md"
    results.write_text(json.dumps(RESULTS))
    page.write_text("# Performance\n")
    with pytest.raises(ValueError, match="has no line"):
        summary.write_summary(results, page)
