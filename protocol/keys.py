"""The operator's keys, which clients of all protocols must send."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from protocol.errors import UnauthorizedError


class Keys:
    """Who may ask; everybody where there are no keys."""

    def __init__(self, keys: Sequence[str] | None) -> None:
        self._digests = [_digest(key) for key in keys or ()]

    def check(self, authorization: str) -> None:
        """Check the value of an `Authorization` header.

        Raises:
            UnauthorizedError: it has none of the keys.
        """
        if not self._digests:
            return
        scheme, _, key = authorization.partition(" ")
        # Digests, so that the comparison takes as long whatever the key.
        allowed = [hmac.compare_digest(_digest(key.strip()), digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(allowed):
            raise UnauthorizedError("this server asks for a key: send it as Authorization: Bearer KEY")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
