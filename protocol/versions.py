"""What the server and its models are called."""

from __future__ import annotations

from runners.core.models import Models

SERVER_NAME = "bentoml-huggingface-runtime"
SERVER_VERSION = "0.1.0"
# One version of a model is served; its name is Triton's first.
MODEL_VERSION = "1"


def server_extensions(models: Models) -> list[str]:
    """The protocol's extensions that work here, under Triton's names."""
    # `model_repository_extension` is KServe's name for it.
    repository = ["model_repository", "model_repository_extension"] if models.changeable else []
    return ["binary_tensor_data", "classification", *repository]
