"""Paths that several protocols have: a field of the body tells which protocol the request is of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.body import decode_json, hand_on, make_fields_decoder, read_body
from protocol.http.routing import Endpoint, RenderError, find_endpoint, with_errors
from protocol.huggingface.errors import render_hub_error
from protocol.openai.errors import render_openai_error
from protocol.tei.errors import render_tei_error
from runners.core.errors import InputError
from runners.core.probe_paths import ROOT_PATH
from runners.core.request_limits import RequestLimits
from runners.core.request_record import current_record


@dataclass(frozen=True, slots=True)
class SharedPath:
    """A path of several protocols.

    Attributes:
        protocols: the protocol of a request, by the field of the body that only that protocol has at this path.
        render_error: makes the answer to a request of an unknown protocol.
    """

    protocols: Mapping[str, str]
    render_error: RenderError


# All forms of errors but OpenAI's have the fields of V1's errors too.
SHARED_PATHS: Mapping[str, SharedPath] = {
    ROOT_PATH: SharedPath({"inputs": "huggingface", "documents": "elastic"}, render_hub_error),
    "/rerank": SharedPath({"texts": "tei", "documents": "openai"}, render_tei_error),
    "/tokenize": SharedPath({"prompt": "openai", "messages": "openai", "inputs": "tei"}, render_openai_error),
}


def share_routes(routes: Mapping[str, Sequence[Route]], limits: RequestLimits) -> list[Route]:
    """The routes for POST of the shared paths, which must be tried before those of the protocols.

    Args:
        routes: by protocol.
    """
    return [
        Route(path, _share(path, shared, routes, limits), methods=["POST"]) for path, shared in SHARED_PATHS.items()
    ]


def _share(path: str, shared: SharedPath, routes: Mapping[str, Sequence[Route]], limits: RequestLimits) -> Endpoint:
    """The endpoint that reads a body and passes it to the endpoint of its protocol."""
    endpoints: dict[str, Endpoint] = {
        protocol: find_endpoint(routes[protocol], path) for protocol in dict.fromkeys(shared.protocols.values())
    }
    decoder = make_fields_decoder(shared.protocols)

    async def answer(request: Request) -> Response:
        body = await read_body(request, limits)
        protocol = await body.check(lambda data: _find_protocol(decode_json(data, decoder, limits), shared))
        hand_on(request, body)
        if (record := current_record.get()) is not None:
            record.locate(protocol, path)
        return await endpoints[protocol](request)

    return with_errors(answer, shared.render_error)


def _find_protocol(fields: msgspec.Struct, shared: SharedPath) -> str:
    """The protocol of a body with these fields.

    Raises:
        InputError: they are those of no protocol or of several.
    """
    found = {protocol: name for name, protocol in shared.protocols.items() if getattr(fields, name) is not None}
    match [*found]:
        case [protocol]:
            return protocol
        case []:
            raise InputError(f"the body must have {' or '.join(shared.protocols)}")
    raise InputError(f"the body has {' and '.join(found.values())}; it must have one of them")
