"""Selects the runner of each declared model; BentoML's parent process, which runs none, imports none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runners.core.arguments import Arguments
from runners.core.declarations import FIRST_VERSION, Configuration, ModelDeclaration
from runners.core.errors import ArgumentsError, ModelLoadError, list_names
from runners.core.model_index import version_key
from runners.core.model_repository import find_declarations
from runners.core.models import Models
from runners.core.task import GENERATION, Task, infer_task, read_architectures, recognize_sentence_transformer
from runners.hosting.storage.localize import find_local_model, localize_model
from runners.modeling.model_files import parse_json

if TYPE_CHECKING:
    from runners.core.device_thread import DeviceThread
    from runners.core.predictor import Predictor
    from runners.encoder.runner import EncoderRunner
    from runners.generator.runner import GeneratorRunner

# Returns the path of a file of the hub's model, by the file's name.
_Fetch = Callable[[Arguments, str], str]


def create_models(
    configuration: Configuration, connect: Callable[[Arguments], Predictor], device: DeviceThread
) -> Models:
    """The declared models, with the runners of those that are loaded at the start, which load nothing yet.

    Args:
        connect: connects to the predictors that arguments name.
        device: runs all models but those of predictors and vLLM.

    Raises:
        ArgumentsError: the only model's runner does not support its arguments.
        ModelLoadError: the only model cannot be downloaded.
    """

    def create(declaration: ModelDeclaration) -> EncoderRunner | GeneratorRunner:
        return create_runner(localize_model(declaration.arguments), connect, device, declaration.version)

    is_ready_when_any = configuration.arguments.ready_when == "any"
    models = Models(configuration.models, create, find_declarations(configuration), is_ready_when_any)
    models.create_runners()
    return models


def create_runner(
    arguments: Arguments,
    connect: Callable[[Arguments], Predictor] | None = None,
    device: DeviceThread | None = None,
    version: str = FIRST_VERSION,
) -> EncoderRunner | GeneratorRunner:
    """The runner of the model, which loads nothing yet; asks the hub for config.json if `task` is unset.

    Args:
        arguments: with a local folder or a hub id.
        connect: connects to the predictor that the arguments name, if they do.
        device: the thread that all models of this process share; None for one of the runner's own.

    Raises:
        ArgumentsError: the runner does not support the arguments.
    """
    if not _is_generator(arguments, fetch_from_hub):
        from runners.encoder.runner import EncoderRunner

        return EncoderRunner(arguments, connect, device, version)
    if arguments.predictor_host is not None:
        raise ArgumentsError("predictor_host is for encoders, and this model generates or runs on vLLM")
    from runners.generator.runner import GeneratorRunner

    return GeneratorRunner(arguments, device, version)


def expects_generator(configuration: Configuration) -> bool:
    """Whether any model generates, by the arguments and the files on this machine; nothing is downloaded.

    A model that has not been downloaded is expected to generate if vLLM's parallel sizes ask for several GPUs.
    """
    return any(
        _is_generator(find_local_model(arguments), _find_in_cache, default=arguments.parallel_size > 1)
        for arguments in (model.arguments for model in configuration.models)
    )


def _is_generator(arguments: Arguments, fetch: _Fetch, default: bool = False) -> bool:
    # `backend` vllm makes every task the generator's: vLLM also embeds, scores and classifies, over OpenAI's API.
    if arguments.backend == "vllm":
        return True
    task = arguments.task or _infer_task(arguments, fetch)
    return default if task is None else task in GENERATION


def _infer_task(arguments: Arguments, fetch: _Fetch) -> Task | None:
    """The task by the model's files, without importing `transformers`, which takes seconds.

    None if a file is missing or wrong; loading the model raises an error that says so.
    """
    try:
        task = infer_task(read_architectures(_read_json(arguments, "config.json", fetch)))
    except (ModelLoadError, OSError, ValueError):
        return None
    if task not in GENERATION:
        return task
    # An embedder that was trained from a language model keeps that architecture's name.
    modules = _find_json(arguments, "modules.json", fetch)
    settings = _find_json(arguments, "config_sentence_transformers.json", fetch)
    return recognize_sentence_transformer(modules, settings) or task


def _find_json(arguments: Arguments, filename: str, fetch: _Fetch) -> Any | None:
    """An optional file; None if it is missing or wrong."""
    try:
        return _read_json(arguments, filename, fetch)
    except (ModelLoadError, OSError, ValueError):
        return None


def _read_json(arguments: Arguments, filename: str, fetch: _Fetch) -> Any:
    folder = Path(arguments.model)
    is_local = folder.is_dir() or arguments.model_id is None
    path = folder / filename if is_local else Path(fetch(arguments, filename))
    return parse_json(arguments, path, filename)


def fetch_from_hub(arguments: Arguments, filename: str) -> str:
    """Download a file of a model of the hub, unless its cache has it.

    Returns:
        The path in the hub's cache.

    Raises:
        FileNotFoundError: the model has no such file.
        OSError: the hub does not provide it.
        ValueError: the id is not one.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return hf_hub_download(arguments.model, filename, revision=arguments.model_revision)
    except EntryNotFoundError as error:
        raise FileNotFoundError(filename) from error


def _find_in_cache(arguments: Arguments, filename: str) -> str:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(arguments.model, filename, revision=arguments.model_revision)
    if not isinstance(path, str):
        raise FileNotFoundError(filename)
    return path


def choose_model(configuration: Configuration, name: str | None) -> Configuration:
    """The configuration with one model alone, all cores and no repository.

    Args:
        name: one of several models; None for the only one.

    Raises:
        ArgumentsError: there are several, and none has that name.
    """
    declared = configuration.models
    names = list(dict.fromkeys(model.name for model in declared))
    if not names:
        raise ArgumentsError("no model is declared")
    several = configuration.arguments.models_file or configuration.arguments.model_repository
    chosen = [model for model in declared if name is None or not several or name in model.arguments.names]
    if len({model.name for model in chosen}) != 1:
        found = "there are several models" if name is None else f"there is no model {name}"
        raise ArgumentsError(f"{found}: set --model_name to one of {list_names(names)}")
    model = replace(max(chosen, key=lambda model: version_key(model.version)), load=True)
    alone = Configuration(configuration.arguments, (model,))
    return alone.replace_server_arguments(configuration.arguments.model_copy(update={"workers": 1}))
