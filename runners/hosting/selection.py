"""Which runner serves the model that the arguments name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError, ModelLoadError
from runners.core.predictor import Predictor
from runners.core.task import GENERATION, Task, infer_task, is_embedder, read_architectures
from runners.encoder.runner import EncoderRunner
from runners.generator.runner import GeneratorRunner
from runners.modeling.model_files import parse_json


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
    """The task by the model's files, read without `transformers`, which takes seconds to import.

    None if that fails; loading the model will raise the error.
    """
    try:
        task = infer_task(read_architectures(_read_json(arguments, "config.json")))
    except (ModelLoadError, OSError, ValueError, EntryNotFoundError):
        return None
    # An embedder that was made of a language model keeps that architecture's name.
    if task in GENERATION and is_embedder(
        _find_json(arguments, "modules.json"), _find_json(arguments, "config_sentence_transformers.json")
    ):
        return Task.TEXT_EMBEDDING
    return task


def _find_json(arguments: Arguments, filename: str) -> Any | None:
    """An optional file; None if it is missing or cannot be read."""
    try:
        return _read_json(arguments, filename)
    except (ModelLoadError, OSError, ValueError, EntryNotFoundError):
        return None


def _read_json(arguments: Arguments, filename: str) -> Any:
    folder = Path(arguments.model)
    path = (
        folder / filename
        if folder.is_dir() or arguments.model_id is None
        else hf_hub_download(arguments.model, filename, revision=arguments.model_revision)
    )
    return parse_json(arguments, Path(path), filename)
