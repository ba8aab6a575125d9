"""Which runner serves the model that the arguments name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import hf_hub_download

from runners.arguments import Arguments
from runners.encoder.runner import EncoderRunner
from runners.errors import ArgumentsError, ModelLoadError
from runners.generator.runner import GeneratorRunner
from runners.predictor import Predictor
from runners.task import GENERATION, Task, infer_task


def create_runner(
    arguments: Arguments, connect: Callable[[Arguments], Predictor] | None = None
) -> EncoderRunner | GeneratorRunner:
    """The runner of the model; it loads nothing yet.

    `backend` vllm makes any task the generator's: vLLM also embeds, scores and classifies over OpenAI's API.

    Args:
        connect: reaches the predictor that the arguments name, if they do.

    Raises:
        ArgumentsError: the arguments ask for what the runner cannot do.
    """
    if arguments.backend == "vllm" or (arguments.task or _peek_task(arguments)) in GENERATION:
        if arguments.predictor_host is not None:
            raise ArgumentsError("predictor_host is for encoders, and this model generates or runs on vLLM")
        return GeneratorRunner(arguments)
    return EncoderRunner(arguments, connect)


def _peek_task(arguments: Arguments) -> Task | None:
    """The task by the model's config.json, read without `transformers`, which takes seconds to import.

    None where that says nothing; whoever loads the model finds out why.
    """
    folder = Path(arguments.model)
    try:
        path = (
            folder / "config.json"
            if folder.is_dir() or arguments.model_id is None
            else hf_hub_download(arguments.model, "config.json", revision=arguments.model_revision)
        )
        architectures = json.loads(Path(path).read_text(encoding="utf-8")).get("architectures")
        return infer_task(architectures)
    except (ModelLoadError, OSError, ValueError, AttributeError):
        return None
