"""The server, for the protocols that make routes and describe themselves in the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.http.middleware.authentication import Access
from protocol.http.open_paths import BENTOML_ASSETS, OPEN_PATHS
from protocol.openai_paths import AT_ROOT, MODEL_LIST
from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError
from runners.core.models import Models

# The first segments of all paths, such as `v1`: below them, a prefix would hide or change other calls. A start refuses
# such a prefix before the protocols are imported, so those that have no module for their paths alone stand here.
_SEGMENTS = {path.split("/")[1] for path in (*AT_ROOT, *OPEN_PATHS, BENTOML_ASSETS)} - {""} | {
    "bentoml", "decode", "embed", "embed_all", "embed_sparse", "info", "invocations", "meta", "models", "pipeline",
    "predict", "similarity", "vectors",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServerContext:
    """The server's models and its operator's settings.

    Attributes:
        arguments: the operator's arguments, the limits among them.
        access: who may make which requests.
        openai_prefix: the prefix of OpenAI's paths, which are also served without it; empty, or such as `/openai`.
        predict_route: the path at which Vertex AI calls models; None elsewhere.
    """

    models: Models
    arguments: Arguments
    access: Access
    openai_prefix: str
    predict_route: str | None = None


def make_context(
    models: Models, arguments: Arguments, openai_prefix: str = "/openai", predict_route: str | None = None
) -> ServerContext:
    """The context, with the prefix in its usual form.

    Raises:
        ArgumentsError: the prefix is that of other paths.
    """
    return ServerContext(models, arguments, Access(arguments), normalize_prefix(openai_prefix), predict_route)


def check_root_path(root_path: str | None, openai_prefix: str) -> str:
    """The prefix of --root_path; empty for none.

    Args:
        openai_prefix: from `normalize_prefix`.

    Raises:
        ArgumentsError: paths of this server begin with its first segment, so that it could not be told from them.
    """
    segment = (root_path or "").strip("/").partition("/")[0]
    # A prefix such as /models/ner hides only the calls whose path names a model ner.
    taken = _SEGMENTS - {MODEL_LIST.strip("/")} | {openai_prefix.strip("/").partition("/")[0]}
    if segment and (segment in taken or root_path == MODEL_LIST):
        raise ArgumentsError(
            f"root_path is {root_path}, but this server has paths of its own at /{segment}: choose another prefix in "
            "the proxy, or let it remove the prefix and leave --root_path out"
        )
    return root_path or ""


def normalize_prefix(prefix: str) -> str:
    """The prefix with a slash before it and none after it; empty for no prefix.

    Raises:
        ArgumentsError: other paths of this server begin with the prefix, or with its first segment.
    """
    segment = prefix.strip("/").partition("/")[0]
    if segment in _SEGMENTS:
        raise ArgumentsError(
            f"KSERVE_OPENAI_ROUTE_PREFIX is {prefix}, but this server has other paths at /{segment}; "
            "choose another prefix, such as /openai"
        )
    return f"/{prefix.strip('/')}".rstrip("/")
