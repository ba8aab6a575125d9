"""Builds the Bento of one flavour, with models if they are named.

python -m deploy.bento.build cpu --model=FOLDER
python -m deploy.bento.build cpu --config=models.yaml
"""

from __future__ import annotations

import argparse
import contextlib
import glob
import hashlib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import bentoml
import yaml
from bentoml.exceptions import BentoMLException, NotFound
from huggingface_hub import HfApi, snapshot_download

from deploy.bento.models_file import NAME as BAKED_NAME
from deploy.bento.models_file import bake_models_file
from runners.core.errors import ArgumentsError

ROOT = Path(__file__).resolve().parents[2]
BENTOFILES = {
    "cpu": ROOT / "bentofile.yaml",
    "cuda": ROOT / "deploy/bento/cuda.yaml",
    "encoder-cpu": ROOT / "deploy/bento/encoder-cpu.yaml",
}
# Weights in other formats than safetensors; the server ignores them if there are safetensors in the same folder.
_OTHER_WEIGHTS = frozenset({".bin", ".h5", ".msgpack", ".onnx", ".ot", ".pt", ".pth"})
# Folders with the same weights for other engines.
_OTHER_ENGINES = frozenset({"onnx", "openvino", "original", "coreml"})


def build_bento(
    flavor: str, model: str | None = None, revision: str | None = None, config: Path | None = None
) -> bentoml.Bento:
    """Build a Bento into BentoML's store.

    Args:
        flavor: a key of BENTOFILES.
        model: a folder or a hub id; the Bento contains this model, and serves it by default.
        revision: the branch, tag or commit of a hub id.
        config: a models file instead of a model; the Bento contains its models, and serves them by default.

    Raises:
        ArgumentsError: the models file is wrong.
        ValueError: there is no such model.
        BentoMLException: BentoML cannot build the Bento.
    """
    bentofile = BENTOFILES[flavor]
    if config is not None:
        return _build_with_models_file(bentofile, config)
    if model is not None:
        tag = store_model(model, revision)
        return _build(bentofile, tag.name, [tag], {"model_dir": f"bentoml://{tag}"})
    return bentoml.bentos.build_bentofile(str(bentofile), build_ctx=str(ROOT))


def _build_with_models_file(bentofile: Path, config: Path) -> bentoml.Bento:
    baked = bake_models_file(config, store_model)
    content = baked.text.encode()

    def write(to: Path) -> None:
        (to / BAKED_NAME).write_bytes(content)

    tag = _store(f"{config.stem}-models", hashlib.sha256(content).hexdigest()[:16], write)
    # The build reads the file as the server will, to learn how many GPUs the models need.
    with _set_defaults(dict.fromkeys(baked.variables, "")):
        name = tag.name.removesuffix("-models")
        return _build(bentofile, name, [*baked.models, tag], {"models_file": f"bentoml://{tag}/{BAKED_NAME}"})


def _build(bentofile: Path, name: str, models: Iterable[bentoml.Tag], arguments: Mapping[str, str]) -> bentoml.Bento:
    options = yaml.safe_load(bentofile.read_text())
    # The Bento without a model, which serves a mounted one, has the plain name.
    options["name"] = f"{options['name']}-{name}"
    options["models"] = [str(tag) for tag in models]
    options["args"] = {**options.get("args", {}), **arguments}
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(options, file)
        file.flush()
        return bentoml.bentos.build_bentofile(file.name, build_ctx=str(ROOT))


@contextlib.contextmanager
def _set_defaults(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables that the environment has not."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def store_model(model: str, revision: str | None = None) -> bentoml.Tag:
    """Put a model into BentoML's model store, unless the store has it; its version is a hash or the commit.

    Raises:
        ValueError: there is no such model.
    """
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"the folder {model} holds no config.json, so it is not a Hugging Face model")
        files = _choose_files(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return _store(folder.resolve().name, _hash(folder, files), lambda to: _copy(folder, files, to))
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ValueError(f"there is no folder {model}")
    try:
        info = HfApi().model_info(model, revision=revision)
    except Exception as error:
        raise ValueError(f"there is no folder {model}, and the hub cannot provide it: {error}") from error
    names = [glob.escape(str(file)) for file in _choose_files(Path(file.rfilename) for file in info.siblings or [])]

    def download(to: Path) -> None:
        snapshot_download(model, revision=info.sha, local_dir=to, allow_patterns=names)
        # huggingface_hub keeps its own metadata there.
        shutil.rmtree(to / ".cache", ignore_errors=True)

    return _store(model.replace("/", "--"), str(info.sha)[:16], download)


def _choose_files(files: Iterable[Path]) -> list[Path]:
    """The files that the server reads: no hidden ones (history, caches, secrets), and no second copy of the weights."""
    shown = sorted(file for file in files if not any(part.startswith(".") for part in file.parts))
    with_safetensors = {file.parent for file in shown if file.suffix == ".safetensors"}
    return [
        file
        for file in shown
        if not (file.suffix in _OTHER_WEIGHTS and file.parent in with_safetensors)
        and not (with_safetensors and file.parts[0] in _OTHER_ENGINES)
    ]


def _hash(folder: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with (folder / path).open("rb") as file:
            digest.update(f"{path}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _copy(folder: Path, files: Iterable[Path], to: Path) -> None:
    for path in files:
        (to / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, to / path)


def _store(name: str, version: str, fill: Callable[[Path], None]) -> bentoml.Tag:
    tag = bentoml.Tag(re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("._-")[:60], version)
    try:
        bentoml.models.get(tag)
    except NotFound:
        with bentoml.models.create(tag) as kept:
            fill(Path(kept.path))
    return tag


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("flavor", choices=BENTOFILES)
    contents = parser.add_mutually_exclusive_group()
    contents.add_argument("--model", help="a folder or hub id of the model that the Bento contains")
    contents.add_argument("--config", type=Path, help="a models file; the Bento contains its models")
    parser.add_argument("--revision", help="the branch, tag or commit of a hub id that --model names")
    options = parser.parse_args()
    if options.revision is not None and options.model is None:
        parser.error("--revision is for --model; a models file has model_revision")
    try:
        bento = build_bento(options.flavor, options.model, options.revision, options.config)
    except (ArgumentsError, ValueError, OSError, BentoMLException) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None
    sys.stdout.write(f"{bento.tag}\n")


if __name__ == "__main__":
    main()
