"""What a start can know to be wrong before it imports torch: launch.py and BentoML's parent process check it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import constants

from runners.core.api_keys import check_key_file
from runners.core.arguments import Arguments
from runners.core.cloud_routes import read_health_route, read_predict_route
from runners.core.declarations import Configuration, ModelDeclaration
from runners.core.errors import ArgumentsError, ModelLoadError, RunnerError, list_names
from runners.core.task import GENERATION, infer_task, read_architectures
from runners.hosting.ports import check_port
from runners.hosting.storage.uris import is_uri
from runners.hosting.tls import check_certificates
from runners.hosting.tracing.process import check_tracing
from runners.modeling.config_checks import refuse_adapter, refuse_kernels, refuse_weights
from runners.modeling.hub_errors import explain_hub_error
from runners.modeling.load_errors import MOST_FILES, refuse_pointers
from runners.modeling.model_files import check_folder, load_json

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_server(arguments: Arguments, http_port: int | None = None) -> None:
    """Check the server's own files and ports, and the variables of traces.

    Args:
        http_port: the port that will serve HTTP; None if it is unknown.

    Raises:
        ArgumentsError: a file is missing or wrong, a port is not free, or a variable is wrong.
    """
    check_certificates(arguments)
    check_key_file("api_key_file", arguments.api_key_file)
    check_key_file("admin_api_key_file", arguments.admin_api_key_file)
    check_tracing(os.environ)
    for read_route in (read_health_route, read_predict_route):
        read_route(os.environ)
    if not arguments.enable_grpc:
        return
    if arguments.grpc_port == http_port:
        raise ArgumentsError(
            f"http_port and grpc_port are both {http_port}, but HTTP and gRPC need a port each: set --http_port or "
            "--grpc_port to another, or --enable_grpc=false"
        )
    check_port(arguments.grpc_port, "grpc_port")


def check_models(configuration: Configuration, asks_hub: bool = False) -> None:
    """Check the files of each model that is loaded at start, as far as they are on this machine.

    Nothing is checked if the server goes on without a model that cannot be loaded; the workers warn of it.

    Args:
        asks_hub: whether the config.json of a model of the hub is downloaded.

    Raises:
        ModelLoadError: a model cannot be loaded; the message names it.
    """
    models = configuration.models
    if configuration.arguments.on_load_failure == "serve_others" and len(models) > 1:
        return
    for model in models:
        if model.load:
            _check_named(model, asks_hub)


def _check_named(model: ModelDeclaration, asks_hub: bool) -> None:
    """
    Raises:
        ModelLoadError: as `check_model`, with the model's name, and the line that declares it.
    """
    try:
        check_model(model.arguments, asks_hub)
    except RunnerError as error:
        place = "" if model.origin == "the command line" else f" ({model.origin})"
        raise ModelLoadError(f"cannot serve {model.name}{place}: {error}") from error


def check_model(arguments: Arguments, asks_hub: bool) -> None:
    """Check what can be read without a library of models: the folder, its config.json and its weights.

    Raises:
        ModelLoadError: the folder does not exist or holds no model that can be loaded, or the hub does not provide it.
    """
    if is_uri(arguments.model):
        return
    if arguments.backend == "vllm":
        # vLLM reads more forms of models than folders with a config.json.
        if Path(arguments.model).is_absolute() and not Path(arguments.model).exists():
            check_folder(arguments)
        return
    check_folder(arguments)
    folder = Path(arguments.model)
    if not folder.is_dir():
        _check_hub_model(arguments, asks_hub or constants.HF_HUB_OFFLINE)
        return
    refuse_adapter(arguments)
    refuse_pointers(folder, _list_read_files(folder, arguments.allow_pickle))
    config = load_json(arguments, "config.json")
    architectures = read_architectures(config)
    refuse_kernels(arguments, config)
    if arguments.predictor_host is None and not _may_run_on_vllm(arguments, architectures):
        refuse_weights(arguments)
        _check_weights(arguments, folder)


def _check_hub_model(arguments: Arguments, fetches: bool) -> None:
    """
    Raises:
        ModelLoadError: the id is not one, or the hub or its cache has no such model for this user.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(arguments.model)
        if fetches:
            hf_hub_download(arguments.model, "config.json", revision=arguments.model_revision)
    except Exception as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            return
        # The runner reports any other error.
        if (reason := explain_hub_error(arguments.model, arguments.model_revision, error)) is not None:
            raise ModelLoadError(reason) from error


def _list_read_files(folder: Path, with_pickles: bool) -> Iterator[Path]:
    """The files that are read of a model in any case."""
    yield from folder.glob("*.json")
    has_safetensors = False
    for path in folder.glob("*.safetensors"):
        has_safetensors = True
        yield path
    if with_pickles and not has_safetensors:
        yield from folder.glob("*.bin")


def _may_run_on_vllm(arguments: Arguments, architectures: list[str]) -> bool:
    """Whether vLLM may run the model, which reads weights in other formats too."""
    if arguments.backend == "huggingface" or find_spec("vllm") is None:
        return False
    try:
        return (arguments.task or infer_task(architectures)) in GENERATION
    except ModelLoadError:
        return False


def _check_weights(arguments: Arguments, folder: Path) -> None:
    """
    Raises:
        ModelLoadError: there are no weights in a format that is loaded, or a file of several is missing.
    """
    if (folder / "model.safetensors").is_file():
        return
    endings = (".safetensors", ".bin") if arguments.allow_pickle else (".safetensors",)
    for filename in _INDEXES[: len(endings)]:
        index = load_json(arguments, filename)
        if index is not None:
            missing = sorted({name for name in index["weight_map"].values() if not (folder / name).is_file()})
            if missing:
                raise ModelLoadError(
                    f"{folder}/{filename} names {list_names(missing, MOST_FILES)}, and there is no such file"
                )
            return
    found = [path.name for path in sorted(folder.iterdir()) if path.is_file()]
    if any(name.endswith(endings) for name in found):
        return
    pickles = [name for name in found if name.endswith((".bin", ".pt", ".pth"))]
    if not arguments.allow_pickle and any(name.endswith(".bin") for name in pickles):
        raise ModelLoadError(
            f"{folder} has no safetensors weights, but {list_names(pickles, MOST_FILES)}: --allow_pickle loads .bin "
            "weights, which can run code"
        )
    raise ModelLoadError(f"{folder} has no weights: no {' and no '.join(f'*{ending}' for ending in endings)}")
