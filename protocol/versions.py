"""The names and versions of the server and its models."""

from __future__ import annotations

from protocol.http.errors import NotFoundError
from runners.core.models import Models

SERVER_NAME = "bentoml-huggingface-runtime"
SERVER_VERSION = "0.1.0"
# Each model is served in one version, named as Triton names a model's first.
MODEL_VERSION = "1"


def check_version(name: str, version: str) -> None:
    """Check the version of a model that a request asks for.

    Args:
        version: empty if the request names none.

    Raises:
        NotFoundError: the version is not the served one.
    """
    if version not in ("", MODEL_VERSION):
        raise NotFoundError(f"Model {name} has no version {version}; it has version {MODEL_VERSION}.")


def server_extensions(models: Models) -> list[str]:
    """The extensions of the Open Inference Protocol that this server has, under Triton's names."""
    # KServe calls the extension `model_repository_extension`.
    repository = ["model_repository", "model_repository_extension"] if models.changeable else []
    return ["binary_tensor_data", "classification", *repository]
