"""The answers in the forms of pipelines, at SageMaker's path, against the pipelines of `transformers`."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.protocol.conftest import Run
from tests.protocol.huggingface.pipelines import check_records, reference

TEXTS = ["Sarah lives in Munich", "My unbelievable film is good. It rains.", "word " * 600]
LABELS = ["sports", "the film"]


def post(client: TestClient, inputs: Any, **parameters: Any) -> Any:
    response = client.post("/invocations", json={"inputs": inputs, "parameters": parameters})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("kind", ["sequence_classification", "multi_label"])
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 1}, {"top_k": 2}, {"function_to_apply": "sigmoid"}, {"function_to_apply": "none"}]
)
def test_text_classification(kind: str, options: dict[str, Any], run: Run) -> None:
    served = run(kind)
    classify = reference("text-classification", served.folder)
    for inputs in (TEXTS[0], TEXTS, TEXTS[:1]):
        check_records(post(served.client, inputs, **options), classify(inputs, **options, truncation=True))


def test_the_operator_s_options_are_the_defaults(run: Run) -> None:
    client = run("sequence_classification", top_k=2).client
    assert [len(classes) for classes in post(client, TEXTS)] == [2] * 3
    assert len(post(client, TEXTS[0])) == 2
    [entity, *_] = post(run("token_classification", aggregation_strategy="simple").client, TEXTS[0])
    assert "entity_group" in entity


@pytest.mark.parametrize("options", [{}, {"aggregation_strategy": "simple"}, {"ignore_labels": []}])
def test_token_classification(options: dict[str, Any], run: Run) -> None:
    """A word is the text's own, while the pipeline decodes tokens, in lower case here; tokens have no `index`."""
    served, texts = run("token_classification"), TEXTS[:2]
    expected = [
        [
            {name: value for name, value in entity.items() if name != "index"}
            | {"word": text[entity["start"] : entity["end"]], "score": float(entity["score"])}
            for entity in reference("token-classification", served.folder)(text, **options)
        ]
        for text in texts
    ]
    check_records(post(served.client, texts, **options), expected)
    check_records(post(served.client, texts[0], **options), expected[0])


@pytest.mark.parametrize("options", [{}, {"multi_label": True}])
def test_zero_shot_classification(options: dict[str, Any], run: Run) -> None:
    served = run("zero_shot_classification")
    classify = reference("zero-shot-classification", served.folder)
    for inputs in (TEXTS[0], TEXTS):
        found = post(served.client, inputs, candidate_labels=LABELS, **options)
        expected = classify(inputs, LABELS, **options)
        for one, other in zip(
            found if isinstance(inputs, list) else [found],
            expected if isinstance(inputs, list) else [expected],
            strict=True,
        ):
            assert one == {**other, "scores": pytest.approx(other["scores"], abs=1e-4)}


@pytest.mark.parametrize(
    ("kind", "inputs"),
    [
        ("fill_mask", "The capital of France is [MASK]."),
        ("question_answering", {"question": "Where does Sarah live?", "context": "Sarah lives in Munich."}),
        ("text_embedding", TEXTS[0]),
        ("text_embedding", {"source_sentence": TEXTS[0], "sentences": TEXTS}),
    ],
)
def test_other_tasks_answer_as_elsewhere(kind: str, inputs: Any, run: Run) -> None:
    client = run(kind).client
    assert post(client, inputs) == client.post("/", json={"inputs": inputs}).json()
