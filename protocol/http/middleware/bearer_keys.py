"""Bearer keys (RFC 6750), whose digests are compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Sequence

from runners.core.api_keys import KeyFile, digest_key


class Keys:
    """Keys of one kind, from an argument, a file or both."""

    def __init__(self, digests: Sequence[bytes] | None, file: str | None) -> None:
        """
        Args:
            digests: the digests of the keys in the argument; None without the argument.
            file: the path of a file of keys; None without a file.
        """
        self._digests = tuple(digests or ())
        self._file = None if file is None else KeyFile(file)
        # With an empty file a key is needed, but no key is valid.
        self.configured = digests is not None or file is not None

    def include(self, authorization: Sequence[bytes]) -> bool:
        """Whether a request has one `Authorization` header, with one of the keys."""
        if len(authorization) != 1:
            return False
        scheme, _, key = authorization[0].partition(b" ")
        digest = digest_key(key.strip(b" \t"))
        digests = self._digests if self._file is None else (*self._digests, *self._file.digests)
        matches = [hmac.compare_digest(digest, each) for each in digests]
        return scheme.lower() == b"bearer" and any(matches)
