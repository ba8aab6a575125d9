"""Texts that the stock model itself refuses are the caller's, and only theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from runners.core.task import Task
from tests.architectures.models import save_model
from tests.architectures.registry import Pair
from tests.conftest import Serve


@pytest.fixture(scope="module")
def bart(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """Its classifier reads the token that ends a text, and wants one."""
    folder: Path = tmp_path_factory.mktemp("bart")
    save_model(Pair("bart", Task.SEQUENCE_CLASSIFICATION), folder)
    return serve(model_dir=folder).client


def infer(client: TestClient, *texts: list[int]) -> Any:
    ids = {"name": "input_ids", "shape": [len(texts), len(texts[0])], "datatype": "INT64", "data": list(texts)}
    return client.post("/v2/models/model/infer", json={"inputs": [ids]})


def test_a_text_that_the_model_refuses_is_named(bart: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    end = 2
    answered = infer(bart, [0, 10, end])
    assert answered.status_code == 200
    refused = infer(bart, [0, 10, end], [0, 10, 11])
    assert refused.status_code == 400
    assert refused.json() == {
        "error": "text 1 cannot be served: the model does not run on it: Each example must contain at least one <eos> token."
    }
    assert "Traceback" not in caplog.text
    assert infer(bart, [0, 10, end]).json()["outputs"] == answered.json()["outputs"]
