"""What clouds say of the model and of ports, beside what the operator says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runners.core.argument_sources import read_arguments, read_configuration
from runners.core.cloud_variables import read_cloud_values
from runners.core.errors import ArgumentsError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def read(environment: dict[str, str], folder: Path = Path("/nowhere")) -> dict[str, Any]:
    return {name: given.value for name, given in read_cloud_values(environment, folder).items()}


def test_the_folder_of_sagemaker_counts_if_it_has_files(model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert read({}) == read({}, tmp_path / "empty") == {}
    assert read({}, model) == {"model_dir": str(model)}


@pytest.mark.parametrize(
    ("environment", "values"),
    [
        ({"AIP_STORAGE_URI": "gs://bucket/bert"}, {"model_dir": "gs://bucket/bert"}),
        # Vertex AI sets it to nothing if there is no model.
        ({"AIP_STORAGE_URI": ""}, {}),
        ({"AZUREML_MODEL_DIR": "/nowhere"}, {"model_dir": "/nowhere"}),
        ({"SAGEMAKER_SAFE_PORT_RANGE": "9000-9999"}, {"grpc_port": 9000}),
    ],
)
def test_variables(environment: dict[str, str], values: dict[str, Any]) -> None:
    assert read(environment) == values


def test_azure_mounts_a_registered_folder_below_the_version_s(model: Path, tmp_path: Path) -> None:
    for given in (model, tmp_path):
        assert read({"AZUREML_MODEL_DIR": str(given)}) == {"model_dir": str(model)}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    # Which one is meant is unknown.
    assert read({"AZUREML_MODEL_DIR": str(tmp_path)}) == {"model_dir": str(tmp_path)}


@pytest.mark.parametrize("ports", ["9000", "9000-", "9999-9000", "0-9", "9000-70000", "a-b"])
def test_wrong_ranges_of_ports(ports: str) -> None:
    with pytest.raises(ArgumentsError, match=f"SAGEMAKER_SAFE_PORT_RANGE is '{ports}': it must be two ports, such as"):
        read({"SAGEMAKER_SAFE_PORT_RANGE": ports})


@pytest.mark.parametrize(
    ("command_line", "environment", "baked", "expected"),
    [
        ({}, {}, {}, "gs://bucket/bert"),
        ({}, {}, {"model_dir": "/baked"}, "/baked"),
        ({}, {}, {"model_id": "a/baked"}, "a/baked"),
        ({}, {"RUNTIME_MODEL_ID": "a/b"}, {}, "a/b"),
        ({}, {"RUNTIME_ARGS": "--model_dir=/x"}, {}, "/x"),
        ({"model_dir": "/x"}, {}, {}, "/x"),
    ],
)
def test_who_names_a_model_wins(
    command_line: dict[str, str], environment: dict[str, str], baked: dict[str, str], expected: str
) -> None:
    arguments = read_arguments(command_line, {"AIP_STORAGE_URI": "gs://bucket/bert", **environment}, baked)
    assert arguments.model == expected


def test_several_models_are_those_of_their_file(tmp_path: Path, model: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(f"models: [{{model_name: ner, model_dir: {model}}}]")
    environment = {"AZUREML_MODEL_DIR": str(model), "RUNTIME_MODELS_FILE": str(file)}
    assert [each.name for each in read_configuration({}, environment, {}).models] == ["ner"]


def test_other_ports_win() -> None:
    environment = {"SAGEMAKER_SAFE_PORT_RANGE": "9000-9999"}
    assert read_arguments({}, environment, {}).grpc_port == 9000
    assert read_arguments({"grpc_port": "7000"}, environment, {}).grpc_port == 7000
