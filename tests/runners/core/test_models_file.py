from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runners.core.argument_sources import read_configuration
from runners.core.declarations import Configuration
from runners.core.errors import ArgumentsError


def read(
    folder: Path,
    text: str,
    command_line: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
    baked: dict[str, object] | None = None,
    name: str = "models.yaml",
) -> Configuration:
    path = folder / name
    path.write_text(text)
    given = {"models_file": str(path), **(command_line or {})}
    return read_configuration(given, environment or {}, baked or {})


def refuse(folder: Path, text: str, name: str = "models.yaml", **sources: Any) -> str:
    """The message without the path of the folder."""
    with pytest.raises(ArgumentsError) as error:
        read(folder, text, name=name, **sources)
    message = str(error.value).replace(f"{folder}/", "")
    assert "\n" not in message
    return message


FILE = """\
dtype: float16
max_queue_tokens: 9
models:
  - model_id: dslim/bert-base-NER
    task: token-classification
  - name: ner
    version: 2
    load: false
    model-dir: ner
    max_model_len: 2K
    labels: true
    hf_overrides: {a: [1, "x"]}
"""


def test_a_file_declares_models(tmp_path: Path) -> None:
    configuration = read(tmp_path, FILE, {"task": "fill_mask"})
    first, second = configuration.models
    assert (first.name, first.version, first.load) == ("bert-base-NER", "1", True)
    assert (first.arguments.model_id, first.arguments.task, first.arguments.dtype) == (
        "dslim/bert-base-NER", "token_classification", "float16",
    )  # fmt: skip
    assert (second.name, second.version, second.load) == ("ner", "2", False)
    assert second.origin == f"{tmp_path}/models.yaml:6"
    assert (second.arguments.model_dir, second.arguments.task) == (str(tmp_path / "ner"), "fill_mask")
    assert (second.arguments.max_length, second.arguments.labels) == (2000 + 48, True)
    assert second.arguments.engine["hf_overrides"].value == '{"a": [1, "x"]}'
    assert {each.max_queue_tokens for each in (configuration.arguments, first.arguments, second.arguments)} == {9}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:\n- name: ner\n  model_dir: x\n  tsak: x", "models.yaml:4: unknown argument 'tsak' of model 'ner': did you mean task?"),
        ("models:\n- model_dir: ner\n  dtype: flaot16", "models.yaml:3: argument dtype of model 'ner' is 'flaot16': Input should be 'auto', "),
    ],
)  # fmt: skip
def test_errors_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    assert refuse(tmp_path, text).startswith(message)
