"""What is said of the errors of the hub."""

from __future__ import annotations

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError

from runners.modeling.hub_errors import explain_hub_error

_RESPONSE = httpx2.Response(403, request=httpx2.Request("GET", "https://hub"))


@pytest.mark.parametrize("error", [GatedRepoError("gated", response=_RESPONSE), LocalEntryNotFoundError("away")])
def test_the_password_of_a_mirror_is_left_out(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://me:hush@hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    reason = explain_hub_error("owner/model", None, error)
    assert reason is not None
    assert "https://hub" in reason
    assert "hush" not in reason
