"""What messages show of URIs and addresses that may hold credentials."""

from __future__ import annotations

import re

# A password may hold an @ itself.
_USER = re.compile(r"://[^\s/'\"]+@")
_QUERY = re.compile(r"\?[^\s'\"]+")
_ADDRESS_USER = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)?.*@")


def hide_users(text: str) -> str:
    """The text without the users and passwords of its URIs."""
    return _USER.sub("://", text)


def redact(text: str) -> str:
    """The text without the users, passwords and queries of its URIs; the query of a pre-signed URI is a credential."""
    return _QUERY.sub("?...", hide_users(text))


def redact_address(address: str) -> str:
    """The address of a server or proxy, with or without a scheme, without its user and password."""
    return _ADDRESS_USER.sub(r"\1", address)
