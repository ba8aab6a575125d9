"""A model's files may be overwritten, cut or deleted under the server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from runners.core.predictions import AnswerForm, Options, TextInput
from runners.encoder.runner import EncoderRunner
from runners.modeling.weights import copy_mapped_weights
from tests.conftest import ModelFolder
from tests.encoders import load


@pytest.mark.parametrize("family", ["bert", "albert"])
@pytest.mark.parametrize("damage", ["overwritten", "cut"])
async def test_answers_stay_when_the_files_change(
    family: str, damage: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder(family, "sequence_classification"), folder)
    runner = load(model_dir=str(folder))
    before = await answer(runner)
    for path in folder.rglob("*"):
        with path.open("r+b") as file:
            if damage == "cut":
                file.truncate(1)
            else:
                file.write(b"\xff" * path.stat().st_size)
    assert await answer(runner) == before
    assert str(folder) not in mapped_files()
    runner.close()


def mapped_files() -> str:
    """The files that this process maps, as Linux lists them."""
    return Path("/proc/self/maps").read_text()


async def answer(runner: EncoderRunner) -> list[list[float]]:
    texts = [TextInput("a text"), TextInput("another one")]
    predictions = await runner.infer(texts, Options(AnswerForm.RAW_LOGITS))
    return [prediction.main.values.tolist() for prediction in predictions]  # type: ignore[union-attr]


def test_tied_weights_stay_tied_when_they_are_copied(tmp_path: Path) -> None:
    layer = nn.Linear(64, 64, bias=False)
    save_file({"weight": layer.weight.detach()}, tmp_path / "weights.safetensors")
    mapped = load_file(tmp_path / "weights.safetensors")["weight"]
    embedding, decoder, other = nn.Embedding(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
    tied = nn.ModuleList([embedding, decoder, other])
    embedding.weight = nn.Parameter(mapped)
    # Tied by its data alone, as `torch` leaves it where two parameters are loaded from one tensor.
    decoder.weight = nn.Parameter(mapped)
    own = other.weight.data_ptr()
    assert copy_mapped_weights(tied) == 64 * 64 * 4, "once, although two have it"
    assert embedding.weight.data_ptr() == decoder.weight.data_ptr() != mapped.data_ptr()
    assert other.weight.data_ptr() == own, "what is no file's stays where it is"
    assert torch.equal(decoder.weight, layer.weight)
    assert copy_mapped_weights(tied) == 0
