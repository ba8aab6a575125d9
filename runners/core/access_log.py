"""The access line of each request, and KServe's line of its latency; both come from the request's record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import orjson

from runners.core.log_labels import printable
from runners.core.log_lines import render_fields
from runners.core.probe_paths import is_probe
from runners.core.request_record import Observer, RequestRecord

logger = logging.getLogger(__name__)

_LOGGER = "access"
_LONGEST_PATH = 400


def describe_request(record: RequestRecord) -> dict[str, object]:
    """The fields of a request's access line; those that it has no value of are left out."""
    started, queued = record.started, record.queued
    fields: dict[str, object] = {
        "protocol": record.protocol,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "milliseconds": _milliseconds(started, record.ended),
    }
    if record.model_name:
        fields["model"] = record.model_name
    if record.request_id is not None:
        fields["request_id"] = printable(record.request_id)
    if record.trace_id:
        fields["trace_id"], fields["span_id"] = record.trace_id, record.span_id
    if record.texts:
        fields["texts"] = record.texts
    if record.tokens:
        fields["tokens"] = record.tokens
    if record.prompt_tokens:
        fields["prompt_tokens"] = record.prompt_tokens
    if record.generation_tokens:
        fields["generation_tokens"] = record.generation_tokens
    if queued:
        fields["read_ms"] = _milliseconds(started, queued)
        if computing := record.computing:
            fields["queue_ms"] = _milliseconds(queued, computing)
            if record.computed:
                fields["compute_ms"] = _milliseconds(computing, record.computed)
    if record.rendering:
        fields["render_ms"] = _milliseconds(record.rendering, record.ended)
    if record.first_token:
        fields["first_token_ms"] = _milliseconds(started, record.first_token)
    if record.finish_reasons:
        fields["finish"] = ",".join(sorted(set(record.finish_reasons)))
    if record.refusal is not None:
        fields["refusal"] = record.refusal
    if record.cancelled:
        fields["cancelled"] = True
    return fields


def _milliseconds(start: float, end: float) -> float:
    # An integer of microseconds, which costs a third of what `round` to 3 digits does.
    return int((end - start) * 1e6) / 1000


def make_access_log(
    write: Callable[[bytes], None], process: dict[str, object], is_json: bool, component: str, logs_probes: bool
) -> Observer:
    """An observer of records that writes their access lines, past `logging`, which would take longer than the rest.

    Args:
        process: the fields that say which process logs.
        component: the name of the process in a line of text.
        logs_probes: whether health probes and scrapes have lines too.
    """

    def write_line(record: RequestRecord) -> None:
        if not logs_probes and is_probe(record.method, record.route):
            return
        fields = describe_request(record)
        if is_json:
            write(render_fields(time.time(), "info", _LOGGER, {"message": "request", **process, **fields}))
            return
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        pairs = " ".join(f"{name}={_show(value)}" for name, value in fields.items())
        write(f"{seconds} [INFO] [{component}] {pairs}\n".encode("utf-8", "backslashreplace"))

    return write_line


def _show(value: object) -> str:
    """A value on a line of text, in quotation marks if it could be taken for several."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if text.isprintable() and not set(text) & {" ", '"', "="}:
        return text
    return orjson.dumps(text.encode("utf-8", "replace").decode()).decode()


def log_latency(record: RequestRecord) -> None:
    """An observer of records for KServe's `enable_latency_logging`; the line itself has the request's id."""
    logger.info(
        "requestId: %s, method: %s, path: %s, status: %s, milliseconds: %.3f",
        # KServe's text for a missing id.
        "N.A." if record.request_id is None else printable(record.request_id),
        record.method,
        printable(record.path, _LONGEST_PATH),
        record.status,
        (record.ended - record.started) * 1000,
        extra={"unlabelled": True},
    )
