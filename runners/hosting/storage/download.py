"""Models at URIs: downloaded once, by KServe's storage initializer, into a folder that later starts find complete."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import logging
import mimetypes
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    filter_repo_objects,
)

from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError, ModelLoadError, RunnerError
from runners.hosting.storage.archives import TAR, ZIP, refuse_links, unpack_archive
from runners.hosting.storage.disk import limit_files, size
from runners.hosting.storage.progress import Progress, writing

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "STORAGE_CACHE_DIR"
SCHEMES = ("bentoml", "file", "gs", "hdfs", "hf", "http", "https", "modelscope", "oci", "s3", "webhdfs")
# Those whose URIs may end in `:revision`.
_WITH_REVISION = ("hf", "modelscope")
# Those whose unfinished downloads are gone on with; others write unfinished files under their final names.
_RESUMABLE = ("hf", "s3")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(r"\?[^\s'\"]+")
# boto3 writes to such a name beside the file's own, and renames it once it is complete.
_S3_TEMPORARY = re.compile(r"\.[0-9A-Fa-f]{8}$")
# Both are KServe's own reading of its environment, which is part of what a URI stands for.
_PATTERN_VARIABLES = ("STORAGE_ALLOW_PATTERNS", "STORAGE_IGNORE_PATTERNS")
_STORAGE_LOGGER = "storage.initializer"


def localize_model(arguments: Arguments) -> Arguments:
    """The arguments with a local folder in place of a URI in `model_dir`, which may take a download.

    Raises:
        ArgumentsError: the URI or a revision beside it cannot be what was meant, or the storage extra is missing.
        ModelLoadError: the download fails, or what it brings is no model.
    """
    if arguments.model_id is not None:
        # vLLM streams from some object stores itself.
        if _URI.match(arguments.model_id) and arguments.backend != "vllm":
            raise ArgumentsError(
                f"model_id is {redact(arguments.model_id)!r}: it is a hub id or a folder, --model_dir takes URIs"
            )
        return arguments
    if _URI.match(arguments.model_dir) is None:
        return arguments
    uri = _add_revision(arguments.model_dir, arguments.model_revision)
    if arguments.tokenizer_revision not in (None, arguments.model_revision):
        raise ArgumentsError(
            f"tokenizer_revision cannot be had of {redact(uri)}, which is downloaded whole: set --model_id to a hub id"
        )
    folder = fetch_model(uri)
    return arguments.model_copy(update={"model_dir": str(folder), "model_revision": None, "tokenizer_revision": None})


def fetch_model(uri: str) -> Path:
    """The folder of the model at a URI; downloads it unless that has been done, or waits for whoever does.

    Raises:
        ArgumentsError: there is no such scheme or local file, or the storage extra is missing.
        ModelLoadError: the download fails, or what it brings is no model.
    """
    scheme, _, rest = uri.partition("://")
    shown = redact(uri)
    if scheme == "pvc":
        raise ArgumentsError(f"{shown} is a volume of Kubernetes: mount it, as KServe does, and give its path")
    if scheme not in SCHEMES:
        raise ArgumentsError(f"{shown} has an unknown scheme: model_dir is a path or a URI of {', '.join(SCHEMES)}")
    if scheme == "bentoml":
        return _find_kept(rest)
    if scheme == "file":
        if Path(rest).is_dir():
            return Path(rest)
        if not Path(rest).exists():
            raise ArgumentsError(f"{shown} does not exist; a file URI has an absolute path, as in file:///models/bert")
    cache = Path(os.environ.get(CACHE_VARIABLE) or Path(constants.HF_HOME) / "storage")
    target = cache / _folder_name(uri)
    if not target.is_dir():
        with _ending_on_sigterm(), _locked(cache / f"{target.name}.lock", shown):
            if not target.is_dir():
                _download(uri, shown, target)
    logger.debug("%s is in %s", shown, target)
    return _find_model(target, shown)


def _find_kept(tag: str) -> Path:
    """A model in BentoML's own store, of this machine or of the Bento that is served.

    Raises:
        ArgumentsError: there is none of that tag.
    """
    from bentoml import models
    from bentoml.exceptions import BentoMLException

    try:
        return Path(models.get(tag).path)
    except (BentoMLException, ValueError) as error:
        raise ArgumentsError(
            f"bentoml://{tag} is not in BentoML's model store; `bentoml models list` shows it"
        ) from error


def redact(text: str) -> str:
    """A text without the users, passwords and queries of its URIs: those of pre-signed ones are credentials."""
    return _QUERY.sub("?...", _USER.sub("", text))


def _add_revision(uri: str, revision: str | None) -> str:
    """The URI of `model_revision`, which some name themselves.

    Raises:
        ArgumentsError: the URI names another one, or can name none.
    """
    if revision is None:
        return uri
    scheme, _, rest = uri.partition("://")
    if scheme not in _WITH_REVISION:
        raise ArgumentsError(
            f"model_revision is {revision!r}, but {redact(uri)} has no revisions: only hub ids and URIs of "
            f"{' and '.join(_WITH_REVISION)} have"
        )
    named = rest.partition(":")[2]
    if named and named != revision:
        raise ArgumentsError(f"model_revision is {revision!r}, but {redact(uri)} names another")
    return uri if named else f"{uri}:{revision}"


def _folder_name(uri: str) -> str:
    """A name that says which model it is, and that no other URI or choice of files has."""
    identity = json.dumps([uri, *(os.environ.get(variable, "") for variable in _PATTERN_VARIABLES)])
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", _QUERY.sub("", uri).rstrip("/").rpartition("/")[2])[:60]
    return f"{readable}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"


@contextlib.contextmanager
def _locked(path: Path, shown: str) -> Iterator[None]:
    """Only one process of this machine downloads a model; the others wait.

    Raises:
        ModelLoadError: the cache folder cannot be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another process that downloads %s", shown)
            lock.acquire()
    except OSError as error:
        raise ModelLoadError(
            f"{shown} cannot be kept in {path.parent}: {error.strerror}; {CACHE_VARIABLE} names another folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """The first process of a container ignores a SIGTERM that it does not handle."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _end(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _after_fork_in_child() -> None:
    writing.release()
    # A pool ends its processes by SIGTERM; waiting for a lock they would not come to a handler in Python.
    if signal.getsignal(signal.SIGTERM) is _end:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(before=writing.acquire, after_in_parent=writing.release, after_in_child=_after_fork_in_child)


def _download(uri: str, shown: str, target: Path) -> None:
    """Download into a folder beside `target`, which gets the name of `target` once it is complete."""
    scheme = uri.partition("://")[0]
    try:
        from kserve_storage import Storage
    except ImportError as error:
        raise ArgumentsError(f"{shown} needs the storage extra: pip install '.[storage]' ({error})") from error
    folder = target.with_name(f"{target.name}.partial")
    started = time.monotonic()
    try:
        if scheme not in _RESUMABLE:
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        logger.info("downloading %s to %s", shown, target)
        complete = [] if scheme == "hf" else _complete_files(folder)
        progress = Progress(shown, folder, complete=sum(count for _, count in complete))
        with progress, _storage_log(progress), limit_files(progress.room, shown), _unpacking(shown):
            if scheme == "hf":
                _download_from_hub(uri, folder, progress)
            else:
                Storage.download(uri, str(folder), ignore_patterns=_ignore(complete))
        _find_model(folder, shown)
        if scheme != "file":
            refuse_links(folder, shown)
        count = progress.count()
        folder.rename(target)
    except RunnerError:
        raise
    except ImportError as error:
        raise ArgumentsError(f"{scheme} URIs need the package {error.name}, which is not installed") from error
    except Exception as error:
        kind = "" if type(error) in (Exception, RuntimeError) else f"{type(error).__name__}: "
        reason = redact(" ".join(str(error).replace(uri, shown).split()))
        raise ModelLoadError(f"{shown} cannot be downloaded: {kind}{reason}") from error
    finally:
        # Once renamed there is none.
        if scheme not in _RESUMABLE:
            shutil.rmtree(folder, ignore_errors=True)
    logger.info("%s is downloaded: %s in %.0f s", shown, size(count), time.monotonic() - started)


@contextlib.contextmanager
def _unpacking(shown: str) -> Iterator[None]:
    """Unpack archives in place of KServe, which bounds neither their bytes nor their members."""
    from kserve_storage import Storage

    def unpack(path: str, kind: str, folder: str) -> str:
        logging.getLogger(_STORAGE_LOGGER).info("Unpacking: %s", path)
        unpack_archive(Path(path), kind, Path(folder), shown)
        return folder

    stock = Storage._unpack_archive_file
    Storage._unpack_archive_file = staticmethod(unpack)
    try:
        yield
    finally:
        Storage._unpack_archive_file = staticmethod(stock)


def _complete_files(folder: Path) -> list[tuple[str, int]]:
    """The files, and their bytes, that an interrupted download from S3 has completed; what else it left is deleted.

    An archive may be half unpacked, and that has to start again.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    if any(mimetypes.guess_type(path.name)[0] in (TAR, ZIP) for path in files):
        shutil.rmtree(folder)
        folder.mkdir()
        return []
    for path in files:
        if _S3_TEMPORARY.search(path.name):
            path.unlink()
    complete = [(str(path.relative_to(folder)), path.stat().st_size) for path in files if path.exists()]
    # The smallest comes again: to KServe nothing left to download is nothing there.
    return sorted(complete, key=lambda file: file[1])[1:]


def _ignore(complete: list[tuple[str, int]]) -> list[str] | None:
    """KServe's `ignore_patterns` that leave out files; None where the environment's hold."""
    if not complete:
        return None
    return [*(_patterns("STORAGE_IGNORE_PATTERNS") or []), *(glob.escape(name) for name, _ in complete)]


def _patterns(variable: str) -> list[str] | None:
    from kserve_storage.kserve_storage import _parse_patterns_from_env

    patterns: list[str] | None = _parse_patterns_from_env(variable)
    return patterns


def _download_from_hub(uri: str, folder: Path, progress: Progress) -> None:
    """Download one commit: where the hub is away huggingface_hub takes whatever is in the folder for the model.

    Raises:
        ArgumentsError: the URI names no model.
        ModelLoadError: there is no such model or revision, it may not be read, or files are missing in the end.
    """
    from kserve_storage import Storage

    repository, _, revision = uri.removeprefix("hf://").partition(":")
    if repository.count("/") != 1:
        raise ArgumentsError(f"{uri} should be hf://owner/model or hf://owner/model:revision")
    try:
        info = HfApi().model_info(repository, revision=revision or None, files_metadata=True)
    except GatedRepoError as error:
        raise ModelLoadError(f"{repository} is gated: set HF_TOKEN to a token that has access to it") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"there is no model {repository} on the hub, or it is private and HF_TOKEN is not set to a token that has "
            "access to it"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{repository} has no revision {revision!r}") from error
    allowed, ignored = (_patterns(variable) for variable in _PATTERN_VARIABLES)
    files = list(
        filter_repo_objects(
            info.siblings or [], allow_patterns=allowed, ignore_patterns=ignored, key=lambda file: file.rfilename
        )
    )
    progress.expect("", sum(file.size or 0 for file in files))
    progress.check_room()
    # It would draw bars of its own.
    had_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        Storage.download(f"hf://{repository}:{info.sha}", str(folder))
    finally:
        if had_bars:
            enable_progress_bars()
    # Such as killed processes left; it takes new ones.
    for path in folder.glob(".cache/huggingface/download/**/*.incomplete"):
        path.unlink()
    missing = [file.rfilename for file in files if not (folder / file.rfilename).is_file()]
    if missing:
        raise ModelLoadError(f"{repository} is not complete: the hub did not send {', '.join(missing[:4])}")


def _find_model(folder: Path, shown: str) -> Path:
    """The folder itself, or the one in it that holds all there is: archives often have a folder around their files.

    Raises:
        ModelLoadError: no config.json is there, or none that is for all the files.
    """
    if (folder / "config.json").is_file():
        return folder
    # Hidden are git's files and the hub's.
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    folders = [name.parent for name in files if name.name == "config.json"]
    # Without files beside it: a model's own parts, such as 1_Pooling, have a config.json too.
    around = [parent for parent in folders if all(name.is_relative_to(parent) for name in files)]
    if around:
        return folder / around[0]
    if folders:
        raise ModelLoadError(f"{shown} holds a config.json not for all its files but in {_list(folders)}: name a model")
    raise ModelLoadError(f"{shown} holds no config.json, so it is not a Hugging Face model; it holds {_list(files)}")


def _list(names: list[Path]) -> str:
    return ", ".join([*map(str, names[:5]), *(["..."] if len(names) > 5 else [])]) or "nothing"


@contextlib.contextmanager
def _storage_log(progress: Progress) -> Iterator[None]:
    """Take what KServe logs: a line and more for every file, with the credentials of URIs."""
    storage_logger = logging.getLogger(_STORAGE_LOGGER)
    handler = _StorageLog(progress)
    level, propagate = storage_logger.level, storage_logger.propagate
    storage_logger.addHandler(handler)
    storage_logger.setLevel(logging.INFO)
    storage_logger.propagate = False
    try:
        yield
    finally:
        storage_logger.removeHandler(handler)
        storage_logger.setLevel(level)
        storage_logger.propagate = propagate


class _StorageLog(logging.Handler):
    """Sizes go to the progress, which refuses what has no room; warnings to the operator; errors are raised as well."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._filtered = progress.complete > 0 or any(map(_patterns, _PATTERN_VARIABLES))

    def emit(self, record: logging.LogRecord) -> None:
        match record.msg, record.args:
            case ("Found S3 object: %s (%d bytes)" | "Found blob: %s (%d bytes)", (str(name), int(count))):
                # The one before may have been skipped.
                self._progress.check_room()
                self._progress.expect(name, count)
                if not self._filtered:
                    self._progress.check_room()
            case ("Skipping %s due to file pattern filter", (str(name),)):
                self._progress.expect(name, 0)
            case ("Unpacking: %s", _):
                self._progress.stop()
                logger.info("unpacking %s", self._progress.shown)
        logger.log(
            logging.WARNING if record.levelno == logging.WARNING else logging.DEBUG, "%s", redact(record.getMessage())
        )
