"""Access over gRPC: a forbidden call is refused before its message is read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from protocol.http.errors import ProtocolError, describe_error, grpc_code, name_refusal
from protocol.http.middleware.authentication import Access
from protocol.open_inference.grpc.call_records import CallRecord, read_metadata
from protocol.open_inference.grpc.methods import CHANGING_CALLS, KNOWN_CALLS, OPEN_CALLS
from runners.core.errors import LimitExceededError
from runners.core.request_limits import RequestLimits
from runners.core.request_record import UNKNOWN_ROUTE

REQUEST_ID = "x-request-id"


class RefuseForbidden:
    """Checks the key of every call that is not open, unknown calls included."""

    def __init__(self, access: Access, limits: RequestLimits) -> None:
        self._access = access
        self._limits = limits

    def check(self, details: grpc.HandlerCallDetails) -> Any:
        """The handler that refuses a call; None for a call that may pass."""
        metadata = details.invocation_metadata or ()
        try:
            # gRPC accepts headers of 16 MiB from a client that has not acknowledged its settings.
            self._limits.check("max_headers", len(metadata), "headers")
        except LimitExceededError as error:
            return self._refuse(error, details.method, None)
        is_change = details.method in CHANGING_CALLS
        if details.method in OPEN_CALLS or (not is_change and not self._access.asks_clients):
            return None
        # Values of names that end in -bin are bytes.
        texts = [(name, value) for name, value in metadata if isinstance(value, str)]
        headers = [(name.encode(), value.encode()) for name, value in texts]
        try:
            if is_change:
                self._access.check_change(headers)
            else:
                self._access.check_client(headers)
        except ProtocolError as error:
            return self._refuse(error, details.method, dict(texts).get(REQUEST_ID))
        return None

    def _refuse(self, error: Exception, method: str, request_id: str | None) -> Any:
        status, message, headers = describe_error(error)
        refusal = name_refusal(error, status)
        code = grpc.StatusCode[grpc_code(status)]
        route = method if method in KNOWN_CALLS else UNKNOWN_ROUTE
        echo = {} if request_id is None else {REQUEST_ID: request_id}

        async def refuse(_: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> None:
            with CallRecord(route, read_metadata(context), context) as record:
                record.path = method
                record.status, record.refusal, record.request_id = code.name, refusal, request_id
                await context.abort(code, message, (*echo.items(), *headers.items()))

        # A stream, whatever the call is, so that no message is read.
        return grpc.stream_stream_rpc_method_handler(refuse)
