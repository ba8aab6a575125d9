"""The paths of KServe V1, the Open Inference Protocol and OpenAI's API that a model answers.

The errors of all protocols name them if a model does not answer a call. They do not name the paths of other protocols.
"""

from __future__ import annotations

from protocol.openai_paths import list_client_paths
from runners.core.errors import InputError
from runners.core.runner import Runner


def check_generates(runner: Runner) -> None:
    """
    Raises:
        InputError: vLLM runs the model and it does not generate text, so that only OpenAI's API answers it.
    """
    if (generator := runner.generator) is not None and not generator.generates:
        raise InputError(f"{runner.name} does not generate text: {describe_service(runner)}")


def describe_service(runner: Runner) -> str:
    """The model's task and paths, as a part of an error's message."""
    name = runner.name
    paths = [f"/v1/models/{name}:predict", f"/v2/models/{name}/infer"]
    if runner.generator is not None:
        paths = [*paths, f"/v2/models/{name}/generate"] if runner.generator.generates else []
    paths += list_client_paths(runner)
    return f"it serves {runner.task} at {', '.join(paths) or 'the paths that /openapi.json lists'}"
