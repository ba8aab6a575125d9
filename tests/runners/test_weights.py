"""A model's files may be overwritten, cut or deleted under the server."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from runners.encoder.runner import EncoderRunner
from runners.inference import Options, Output, TextInput
from tests.conftest import ModelFolder
from tests.encoders import load


@pytest.mark.parametrize("family", ["bert", "albert"])
@pytest.mark.parametrize("damage", ["overwritten", "cut"])
def test_answers_stay_when_the_files_change(
    family: str, damage: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder(family, "sequence_classification"), folder)
    runner = load(model_dir=str(folder))
    before = answer(runner)
    for path in folder.rglob("*"):
        with path.open("r+b") as file:
            if damage == "cut":
                file.truncate(1)
            else:
                file.write(b"\xff" * path.stat().st_size)
    assert answer(runner) == before
    assert str(folder) not in Path("/proc/self/maps").read_text()
    runner.close()


def answer(runner: EncoderRunner) -> list[list[float]]:
    texts = [TextInput("a text"), TextInput("another one")]
    predictions = asyncio.run(runner.infer(texts, Options(Output.RAW_LOGITS)))
    return [prediction.output.values.tolist() for prediction in predictions]  # type: ignore[union-attr]
