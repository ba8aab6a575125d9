"""CloudEvents over HTTP around V1's `:predict`: an event is answered by an event of the same mode, as in KServe.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import msgspec
import orjson
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from protocol.http.body import convert_json, decode_json
from protocol.http.headers import first_headers
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

_REQUIRED = ("specversion", "id", "source", "type")
# The versions of the specification that KServe accepts.
_VERSIONS = ("1.0", "0.3")
STRUCTURED_EVENT_TYPE = "application/cloudevents+json"
_STRUCTURED_TYPE = STRUCTURED_EVENT_TYPE.encode()
_PREFIX = b"ce-"
_REQUIRED_HEADERS = frozenset(_PREFIX + name.encode() for name in _REQUIRED)
_envelope_decoder = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Event:
    """An event in a request.

    Attributes:
        data: JSON in bytes, or a decoded JSON value.
        structured: whether attributes and data were in the body (structured mode), or the attributes in headers.
    """

    attributes: Mapping[str, Any]
    data: Any
    structured: bool


def read_event(request: Request, body: bytes, limits: RequestLimits) -> Event | None:
    """The event in a request; None if there is none.

    Raises:
        LimitExceededError: the event exceeds a limit.
        InputError: a required attribute or the data is missing, or the version is unknown.
    """
    headers = first_headers(request.scope)
    if _is_structured(headers.get(b"content-type", b"")):
        event = _read_structured(body, limits)
    elif not _REQUIRED_HEADERS.isdisjoint(headers):
        event = Event(_read_headers(headers), body, structured=False)
    else:
        return None
    missing = [
        name for name in _REQUIRED if not (isinstance(event.attributes.get(name), str) and event.attributes[name])
    ]
    if missing:
        raise InputError(f"the event has no {', '.join(missing)}: each must be a string that is not empty")
    if (version := event.attributes["specversion"]) not in _VERSIONS:
        raise InputError(f"the event's specversion is {version}; this server takes {' and '.join(_VERSIONS)}")
    return event


def _is_structured(content_type: bytes) -> bool:
    return content_type.partition(b";")[0].strip().lower() == _STRUCTURED_TYPE


def _read_headers(headers: Mapping[bytes, bytes]) -> dict[str, str]:
    pairs = ((name, value) for name, value in headers.items() if name.startswith(_PREFIX))
    return {name.removeprefix(_PREFIX).decode("latin-1"): value.decode("latin-1") for name, value in pairs}


def _read_structured(body: bytes, limits: RequestLimits) -> Event:
    envelope = decode_json(body, _envelope_decoder, limits, "the event")
    data, encoded = envelope.pop("data", UNSET), envelope.pop("data_base64", UNSET)
    # The specification treats null as unset.
    attributes = {name: value for name, value in envelope.items() if value is not None}
    limits.check("max_parameters", len(attributes), "attributes of an event")
    if data is UNSET and encoded is not UNSET:
        return Event(attributes, convert_json(encoded, bytes, "the event's data_base64"), structured=True)
    if data is UNSET:
        raise InputError("the event has no data: it must be an object, as the body of a request without an event")
    return Event(attributes, data, structured=True)


def answer_event(event: Event, response: Response, model_name: str) -> Response:
    """The response as an event, in the mode of the event that it answers.

    As in KServe, the environment's CE_TYPE and CE_SOURCE are the answer's type and source, and with CE_MERGE=true the
    answer keeps all other attributes of the request's event, except its id and time.
    """
    attributes = _create_attributes(event, model_name)
    if event.structured:
        envelope = b"".join((orjson.dumps(attributes)[:-1], b',"data":', response.body, b"}"))
        return Response(envelope, media_type=STRUCTURED_EVENT_TYPE)
    response.headers.update({f"ce-{name}": value for name, value in attributes.items()})
    return response


def _create_attributes(event: Event, model_name: str) -> dict[str, Any]:
    is_merged = os.environ.get("CE_MERGE", "false").lower() == "true"
    # The names of attributes are in lower case.
    attributes = {name.lower(): value for name, value in event.attributes.items()} if is_merged else {}
    for name in ("id", "time") if event.structured else ("id", "time", "datacontenttype"):
        attributes.pop(name, None)
    attributes["type"] = os.environ.get("CE_TYPE", "io.kserve.inference.response")
    # A source is a URI reference.
    attributes["source"] = os.environ.get("CE_SOURCE", f"io.kserve.inference.{quote(model_name, safe='/:')}")
    attributes.setdefault("specversion", "1.0")
    return attributes | {"id": str(uuid.uuid4()), "time": datetime.now(UTC).isoformat()}
