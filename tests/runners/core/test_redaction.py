"""What is shown of URIs, of errors that repeat one, and of the addresses of proxies."""

from __future__ import annotations

import pytest

from runners.core.redaction import hide_users, redact, redact_address


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/m.zip?X-Amz-Credential=a&X-Amz-Signature=b", "https://host/m.zip?..."),
        ("git at https://user:pass@host/repo.git failed", "git at https://host/repo.git failed"),
        ("https://user:p@ss@host", "https://host"),
        (
            "Max retries exceeded with url: /m.zip?sig=b (Caused by",
            "Max retries exceeded with url: /m.zip?... (Caused by",
        ),
        ("s3://models/bert/", "s3://models/bert/"),
        ("oci://registry/model@sha256:ab", "oci://registry/model@sha256:ab"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://a:1,https://user:pass@b:2 or https://token@c", "http://a:1,https://b:2 or https://c"),
        ("why? ask a@b.c", "why? ask a@b.c"),
    ],
)
def test_hide_users(text: str, shown: str) -> None:
    assert hide_users(text) == shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("user:pass@proxy:3128", "proxy:3128"),
        ("http://user:p/a@s@proxy:3128", "http://proxy:3128"),
        ("http://proxy:3128", "http://proxy:3128"),
        ("localhost,.svc", "localhost,.svc"),
    ],
)
def test_redact_address(address: str, shown: str) -> None:
    assert redact_address(address) == shown
