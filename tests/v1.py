"""Requests of KServe's V1 protocol."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient


def predict(client: TestClient, instances: list[Any], **parameters: Any) -> list[Any]:
    response = client.post("/v1/models/model:predict", json={"instances": instances, "parameters": parameters})
    assert response.status_code == 200, response.text
    predictions: list[Any] = response.json()["predictions"]
    return predictions
