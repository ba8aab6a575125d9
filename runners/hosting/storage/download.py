"""Downloads models at URIs, once, by KServe's storage initializer, into a folder that later starts find complete."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from runners.core.errors import ArgumentsError, ModelLoadError, RunnerError
from runners.core.machine import format_size
from runners.core.redaction import redact
from runners.hosting.storage.archives import refuse_links
from runners.hosting.storage.disk import limit_files
from runners.hosting.storage.hub import download_from_hub
from runners.hosting.storage.initializer import follow_log, ignore_files, replace_unpacking
from runners.hosting.storage.locks import end_on_sigterm, lock_download
from runners.hosting.storage.model_folder import find_config_folder, keep_complete_files
from runners.hosting.storage.progress import Progress
from runners.hosting.storage.uris import SCHEMES, download_folder

logger = logging.getLogger(__name__)

# Interrupted downloads of these are resumed; the others write incomplete files under their final names.
_RESUMABLE = ("hf", "s3")
_EXAMPLE = "bentoml://name:version/models.yaml"


def fetch_model(uri: str) -> Path:
    """The folder of the model at a URI; downloads it, or waits for another process that does.

    Raises:
        ArgumentsError: the scheme is unknown, a local file is missing, or the storage extra is not installed.
        ModelLoadError: the download fails, or contains no model.
    """
    if (folder := find_model(uri)) is not None:
        return folder
    redacted_uri, target = redact(uri), download_folder(uri)
    with end_on_sigterm(), lock_download(target.with_name(f"{target.name}.lock"), redacted_uri):
        # Another process may have downloaded it while this one waited for the lock.
        if not target.is_dir():
            _download(uri, redacted_uri, target)
    return find_config_folder(target, redacted_uri)


def fetch_file(uri: str) -> None:
    """Download one file to `find_file(uri)`, in place of an earlier copy, which stays if the download fails.

    Raises:
        ArgumentsError: the storage extra is not installed.
        ModelLoadError: the download fails.
    """
    redacted_uri, target = redact(uri), find_file(uri)
    folder = target.parent
    _check_storage_extra(redacted_uri)
    with end_on_sigterm(), lock_download(folder.with_name(f"{folder.name}.lock"), redacted_uri):
        partial = folder.with_name(f"{folder.name}.partial")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            with _explain_errors(uri, redacted_uri):
                _download_file(uri, redacted_uri, partial)
                if not (partial / target.name).is_file():
                    raise ModelLoadError(f"{redacted_uri} is not a file")
                folder.mkdir(exist_ok=True)
                (partial / target.name).replace(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    logger.info("%s is downloaded", redacted_uri)


def find_file(uri: str) -> Path:
    """The path of the copy of one file at a URI."""
    return download_folder(uri) / uri.partition("?")[0].rpartition("/")[2]


def find_model(uri: str) -> Path | None:
    """The folder of the model at a URI if it is on this machine; None if it must be downloaded.

    Raises:
        ArgumentsError: the scheme is unknown, or a local model is missing.
        ModelLoadError: the folder contains no model.
    """
    scheme, _, rest = uri.partition("://")
    redacted_uri = redact(uri)
    if scheme == "pvc":
        raise ArgumentsError(f"{redacted_uri} is a volume of Kubernetes: mount it, as KServe does, and give its path")
    if scheme not in SCHEMES:
        raise ArgumentsError(
            f"{redacted_uri} has an unknown scheme: model_dir is a path or a URI of {', '.join(SCHEMES)}"
        )
    if scheme == "bentoml":
        return _find_in_model_store(rest)
    if scheme == "file":
        if Path(rest).is_dir():
            return Path(rest)
        if not Path(rest).exists():
            raise ArgumentsError(
                f"{redacted_uri} does not exist; a file URI has an absolute path, as in file:///models/bert"
            )
    target = download_folder(uri)
    if not target.is_dir():
        return None
    logger.debug("%s is in %s", redacted_uri, target)
    return find_config_folder(target, redacted_uri)


def find_stored_file(location: str) -> Path:
    """The path of a file in BentoML's store, by `name:version/file`.

    Raises:
        ArgumentsError: the store has no such file.
    """
    tag, _, name = location.partition("/")
    path = _find_in_model_store(tag) / name
    if not path.is_file():
        raise ArgumentsError(f"bentoml://{location} must name a file of a model in BentoML's store, as in {_EXAMPLE}")
    return path


def _find_in_model_store(tag: str) -> Path:
    """The folder of a model in BentoML's store, of this machine or of the Bento that is served.

    Raises:
        ArgumentsError: the store has no model of that tag.
    """
    from bentoml import models
    from bentoml.exceptions import BentoMLException

    try:
        return Path(models.get(tag).path)
    except (BentoMLException, ValueError) as error:
        raise ArgumentsError(
            f"bentoml://{tag} is not in BentoML's model store; `bentoml models list` shows it"
        ) from error


def _download(uri: str, redacted_uri: str, target: Path) -> None:
    """Download into a folder beside `target`, and rename it to `target` once it is complete."""
    _check_storage_extra(redacted_uri)
    scheme = uri.partition("://")[0]
    folder = target.with_name(f"{target.name}.partial")
    started = time.monotonic()
    try:
        if scheme not in _RESUMABLE:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        logger.info("downloading %s to %s", redacted_uri, target)
        with _explain_errors(uri, redacted_uri):
            count = _download_into(folder, uri, redacted_uri)
            folder.rename(target)
    finally:
        # After the renaming there is no such folder.
        if scheme not in _RESUMABLE:
            shutil.rmtree(folder, ignore_errors=True)
    logger.info("%s is downloaded: %s in %.0f s", redacted_uri, format_size(count), time.monotonic() - started)


def _check_storage_extra(redacted_uri: str) -> None:
    try:
        import kserve_storage  # noqa: F401
    except ImportError as error:
        raise ArgumentsError(f"{redacted_uri} needs the storage extra: pip install '.[storage]' ({error})") from error


@contextlib.contextmanager
def _explain_errors(uri: str, redacted_uri: str) -> Iterator[None]:
    """Replace errors of libraries by those of this project, without the credentials in the URI."""
    try:
        yield
    except RunnerError:
        raise
    except ImportError as error:
        scheme = uri.partition("://")[0]
        raise ArgumentsError(f"{scheme} URIs need the package {error.name}, which is not installed") from error
    except Exception as error:
        kind = "" if type(error) in (Exception, RuntimeError) else f"{type(error).__name__}: "
        reason = redact(" ".join(str(error).replace(uri, redacted_uri).split()))
        raise ModelLoadError(f"{redacted_uri} cannot be downloaded: {kind}{reason}") from error


def _download_file(uri: str, redacted_uri: str, folder: Path) -> None:
    from kserve_storage import Storage

    progress = Progress(redacted_uri, folder)
    with progress, follow_log(progress), limit_files(progress.room, redacted_uri):
        # The patterns in the environment are those of models.
        Storage.download(uri, str(folder), allow_patterns=[], ignore_patterns=[])


def _download_into(folder: Path, uri: str, redacted_uri: str) -> int:
    """Download into the folder, and check the result.

    Returns:
        The bytes in the folder.
    """
    from kserve_storage import Storage

    scheme = uri.partition("://")[0]
    complete = [] if scheme == "hf" else keep_complete_files(folder)
    progress = Progress(redacted_uri, folder, complete=sum(count for _, count in complete))
    with progress, follow_log(progress), limit_files(progress.room, redacted_uri), replace_unpacking(progress):
        if scheme == "hf":
            download_from_hub(uri, folder, progress)
        else:
            Storage.download(uri, str(folder), ignore_patterns=ignore_files(complete))
    find_config_folder(folder, redacted_uri)
    # A local archive may be unpacked beside links of the operator.
    if scheme != "file":
        refuse_links(folder, redacted_uri)
    return progress.count()
