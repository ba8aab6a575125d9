"""A job goes on with what decides its answers unchanged, and nothing secret is in its description."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.bulk.model_description import describe_job_model
from runners.core.arguments import Arguments
from runners.core.declarations import ModelDeclaration
from runners.core.engine_arguments import EngineArgument


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def describe(folder: Path, version: str = "1", **arguments: Any) -> dict[str, Any]:
    return describe_job_model(ModelDeclaration(Arguments(model_dir=str(folder), **arguments), version))


def list_changes(folder: Path, **arguments: Any) -> list[str]:
    """What such arguments change."""
    before, after = describe(folder), describe(folder, **arguments)
    return [name for name in before if before[name] != after[name]]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"version": "2"}, ["model_version"]),
        ({"dtype": "float16"}, ["dtype"]),
        ({"model_revision": "0f"}, ["model_revision"]),
        ({"max_length": 12}, ["max_length"]),
        ({"top_k": 3}, ["top_k"]),
        ({"matmul_precision": "medium"}, ["matmul_precision"]),
        ({"max_text_characters": 10}, ["max_text_characters"]),
        ({"predictor_host": "gpu:8080"}, ["predictor_host"]),
        ({"engine": {"seed": EngineArgument("1", "the command line")}}, ["vllm_arguments"]),
        # These decide no answer.
        ({"model_name": "other"}, []),
        ({"api_key": "secret"}, []),
        ({"grpc_port": 9999}, []),
        ({"log_level": "debug"}, []),
    ],
)
def test_arguments(change: dict[str, Any], names: list[str], folder: Path) -> None:
    assert list_changes(folder, **change) == names


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: os.utime(folder / "model.safetensors", (1, 1)),
        lambda folder: (folder / "model.safetensors").write_bytes(b"others"),
        lambda folder: (folder / "vocab.txt").write_text(""),
    ],
    ids=["another time", "another size", "another file"],
)
def test_files(change: Callable[[Path], object], folder: Path) -> None:
    before = describe(folder)
    change(folder)
    assert [name for name, value in describe(folder).items() if before[name] != value] == ["model_files"]


def test_nothing_is_secret() -> None:
    arguments = Arguments(model_dir="s3://user:secret@bucket/bert", api_key="secret", admin_api_key="secret")
    assert "secret" not in json.dumps(describe_job_model(ModelDeclaration(arguments)))
