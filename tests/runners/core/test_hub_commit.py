"""The commit of a model of the hub is in the path of its files."""

from __future__ import annotations

import pytest

from runners.core.hub_commit import find_commit

COMMIT = "0f" * 20


@pytest.mark.parametrize(
    ("path", "commit"),
    [
        (f"/root/.cache/huggingface/hub/models--a--b/snapshots/{COMMIT}", COMMIT),
        (f"/root/.cache/huggingface/hub/models--a--b/snapshots/{COMMIT}/config.json", COMMIT),
        ("/models/snapshots", None),
        ("/models/bert", None),
        ("snapshots", None),
    ],
)
def test_paths(path: str, commit: str | None) -> None:
    assert find_commit(path) == commit
