"""Why the hub does not provide a model, and what to set. Importing this module imports no torch."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from runners.core.errors import brief
from runners.core.redaction import redact

_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def explain_hub_error(model: str, revision: str | None, error: BaseException) -> str | None:
    """The reason in one line, with the variable or argument to set; None if the error is not the hub's.

    Args:
        error: an error of huggingface_hub, or one that it caused.
    """
    for cause in _list_causes(error):
        if (reason := _explain(model, revision, cause)) is not None:
            # HF_ENDPOINT and proxies may hold passwords.
            return redact(reason)
    return None


def explain_offline(model: str) -> str:
    """Why a model that is not in the cache cannot be loaded offline."""
    return (
        f"HF_HUB_OFFLINE is set, and {model} is not complete in the cache {constants.HF_HUB_CACHE}: unset "
        "HF_HUB_OFFLINE to download it, or set HF_HOME to the cache that has it"
    )


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes, the deepest first: `transformers` wraps the hub's errors."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    yield from reversed(causes)


def _explain(model: str, revision: str | None, error: BaseException) -> str | None:
    page = f"{constants.ENDPOINT}/{model}"
    match error:
        case GatedRepoError():
            return (
                f"{model} is gated: accept its terms at {page}, and set HF_TOKEN to the token of an account with access"
            )
        case RepositoryNotFoundError():
            return (
                f"there is no model {model} on the hub ({page}), or it is private and HF_TOKEN is not set to a token "
                "that has access to it"
            )
        case RevisionNotFoundError():
            return f"{model} has no revision {revision!r}: set --model_revision to one that {page} lists"
        case HFValidationError():
            return f"{model!r} is no folder and no hub id: set --model_id to owner/model, or --model_dir to a folder"
        case OfflineModeIsEnabled():
            return explain_offline(model)
        case LocalEntryNotFoundError():
            # Its cause, if there is one, has been looked at.
            return explain_offline(model) if constants.HF_HUB_OFFLINE else _explain_unreachable(error)
        case EntryNotFoundError():
            return None
        case HfHubHTTPError():
            return _explain_status(model, error)
        case OSError(errno=number) if number in _NOT_WRITABLE and _is_in_cache(error):
            return (
                f"{model} cannot be downloaded: the cache {constants.HF_HUB_CACHE} cannot be written: set HF_HOME to a "
                "folder that can"
            )
    return None


def _explain_status(model: str, error: HfHubHTTPError) -> str | None:
    status = getattr(error.response, "status_code", None)
    if status in (401, 403):
        return f"the hub refuses {model} with status {status}: set HF_TOKEN to a token that has access to it"
    return None


def _explain_unreachable(error: BaseException) -> str:
    causes = [cause for cause in _list_causes(error) if cause is not error]
    reason = f" ({brief(causes[0])})" if causes and isinstance(causes[0], Exception) else ""
    return (
        f"the hub at {constants.ENDPOINT} cannot be reached{reason}: HTTPS_PROXY names a proxy, SSL_CERT_FILE "
        "authorities, HF_ENDPOINT a mirror, and HF_HUB_OFFLINE=1 uses the cache alone"
    )


def _is_in_cache(error: OSError) -> bool:
    name = error.filename
    return isinstance(name, str) and Path(name).is_relative_to(Path(constants.HF_HUB_CACHE).parent)
