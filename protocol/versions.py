"""The names and versions of the server and its models."""

from __future__ import annotations

from runners.core.models import Models

SERVER_NAME = "bentoml-huggingface-runtime"
SERVER_VERSION = "0.1.0"
# Each model is served in one version, named as Triton names a model's first.
MODEL_VERSION = "1"


def server_extensions(models: Models) -> list[str]:
    """The extensions of the Open Inference Protocol that this server has, under Triton's names."""
    # KServe calls the extension `model_repository_extension`.
    repository = ["model_repository", "model_repository_extension"] if models.changeable else []
    return ["binary_tensor_data", "classification", *repository]
