"""How much memory the kernels of linear layers take, and who sets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from runners.hosting.kernel_caches import limit_kernel_caches

ONEDNN, OLD_ONEDNN, PYTORCH = "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "DNNL_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, {ONEDNN: "256", PYTORCH: "256"}, id="both are bounded"),
        pytest.param({ONEDNN: "9"}, {ONEDNN: "9", PYTORCH: "256"}, id="the operator's kernels"),
        pytest.param({OLD_ONEDNN: "9"}, {OLD_ONEDNN: "9", PYTORCH: "256"}, id="by the older name"),
        pytest.param({PYTORCH: "9"}, {ONEDNN: "256", PYTORCH: "9"}, id="the operator's descriptions"),
    ],
)
def test_the_operator_s_capacities_win(given: dict[str, str], expected: dict[str, str]) -> None:
    environment = dict(given)
    limit_kernel_caches(environment)
    assert environment == expected


# Less tells nothing of what is kept.
_LEAST_MIB = 20
BATCHES = """
import os, sys
from pathlib import Path
from runners.hosting.kernel_caches import limit_kernel_caches

if sys.argv[1] == "limited":
    limit_kernel_caches(os.environ)

import torch
from runners.modeling.linear_kernels import OneDNNKernel

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

kernel, rows = OneDNNKernel(torch.zeros(32, 32), None), torch.zeros(1024, 32)
with torch.inference_mode():
    kernel(rows)
    before = resident()
    for count in range(1, 1024):
        kernel(rows[:count])
print((resident() - before) // 2**20)
"""


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"), reason="this PyTorch has no oneDNN")
def test_batches_of_all_sizes_take_a_bounded_amount_of_memory() -> None:
    taken = {}
    environment = {name: value for name, value in os.environ.items() if name not in {ONEDNN, OLD_ONEDNN, PYTORCH}}
    for caches in ("limited", "default"):
        run = subprocess.run(
            [sys.executable, "-c", BATCHES, caches], env=environment, capture_output=True, check=True, text=True
        )
        taken[caches] = int(run.stdout)
    if taken["default"] < _LEAST_MIB:
        pytest.skip(f"oneDNN's kernels of all sizes take {taken['default']} MiB on this CPU")
    # A quarter of the kernels are kept.
    assert taken["limited"] < 0.5 * taken["default"]
