"""The name and version of the server, and its extensions."""

from __future__ import annotations

from runners.core.version import VERSION

SERVER_NAME = "bentoml-huggingface-runtime"
SERVER_VERSION = VERSION
# The extensions of the Open Inference Protocol under Triton's names; KServe calls the repository the last one.
EXTENSIONS = ["binary_tensor_data", "classification", "model_repository", "model_repository_extension"]
