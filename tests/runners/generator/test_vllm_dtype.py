from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runners.core.arguments import Arguments
from runners.generator.vllm.dtype import choose_dtype
from tests.hub import Hub

AVX2, AVX512, AMX, ARM = "fma avx2", "avx2 avx512f avx512_bf16", "avx2 avx512f amx_bf16", ""


@pytest.mark.parametrize(
    ("flags", "given", "config", "memory", "chosen"),
    [
        (AVX2, None, {"dtype": "bfloat16"}, 4000, "float32"),
        (AVX2, "auto", {"torch_dtype": "bfloat16"}, 4000, "float32"),
        # Float32 takes 2,000 bytes, and the cache the same.
        (AVX2, None, {"dtype": "bfloat16"}, 3999, None),
        (AVX2, None, {"dtype": "float16"}, 4000, None),
        (AVX2, "auto", {}, 4000, "auto"),
        (AVX2, "bfloat16", {"dtype": "bfloat16"}, 4000, "bfloat16"),
        (AVX512, "auto", {"dtype": "bfloat16"}, 4000, "auto"),
        (AMX, None, {"dtype": "bfloat16"}, 4000, None),
        (ARM, None, {"dtype": "bfloat16"}, 4000, None),
    ],
)
def test_float32_where_the_cpu_would_emulate_bfloat16(
    flags: str, given: str | None, config: dict[str, str], memory: int, chosen: str | None, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n" if flags else "Features\t: asimd bf16\n")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    arguments = Arguments.model_validate({"model_dir": str(tmp_path), "dtype": given})
    assert choose_dtype(arguments, cpuinfo, memory) == chosen


@pytest.mark.parametrize("config", [None, "[]", "{", '{"dtype": "bfloat16"}'])
def test_a_folder_that_says_nothing(config: str | None, tmp_path: Path) -> None:
    """No config, a wrong one, or no weights: vLLM says what is wrong."""
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert choose_dtype(Arguments.model_validate({"model_dir": str(tmp_path)})) is None


@pytest.mark.parametrize(("dtype", "chosen"), [("bfloat16", "float32"), ("float16", None)])
def test_a_model_on_the_hub(dtype: str, chosen: str | None, tmp_path: Path) -> None:
    """In a process of its own, because huggingface_hub reads its environment when it is imported."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {AVX2}\n")
    program = (
        "from pathlib import Path\n"
        "from runners.core.arguments import Arguments\n"
        "from runners.generator.vllm.dtype import choose_dtype\n"
        "arguments = Arguments.model_validate({'model_id': 'owner/model'})\n"
        f"print(choose_dtype(arguments, Path({str(cpuinfo)!r}), 4000), choose_dtype(arguments, Path({str(cpuinfo)!r}), 3999))"
    )
    files = {"config.json": json.dumps({"dtype": dtype}).encode(), "model.safetensors": bytes(1000)}
    with Hub(files) as hub:
        environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
        said = subprocess.run([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        assert [name for name, _ in hub.asked] == ["config.json"]
    assert said.stdout.split() == [str(chosen), "None"]


def test_a_model_on_the_hub_that_cannot_be_asked(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"flags\t\t: {AVX2}\n")
    assert choose_dtype(Arguments.model_validate({"model_id": "owner/unknown"}), cpuinfo, 4000) is None
