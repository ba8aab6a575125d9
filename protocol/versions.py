"""The names and versions of the server and its models, and its extensions."""

from __future__ import annotations

from runners.core.models import Models
from runners.core.version import VERSION

SERVER_NAME = "bentoml-huggingface-runtime"
SERVER_VERSION = VERSION
# A model is served in one version, which has the name of Triton's first.
MODEL_VERSION = "1"


def server_extensions(models: Models) -> list[str]:
    """The extensions of the Open Inference Protocol that this server has, under Triton's names."""
    # KServe calls the extension `model_repository_extension`.
    repository = ["model_repository", "model_repository_extension"] if models.changeable else []
    return ["binary_tensor_data", "classification", *repository]
