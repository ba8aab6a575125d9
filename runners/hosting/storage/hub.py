"""Downloads a model of the Hugging Face hub, by KServe's storage initializer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    filter_repo_objects,
)

from runners.core.errors import ArgumentsError, ModelLoadError
from runners.hosting.storage.initializer import read_patterns
from runners.hosting.storage.progress import Progress
from runners.hosting.storage.uris import PATTERN_VARIABLES
from runners.modeling.hub_errors import explain_hub_error


def download_from_hub(uri: str, folder: Path, progress: Progress) -> None:
    """Download one commit of `hf://owner/model[:revision]` into the folder.

    The commit is looked up first: if the hub is unreachable, huggingface_hub accepts whatever is in the folder.

    Raises:
        ArgumentsError: the URI names no model.
        ModelLoadError: the model or revision does not exist or is not accessible, or files are missing in the end.
    """
    from kserve_storage import Storage

    repository, _, revision = uri.removeprefix("hf://").partition(":")
    if repository.count("/") != 1:
        raise ArgumentsError(f"{uri} should be hf://owner/model or hf://owner/model:revision")
    info = _find_model(repository, revision)
    allowed, ignored = (read_patterns(variable) for variable in PATTERN_VARIABLES)
    files = list(
        filter_repo_objects(
            info.siblings or [], allow_patterns=allowed, ignore_patterns=ignored, key=lambda file: file.rfilename
        )
    )
    progress.expect("", sum(file.size or 0 for file in files))
    progress.check_room()
    with _without_progress_bars(), _explain_refusals(repository, revision):
        Storage.download(f"hf://{repository}:{info.sha}", str(folder))
    # Killed processes leave these; huggingface_hub never resumes them.
    for path in folder.glob(".cache/huggingface/download/**/*.incomplete"):
        path.unlink()
    missing = [file.rfilename for file in files if not (folder / file.rfilename).is_file()]
    if missing:
        raise ModelLoadError(f"{repository} is not complete: the hub did not send {', '.join(missing[:4])}")


def _find_model(repository: str, revision: str) -> ModelInfo:
    with _explain_refusals(repository, revision):
        return HfApi().model_info(repository, revision=revision or None, files_metadata=True)


@contextlib.contextmanager
def _explain_refusals(repository: str, revision: str) -> Iterator[None]:
    """
    Raises:
        ModelLoadError: instead of an error whose cause is the hub's answer.
    """
    try:
        yield
    except Exception as error:
        if (reason := explain_hub_error(repository, revision, error)) is None:
            raise
        raise ModelLoadError(reason) from error


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Disable huggingface_hub's own progress bars."""
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if had_bars:
            enable_progress_bars()
