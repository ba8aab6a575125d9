"""What doctor says of folders and networks."""

from __future__ import annotations

from runners.hosting.machine_report import describe_folders


def test_passwords_of_proxies_and_mirrors_are_left_out() -> None:
    """A proxy may have no scheme."""
    environment = {
        "HTTP_PROXY": "me:hush@proxy:3128", "HTTPS_PROXY": "http://me:hu/sh@proxy:3128", "NO_PROXY": "localhost,.svc",
        "HF_ENDPOINT": "https://me:hush@hub",
    }  # fmt: skip
    lines = [*describe_folders(environment)]
    assert {
        "HTTP_PROXY is proxy:3128",
        "HTTPS_PROXY is http://proxy:3128",
        "NO_PROXY is localhost,.svc",
        "HF_ENDPOINT is https://hub",
    } <= {*lines}
