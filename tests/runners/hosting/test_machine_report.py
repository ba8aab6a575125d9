"""What doctor says of folders and networks."""

from __future__ import annotations

import os
from pathlib import Path

from runners.hosting.machine_report import describe_folders
from tests.restricted import UID, needs_root


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


@needs_root
def test_a_folder_that_this_user_may_not_enter(tmp_path: Path) -> None:
    """HOME of an image may belong to root."""
    tmp_path.chmod(0o700)
    os.seteuid(UID)
    try:
        lines = [*describe_folders({"BENTOML_HOME": f"{tmp_path}/home/bentoml"})]
    finally:
        os.seteuid(0)
    assert f"BENTOML_HOME: {tmp_path}/home/bentoml (it CANNOT be written)" in lines
