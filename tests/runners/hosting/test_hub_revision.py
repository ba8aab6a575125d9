"""A job pins the commit of a model of the hub; a cache of the hub stands for the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from runners.core.arguments import Arguments
from runners.hosting.hub_revision import pin_revision

OLD, NEW = "0a" * 20, "0b" * 20


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the model `team/bert`, whose branches are `main` and `old`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for branch, commit in (("main", NEW), ("old", OLD)):
        for name, content in ((f"refs/{branch}", commit), (f"snapshots/{commit}/config.json", "{}")):
            path = tmp_path / "models--team--bert" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    return tmp_path


@pytest.mark.parametrize(("revision", "pinned"), [(None, NEW), ("main", NEW), ("old", OLD), (OLD, OLD)])
def test_a_model_of_the_hub(revision: str | None, pinned: str) -> None:
    assert pin_revision(Arguments(model_id="team/bert", model_revision=revision)).model_revision == pinned


@pytest.mark.parametrize("model", ["team/other", "not an id", "a/b/c"])
def test_a_model_that_cannot_be_had(model: str) -> None:
    assert pin_revision(Arguments(model_id=model)).model_revision is None


def test_a_folder(cache: Path) -> None:
    assert pin_revision(Arguments(model_dir=str(cache))).model_revision is None
