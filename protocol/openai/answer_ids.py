"""The ids of answers."""

from __future__ import annotations

import uuid

from protocol.http.middleware.request_id import request_id
from runners.core.log_labels import printable


def make_answer_id(prefix: str, client_id: str | None) -> str:
    """
    Args:
        client_id: the id that the client gave the request in its body; X-Request-Id wins over it, as in vLLM.
    """
    return f"{prefix}-{printable(request_id.get() or client_id or uuid.uuid4().hex)}"
