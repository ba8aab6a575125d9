"""The attributes of spans, by OpenTelemetry's semantic conventions for HTTP, RPC and generative AI.

https://opentelemetry.io/docs/specs/semconv/. The names that begin with `runtime.` are this server's own. No attribute
has a text of a request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import grpc

from runners.core.request_record import UNKNOWN_ROUTE, ReadHeader, RequestRecord
from runners.core.tracing import Target

if TYPE_CHECKING:
    from runners.core.generation import Sampling

Attributes = dict[str, str | bool | int | float | list[str]]

_PROVIDER = "huggingface-runtime"
# The longest value that comes from a client.
_LONGEST = 256
# The codes that are errors of the server; others are the caller's.
_SERVER_ERRORS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_GRPC_NUMBERS: Mapping[str, int] = {code.name: code.value[0] for code in grpc.StatusCode}
# The operations of generative AI, by the end of the route.
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/embed": "embeddings",
}
# Fields of a request's sampling that were set, by their names here.
_SAMPLING = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
}


def is_grpc(record: RequestRecord) -> bool:
    return record.protocol == "grpc"


def name_request(record: RequestRecord) -> str:
    """The name of a request's span: few names, whatever clients send."""
    if is_grpc(record):
        return record.route.removeprefix("/")
    # The convention's word for a method that the server does not know is HTTP.
    method = record.method if record.method in _METHODS else "HTTP"
    return method if record.route == UNKNOWN_ROUTE else f"{method} {record.route}"


def describe_head(record: RequestRecord, read_header: ReadHeader) -> Attributes:
    """What only the head of a request tells."""
    found: Attributes = {}
    if (agent := read_header("user-agent")) is not None:
        found["user_agent.original"] = agent[:_LONGEST]
    if not is_grpc(record) and (host := read_header("host")):
        found |= _describe_address(host)
    return found


def describe_request(record: RequestRecord) -> Attributes:
    """What is known at the end of a request."""
    found = _describe_grpc(record.route, record.status) if is_grpc(record) else _describe_http(record)
    if is_failed(record):
        found["error.type"] = record.status
    if record.refusal is not None:
        found["runtime.refusal"] = record.refusal
        if _has_failed_stream(record):
            # Its status is one of success.
            found["error.type"] = record.refusal
    if record.cancelled:
        found["runtime.cancelled"] = True
    if record.model_name:
        found["runtime.model_name"] = record.model_name
        if record.texts:
            found["runtime.texts"] = record.texts
        found |= _describe_operation(record)
    return found


def is_failed(record: RequestRecord) -> bool:
    """Whether the server, and not its client, has failed."""
    if is_grpc(record):
        return record.status in _SERVER_ERRORS
    return record.status.startswith("5") or _has_failed_stream(record)


def _has_failed_stream(record: RequestRecord) -> bool:
    """Whether an answer began with a status of success, and ended with an error."""
    return record.status.startswith("2") and record.refusal is not None


def _describe_http(record: RequestRecord) -> Attributes:
    found: Attributes = {
        "http.request.method": record.method if record.method in _METHODS else "_OTHER",
        "url.path": record.path[:_LONGEST],
        "url.scheme": record.scheme,
    }
    if record.route != UNKNOWN_ROUTE:
        found["http.route"] = record.route
    if record.status:
        found["http.response.status_code"] = int(record.status)
    return found


_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


def _describe_grpc(path: str, status: str) -> Attributes:
    """The attributes that the conventions name today, and those before them that backends still read."""
    method = path.removeprefix("/")
    service, slash, _ = method.rpartition("/")
    found: Attributes = {"rpc.system.name": "grpc", "rpc.system": "grpc", "rpc.method": method}
    if slash:
        found["rpc.service"] = service
    if status:
        found["rpc.response.status_code"] = status
        found["rpc.grpc.status_code"] = _GRPC_NUMBERS.get(status, _GRPC_NUMBERS["UNKNOWN"])
    return found


def _describe_operation(record: RequestRecord) -> Attributes:
    """The attributes of generative AI; none for other requests."""
    route = record.route
    operation = next((name for path, name in _OPERATIONS.items() if route.endswith(path)), None)
    if operation is None and record.prompt_tokens:
        operation = "text_completion"
    if operation is None:
        return {}
    found: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": _PROVIDER,
        "gen_ai.request.model": record.model_name,
        "gen_ai.response.model": record.model_name,
    }
    if tokens := record.prompt_tokens or record.tokens:
        found["gen_ai.usage.input_tokens"] = tokens
    if record.prompt_tokens:
        found["gen_ai.usage.output_tokens"] = record.generation_tokens
    if record.finish_reasons:
        found["gen_ai.response.finish_reasons"] = [*record.finish_reasons]
    if record.sampling is not None:
        found |= _describe_sampling(record.sampling)
    if record.first_token:
        found["gen_ai.response.time_to_first_chunk"] = record.first_token - record.started
    return found


def _describe_sampling(sampling: Sampling) -> Attributes:
    values = {name: getattr(sampling, field) for field, name in _SAMPLING.items()}
    return {name: value for name, value in values.items() if value is not None}


def name_call(target: Target) -> str:
    """The name of the span of a call to another server."""
    return f"{target.method} {target.path}" if target.method else target.path.removeprefix("/")


def describe_call(target: Target) -> Attributes:
    address = _describe_address(target.address)
    if not target.method:
        return address | _describe_grpc(target.path, "")
    url = f"{target.scheme}://{target.address}{target.path}"
    return address | {"http.request.method": target.method, "url.full": url}


def describe_call_status(status: int | str) -> Attributes:
    """The status of the answer to a call; the error, too, if it is one."""
    if isinstance(status, int):
        found: Attributes = {"http.response.status_code": status}
        return found | ({"error.type": str(status)} if is_error(status) else {})
    number = _GRPC_NUMBERS.get(status, _GRPC_NUMBERS["UNKNOWN"])
    found = {"rpc.response.status_code": status, "rpc.grpc.status_code": number}
    return found | ({"error.type": status} if is_error(status) else {})


def is_error(status: int | str) -> bool:
    """Whether a client takes an answer's status for an error."""
    return status >= 400 if isinstance(status, int) else status != "OK"


def _describe_address(host: str) -> Attributes:
    """A host with or without a port."""
    try:
        parts = urlsplit(f"//{host[:_LONGEST]}")
        address, port = parts.hostname, parts.port
    except ValueError:
        return {}
    found: Attributes = {} if address is None else {"server.address": address}
    return found if port is None else found | {"server.port": port}
