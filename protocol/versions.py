"""What the server and its models are called."""

from __future__ import annotations

SERVER_NAME = "bentoml-huggingface-runtime"
SERVER_VERSION = "0.1.0"
# One version of a model is served; its name is Triton's first.
MODEL_VERSION = "1"


def server_extensions() -> tuple[str, ...]:
    """The protocol's extensions that work here, under Triton's names."""
    return ("binary_tensor_data", "classification", "model_repository")
