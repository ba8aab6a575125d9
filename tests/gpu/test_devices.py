"""GPUs that fail, are several, or are none."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.gpu.engine import Engine, make_texts
from runners.core.errors import ModelLoadError
from runners.encoder.forward_selection import select_forward
from runners.modeling.devices import choose_device
from tests.gpu.conftest import Record
from tests.gpu.families import FAMILIES, Sizes
from tests.model_cases import ModelCase

_ROOT = Path(__file__).resolve().parents[2]
_SECONDS = 180


def run_python(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, in the source tree."""
    return subprocess.run(
        [sys.executable, *words], cwd=_ROOT, env={**os.environ, **variables}, capture_output=True, text=True,
        timeout=_SECONDS, check=False,
    )  # fmt: skip


@pytest.mark.usefixtures("card")
def test_a_device_assert_ends_the_engine(record: Record) -> None:
    """The server ends with it: tests/runners/hosting show what follows when `failed` is set."""
    ended = run_python("-m", "tests.gpu.broken_device")
    assert ended.stdout.strip(), ended.stderr[-2000:]
    facts = json.loads(ended.stdout.splitlines()[-1])
    record("answers around a device assert", facts["answers"], "kinds", failed=facts["failed"])
    assert facts["failed"]
    first, second, third = facts["answers"]
    assert (first, second) == ("scores", "EngineDeadError")
    assert third in ("EngineDeadError", "ModelNotReadyError")


def test_overflow_is_refused(device: torch.device) -> None:
    """Activations beyond 65,504 are infinite in float16, and no problem in float32."""

    def load(dtype: torch.dtype) -> ModelCase:
        sizes = Sizes(128, 2, 1000, 64, 1024)
        model: Any
        model, reference = (FAMILIES["bert"].make("sequence_classification", sizes) for _ in range(2))
        layer = model.base_model.encoder.layer[0]
        torch.nn.init.constant_(layer.intermediate.dense.bias, 6e4)
        torch.nn.init.constant_(layer.output.dense.weight, 0.03)
        return ModelCase(
            model.to(device, dtype), reference, "sequence_classification", frozenset({"input_ids", "attention_mask"}), 4
        )

    with pytest.raises(ModelLoadError, match="gives NaN or infinity in float16"):
        load(torch.float16)
    case = load(torch.float32)
    assert select_forward(case.probe_used, "right")


@pytest.mark.usefixtures("card")
def test_worker_k_computes_on_gpu_k(record: Record) -> None:
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip("this machine has one GPU")
    arguments: Any = SimpleNamespace(gpu=None, gpu_type=None)
    texts = make_texts([7, 64, 130], 1000)
    answers = []
    for position in range(count + 1):
        device = choose_device(arguments, position)
        assert device == torch.device("cuda", position % count)
        model: Any = FAMILIES["bert"].make("sequence_classification", Sizes.of(device)).to(device)  # type: ignore[arg-type]
        engine = Engine(model, False, 16_384)
        answers.append(np.stack(engine.ask(texts)))
        assert engine.device.failed is False
        engine.close()
    torch.cuda.set_device(0)
    for other in answers[1:]:
        np.testing.assert_allclose(other, answers[0], atol=1e-5)
    record("GPUs that answer alike", count, "GPUs")


def test_no_usable_gpu_is_said(device: torch.device) -> None:
    program = (
        "from types import SimpleNamespace\n"
        "from runners.modeling.devices import choose_device\n"
        "choose_device(SimpleNamespace(gpu=1, gpu_type=None), 0)"
    )
    ended = run_python("-c", program, CUDA_VISIBLE_DEVICES="")
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith("runners.core.errors.ArgumentsError: gpu is 1, but PyTorch can use none: ")


@pytest.mark.usefixtures("card")
def test_vllm_s_processes_are_spawned() -> None:
    missing = [name for name in ("vllm", "pydantic") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    program = (
        "import torch\n"
        "torch.ones(1, device='cuda')\n"
        "from runners.core.arguments import Arguments\n"
        "from runners.generator.vllm.installation import unsupported_reason\n"
        "assert unsupported_reason(Arguments(), ['LlamaForCausalLM'], False) is None\n"
        "from vllm.utils.system_utils import get_mp_context\n"
        "print(get_mp_context().get_start_method())"
    )
    ended = run_python("-c", program)
    assert ended.stdout.splitlines()[-1:] == ["spawn"], ended.stderr[-2000:]
