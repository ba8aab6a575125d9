from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from benchmarks.reference_server import create_app, load
from tests.conftest import ModelFolder


def test_both_protocols_answer_what_the_engine_predicts() -> None:
    client = TestClient(create_app(lambda texts: [[float(len(text))] for text in texts]))
    assert client.get("/v2/health/ready").status_code == 200
    answer = client.post("/v1/models/model:predict", json={"instances": ["a", "bcd"]})
    assert answer.json() == {"predictions": [[1.0], [3.0]]}
    embedded = client.post("/v1/embeddings", json={"input": ["a", "bcd"]}).json()
    assert [one["embedding"] for one in embedded["data"]] == [[1.0], [3.0]]


@pytest.mark.parametrize("task", ["sequence_classification", "token_classification"])
def test_a_pipeline_has_an_answer_for_each_text(task: str, model_folder: ModelFolder) -> None:
    predict = load(str(model_folder("bert", task)), task, "pipeline")
    answers = predict(["a text", "another text"])
    assert len(answers) == 2
    assert all("'score'" in answer for answer in answers)
