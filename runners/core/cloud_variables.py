"""What clouds tell their containers of the port, the paths and the model, in variables and folders of their own.

SageMaker: https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
Vertex AI: https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
Azure ML: https://learn.microsoft.com/azure/machine-learning/how-to-deploy-custom-container

What the operator says in arguments wins over all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from runners.core.argument_values import GivenValue, GivenValues, Origin
from runners.core.errors import ArgumentsError

# SageMaker names a port only where a container is one of several.
_PORTS = ("SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT")
# The ports that a container may use beside its own where others share its network: 9000-9999.
_PORT_RANGE = "SAGEMAKER_SAFE_PORT_RANGE"
# A URI, such as gs://..., and a folder.
_MODEL_URI, _MODEL_FOLDER = "AIP_STORAGE_URI", "AZUREML_MODEL_DIR"
_SAGEMAKER_FOLDER = Path("/opt/ml/model")
_CONFIG = "config.json"


def read_cloud_port(environment: Mapping[str, str]) -> GivenValues:
    """The port for HTTP, as an argument of launch.py; nothing without a cloud."""
    name = next((name for name in _PORTS if environment.get(name)), None)
    return {} if name is None else {"http_port": GivenValue(environment[name], Origin(name))}


def read_cloud_values(environment: Mapping[str, str], sagemaker_folder: Path = _SAGEMAKER_FOLDER) -> GivenValues:
    """The arguments of the service; none without a cloud.

    Args:
        sagemaker_folder: where SageMaker unpacks a model, if it has one.

    Raises:
        ArgumentsError: a range of ports is none.
    """
    values: dict[str, GivenValue] = {}
    if sagemaker_folder.is_dir() and any(sagemaker_folder.iterdir()):
        values["model_dir"] = GivenValue(str(sagemaker_folder), Origin("SageMaker's folder"))
    if uri := environment.get(_MODEL_URI):
        values["model_dir"] = GivenValue(uri, Origin(_MODEL_URI))
    elif folder := environment.get(_MODEL_FOLDER):
        values["model_dir"] = GivenValue(_find_registered(folder), Origin(_MODEL_FOLDER))
    if ports := environment.get(_PORT_RANGE):
        values["grpc_port"] = GivenValue(_read_first_port(ports), Origin(_PORT_RANGE))
    return values


def _find_registered(folder: str) -> str:
    """The folder of a model: Azure ML mounts one that was registered as a folder below the version's."""
    path = Path(folder)
    if path.is_dir() and not (path / _CONFIG).is_file():
        inner = [each for each in path.iterdir() if (each / _CONFIG).is_file()]
        if len(inner) == 1:
            return str(inner[0])
    return folder


def _read_first_port(value: str) -> int:
    """
    Raises:
        ArgumentsError: it is no range of ports.
    """
    match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", value.strip())
    ports = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= ports[0] <= ports[1] <= 65535:
        raise ArgumentsError(f"{_PORT_RANGE} is {value!r}: it must be two ports, such as 9000-9999")
    return ports[0]
