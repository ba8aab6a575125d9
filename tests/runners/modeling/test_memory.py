"""A model that does not fit into the free memory is refused, with numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoConfig

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError
from runners.encoder.runner import EncoderRunner
from runners.generator.runner import GeneratorRunner
from runners.modeling import memory
from runners.modeling.memory import estimate_weights
from tests.conftest import GeneratorFolder, ModelFolder


def count_elements(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_weights_count_in_the_dtype_that_is_served(model_folder: ModelFolder, dtype: torch.dtype, size: int) -> None:
    folder = model_folder("bert", "fill_mask")
    config = AutoConfig.from_pretrained(folder)
    assert estimate_weights(Arguments(model_dir=str(folder)), config, dtype) == size * count_elements(folder)


def test_weights_in_several_files(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "fill_mask"), tmp_path / "model"))
    elements = count_elements(folder)
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.zeros(3)}, folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {"total_size": 4 * elements}, "weight_map": {"a": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = AutoConfig.from_pretrained(folder)
    assert estimate_weights(Arguments(model_dir=str(folder)), config, torch.float16) == 2 * elements


def test_weights_in_other_files_are_not_counted(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "fill_mask"), tmp_path / "model"))
    (folder / "model.safetensors").unlink()
    config = AutoConfig.from_pretrained(folder)
    assert estimate_weights(Arguments(model_dir=str(folder)), config, torch.float32) is None


@pytest.mark.parametrize(
    "start", [b"", b"\xff" * 8, (9).to_bytes(8, "little") + b"[" * 9, (2).to_bytes(8, "little") + b"[]"]
)
def test_a_damaged_file_counts_as_nothing(model_folder: ModelFolder, tmp_path: Path, start: bytes) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "fill_mask"), tmp_path / "model"))
    (folder / "model.safetensors").write_bytes(start)
    config = AutoConfig.from_pretrained(folder)
    assert estimate_weights(Arguments(model_dir=str(folder)), config, torch.float32) == 0


def test_a_file_that_is_larger_than_the_memory(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "fill_mask"), tmp_path / "model"))
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**36], "data_offsets": [0, 2**38]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        # The file has a hole.
        file.truncate(2**38)
    config = AutoConfig.from_pretrained(folder)
    assert estimate_weights(Arguments(model_dir=str(folder)), config, torch.float32) == 2**38


@pytest.mark.parametrize("kind", ["encoder", "generator"])
async def test_a_model_that_does_not_fit(
    kind: str, model_folder: ModelFolder, generator_folder: GeneratorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100 * 2**10)
    if kind == "encoder":
        runner: EncoderRunner | GeneratorRunner = EncoderRunner(
            Arguments(model_dir=str(model_folder("bert", "fill_mask")), model_name="ner")
        )
    else:
        arguments = Arguments(model_dir=str(generator_folder("llama")), model_name="ner", backend="huggingface")
        runner = GeneratorRunner(arguments)
    with pytest.raises(ModelLoadError) as error:
        await runner.load()
    assert str(error.value).startswith("ner does not fit into memory: it takes ")
    assert str(error.value).endswith("for a batch of 1536 tokens, and 100 KiB are free on this machine")
    assert not runner.loaded
