"""A config.json that cannot be served ends the start with one line that says why."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from runners.core.errors import RunnerError
from tests.conftest import ModelFolder
from tests.encoders import load


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, r"config\.json does not fit the weights: classifier\.bias has the shape \[5\], and \[2\] by the config \(of that size there: .*id2label\)"),
        ({"id2label": {str(index): "x" for index in range(9)}}, r"has the shape \[5\], and \[9\] by the config \(of that size there: id2label\)"),
        ({"id2label": None, "num_labels": 3}, r"and \[3\] by the config \(of that size there: num_labels\)"),
        ({"id2label": {"none": "a", "one": "b"}}, r"id2label in .*/config\.json must be an object that names classes by their numbers.* it is {'none': 'a', 'one': 'b'}"),
        ({"id2label": ["a", "b"]}, r"id2label in .*/config\.json must be an object"),
        ({"id2label": None, "num_labels": "5"}, r"num_labels in .*/config\.json is '5', not a number of classes"),
        ({"architectures": 5}, r"architectures in the model's config\.json is 5, not a list of class names"),
        ({"max_position_embeddings": "512"}, r"/config\.json cannot be used: .*'max_position_embeddings' expected int, got str \(value: '512'\)"),
        ({"max_position_embeddings": 256}, r"position_embeddings\.weight has the shape \[512, 32\], and \[256, 32\] by the config \(of that size there: max_position_embeddings\)"),
        ({"hidden_act": "nope"}, r"no model can be made of .*/config\.json: KeyError: 'nope' \(hidden_act is 'nope'\)"),
        ({"dtype": "nope"}, r"/config\.json cannot be used: .* \(dtype is 'nope'\)"),
        ([], r"the model's config\.json is no JSON object"),
        (None, r"the model's config\.json is no JSON object"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_named(
    changes: Any, message: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "model"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes if isinstance(changes, dict) else changes))
    with pytest.raises(RunnerError, match=message) as error:
        load(model_dir=str(folder))
    assert "\n" not in str(error.value)


def test_a_config_that_is_no_json(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "model"))
    (folder / "config.json").write_text("{")
    with pytest.raises(RunnerError, match=r"/config\.json is no JSON: "):
        load(model_dir=str(folder))


@pytest.mark.parametrize("has_weights", [True, False])
def test_an_adapter_is_refused(has_weights: bool, model_folder: ModelFolder, tmp_path: Path) -> None:
    """PEFT would apply it; without PEFT `transformers` answers as if it were not there."""
    folder = Path(shutil.copytree(model_folder("bert", "text_embedding"), tmp_path / "model"))
    if not has_weights:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    with pytest.raises(RunnerError, match=r"holds an adapter_config\.json: it is a PEFT adapter of someone/base, and"):
        load(model_dir=str(folder))


def test_an_architecture_that_is_no_list_is_taken_for_one(
    model_folder: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "model"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": "BertForSequenceClassification"}))
    runner = load(model_dir=str(folder))
    assert runner.task == "sequence_classification"
    runner.close()
    assert "architectures in config.json is a name, not a list" in caplog.text


def test_names_of_other_classes_are_said(
    model_folder: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "model"))
    path = folder / "config.json"
    names = {"id2label": {"1": "a", "2": "b", "5": "c", "6": "d", "10": "e"}, "label2id": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | names))
    load(model_dir=str(folder)).close()
    assert "id2label in config.json names the classes 1, 2, 5, 6, 10 of 0 to 4" in caplog.text
