from __future__ import annotations

import pytest

from benchmarks.machine import describe, matrix_flops, read_cpu, time_products

ZEN3 = """processor\t: 0
cpu family\t: 25
model\t\t: 1
model name\t: AMD EPYC
flags\t\t: fpu sse2 avx avx2 fma

processor\t: 1
model name\t: AMD EPYC
"""
SAPPHIRE_RAPIDS = """cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R)
flags\t\t: avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_tile
"""


@pytest.mark.parametrize(
    ("cpuinfo", "name", "instruction_sets"),
    [
        (ZEN3, "AMD EPYC (family 25 model 1)", ["avx2"]),
        (
            SAPPHIRE_RAPIDS, "Intel(R) Xeon(R) (family 6 model 143)",
            ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16"],
        ),
        ("model name\t: Neoverse-V2\nFeatures\t: fp asimd sve bf16 i8mm\n", "Neoverse-V2", ["sve", "bf16", "i8mm"]),
    ],
)  # fmt: skip
def test_cpu(cpuinfo: str, name: str, instruction_sets: list[str]) -> None:
    assert read_cpu(cpuinfo) == (name, instruction_sets)


def test_both_libraries_are_timed() -> None:
    seconds = time_products(64, 64, rounds=2)
    assert [*seconds] == ["MKL", "oneDNN"]
    assert min(seconds.values()) > 0
    assert matrix_flops(64, 64) == 2 * 1536 * 64 * 64


def test_description_names_what_figures_depend_on() -> None:
    facts = {
        "date": "2026-11-27", "machine": "2 cores, AMD EPYC (family 25 model 1)", "instruction_sets": ["avx2"],
        "matrix_gflops": {"MKL": 164.6, "oneDNN": 143.2}, "versions": "torch 2.13.0",
    }  # fmt: skip
    assert describe(facts) == (
        "2026-11-27, 2 cores, AMD EPYC (family 25 model 1), avx2; float32 matrix products of 1536 rows: "
        "MKL 165, oneDNN 143 GFLOP/s; torch 2.13.0"
    )
