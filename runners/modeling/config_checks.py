"""Checks of a model's config.json and weight files before they are loaded; errors name the file and the key."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub.errors import StrictDataclassFieldValidationError

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError, one_line
from runners.core.task import read_architectures
from runners.modeling.model_files import load_json

logger = logging.getLogger(__name__)


def refuse_adapter(arguments: Arguments) -> None:
    """Refuse a PEFT adapter, which `transformers` would ignore silently unless PEFT is installed.

    Raises:
        ModelLoadError: the model has an adapter_config.json.
    """
    adapter = load_json(arguments, "adapter_config.json")
    if adapter is None:
        return
    base = adapter.get("base_model_name_or_path") if isinstance(adapter, dict) else None
    raise ModelLoadError(
        f"{arguments.model} holds an adapter_config.json: it is a PEFT adapter of {base or 'another model'}, and this "
        "server applies none; merge it into that model (merge_and_unload) and serve the result, or remove the file if "
        "that is done"
    )


def check_config(arguments: Arguments, written: Any) -> dict[str, Any]:
    """Check the keys of config.json that `transformers` misreads silently.

    Args:
        written: the parsed config.json.

    Returns:
        Values that replace those of the file.

    Raises:
        ModelLoadError: a value has a wrong type.
    """
    architectures = read_architectures(written)
    labels, count = written.get("id2label"), written.get("num_labels")
    if labels is not None and (
        not isinstance(labels, dict) or not all(re.fullmatch(r"-?\d+", index) for index in labels)
    ):
        raise ModelLoadError(
            f"id2label in {arguments.model}/config.json must be an object that names classes by their numbers, "
            f'{{"0": "...", ...}}; it is {str(labels)[:80]}'
        )
    if count is not None and (not isinstance(count, int) or isinstance(count, bool) or count < 1):
        raise ModelLoadError(f"num_labels in {arguments.model}/config.json is {count!r}, not a number of classes")
    if labels is not None and count is not None and len(labels) != count:
        logger.warning("num_labels in config.json is %d, but id2label has %d names, which count", count, len(labels))
    if labels is not None and {*map(int, labels)} != {*range(len(labels))}:
        logger.warning(
            "id2label in config.json names the classes %s of 0 to %d; a class without a name is LABEL_ and its number",
            ", ".join(sorted(labels, key=int)), len(labels) - 1,
        )  # fmt: skip
    if isinstance(written.get("architectures"), str):
        logger.warning("architectures in config.json is a name, not a list; it is read as %s", architectures)
        return {"architectures": architectures}
    return {}


def refuse_kernels(arguments: Arguments, written: Any) -> None:
    """Refuse an attention implementation that is a repository of the hub: `transformers` would download and run it.

    If the package `kernels` is installed, `transformers` does so without `trust_remote_code`.

    Args:
        written: the parsed config.json.

    Raises:
        ModelLoadError: the config names a repository, and remote code is not trusted.
    """
    if arguments.trust_remote_code:
        return
    for key, name in _find_implementations(written):
        if "/" in name:
            raise ModelLoadError(
                f"{key} in {arguments.model}/config.json is {name!r}: it is code from the hub, which runs only with "
                "--trust_remote_code"
            )


def _find_implementations(config: Any) -> Iterator[tuple[str, str]]:
    """Keys and values of `attn_implementation` and similar keys, in a config and its nested configs."""
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if re.search(r"_implementation(_internal)?$", str(key)) and isinstance(value, str):
            yield key, value
        yield from _find_implementations(value)


def refuse_weights(arguments: Arguments) -> None:
    """Refuse an index of weights that names files other than safetensors in the model's folder.

    `transformers` unpickles files with other endings, and follows paths out of the folder.

    Raises:
        ModelLoadError: the index names such a file, or is malformed.
    """
    endings = (".safetensors", ".bin") if arguments.allow_pickle else (".safetensors",)
    for filename in ("model.safetensors.index.json", "pytorch_model.bin.index.json")[: len(endings)]:
        index = load_json(arguments, filename)
        if index is None:
            continue
        names = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ModelLoadError(f"{arguments.model}/{filename} has no weight_map from weights to files")
        for name in sorted({*names.values()}):
            check_inside(name, f"{arguments.model}/{filename}")
            if not name.endswith(endings):
                raise ModelLoadError(
                    f"{arguments.model}/{filename} names {name!r}, and only {' and '.join(endings)} are loaded"
                )


def check_inside(path: str, named_by: str) -> None:
    """Refuse a path that leads out of the model's folder.

    Args:
        path: a path that one of the model's files names.
        named_by: this file, for the error.

    Raises:
        ModelLoadError: the path is absolute, or has `..`.
    """
    if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
        raise ModelLoadError(f"{named_by} names {path!r}, which leads out of the model's folder")


def describe_config_error(error: Exception, written: Any) -> str:
    """Describe an error about a config in one line, with the keys of config.json whose values it mentions."""
    if isinstance(error, StrictDataclassFieldValidationError):
        # The last line names the field, the expected type and the value.
        return str(error).strip().splitlines()[-1].strip()
    text = one_line(error)
    values = written.items() if isinstance(written, dict) else ()
    keys = [f"{key} is {value!r}" for key, value in values if isinstance(value, str) and value and value in text]
    return f"{type(error).__name__}: {text}" + (f" ({', '.join(keys)})" if keys else "")


def refuse_other_shapes(arguments: Arguments, mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """Refuse a checkpoint whose weights do not have the shapes that the config says.

    Args:
        mismatched: name, shape in the checkpoint and shape by the config of each such weight.

    Raises:
        ModelLoadError: there is such a weight.
    """
    if not mismatched:
        return
    name, stored, expected = min(mismatched, key=lambda weight: weight[0])
    differing = {size for size, other in zip(expected, stored, strict=False) if size != other}
    written = load_json(arguments, "config.json") or {}
    # A config without num_labels and id2label has two classes.
    sizes = {"num_labels": 2} | {key: value for key, value in written.items() if isinstance(value, int)}
    if labels := written.get("id2label"):
        sizes = {key: size for key, size in sizes.items() if key != "num_labels"} | {"id2label": len(labels)}
    keys = [key for key, size in sizes.items() if size in differing]
    raise ModelLoadError(
        f"{arguments.model}/config.json does not fit the weights: {name} has the shape {list(stored)}, and "
        f"{list(expected)} by the config" + (f" (of that size there: {', '.join(keys)})" if keys else "")
    )
