"""The scores of cross-encoders against sentence-transformers, in all forms that its files can have."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder
from starlette.testclient import TestClient

from runners.core.errors import ModelLoadError
from tests.conftest import ModelFolder, Serve

PAIRS = [("Where do pandas live?", "In China."), ("x", ""), ("word " * 300, "and " * 600)]
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
FILE = "config_sentence_transformers.json"


def score(client: TestClient, pairs: list[tuple[str, str]]) -> Any:
    first, second = (list(side) for side in zip(*pairs, strict=True))
    response = client.post("/v1/score", json={"text_1": first, "text_2": second})
    assert response.status_code == 200, response.text
    return [each["score"] for each in response.json()["data"]]


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2", "modernbert"])
def test_scores_are_those_of_sentence_transformers(family: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder(family, "text_ranking")
    client, reference = serve(model_dir=folder).client, CrossEncoder(str(folder), device="cpu")
    np.testing.assert_allclose(score(client, PAIRS), reference.predict(PAIRS), atol=1e-4)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=5))
    def check(pairs: list[tuple[str, str]]) -> None:
        np.testing.assert_allclose(score(client, pairs), reference.predict(pairs), atol=1e-4)

    check()


@pytest.mark.parametrize(
    ("config", "file", "raw"),
    [
        ({}, None, False),
        ({"sentence_transformers": {"version": "5.0.0"}}, None, False),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, None, True),
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, None, False),
        ({"sbert_ce_default_activation_function": IDENTITY}, None, True),
        ({"sbert_ce_default_activation_function": SIGMOID}, None, False),
        ({"sbert_ce_default_activation_function": SIGMOID, "sentence_transformers": {"activation_fn": IDENTITY}}, None,
         True),
        ({}, {"activation_fn": IDENTITY}, True),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": SIGMOID}, False),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, {"activation_fn": None}, True),
        ({"problem_type": "regression"}, None, False),
    ],
)  # fmt: skip
def test_activations(
    config: dict[str, Any],
    file: dict[str, Any] | None,
    raw: bool,
    model_folder: ModelFolder,
    serve: Serve,
    tmp_path: Path,
) -> None:
    folder = model_folder("bert", "text_ranking", **config)
    if file is not None:
        CrossEncoder(str(folder), device="cpu").save_pretrained(str(tmp_path))
        folder = Path(shutil.copy(folder / "config.json", tmp_path)).parent
        (folder / FILE).write_text(json.dumps({"model_type": "CrossEncoder", "prompts": {}, **file}))
    reference = CrossEncoder(str(folder), device="cpu")
    assert isinstance(reference.activation_fn, torch.nn.Identity) == raw
    np.testing.assert_allclose(score(serve(model_dir=folder).client, PAIRS), reference.predict(PAIRS), atol=1e-4)


def test_what_sentence_transformers_saves(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    model = CrossEncoder(str(model_folder("bert", "text_ranking")), device="cpu", activation_fn=torch.nn.Identity())
    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(score(serve(model_dir=tmp_path).client, PAIRS), model.predict(PAIRS), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_seq_length": 9},
        {"tokenizer_args": {"model_max_length": 9, "truncation_side": "left"}},
        {"processing_kwargs": {"text": {"max_length": 9}}},
        {"do_lower_case": True},
    ],
    ids=str,
)
def test_settings_of_its_transformer(
    settings: dict[str, Any], model_folder: ModelFolder, serve: Serve, tmp_path: Path
) -> None:
    model = CrossEncoder(str(model_folder("roberta", "text_ranking")), device="cpu")
    model.save_pretrained(str(tmp_path))
    file = tmp_path / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    expected = CrossEncoder(str(tmp_path), device="cpu").predict(PAIRS)
    assert np.abs(expected - model.predict(PAIRS)).max() > 1e-3, "the setting changes nothing"
    np.testing.assert_allclose(score(serve(model_dir=tmp_path).client, PAIRS), expected, atol=1e-4)


def test_a_setting_that_is_not_followed(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    CrossEncoder(str(model_folder("bert", "text_ranking")), device="cpu").save_pretrained(str(tmp_path))
    file = tmp_path / "sentence_bert_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"query_length": 5}))
    with pytest.raises(ModelLoadError, match=r"query_length in sentence_bert_config\.json is '5', which this server"):
        serve(model_dir=tmp_path)


@pytest.mark.parametrize("named", ["torch.nn.modules.activation.Tanh", "os.Sigmoid", "Sigmoid"])
def test_an_activation_that_is_not_known(named: str, model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("bert", "text_ranking", sentence_transformers={"activation_fn": named})
    with pytest.raises(ModelLoadError) as error:
        serve(model_dir=folder)
    assert str(error.value) == (
        f"its scores are made by {named}, which this server does not run; it runs torch's Sigmoid and Identity "
        "(--task=sequence_classification serves the model without scores)"
    )
    assert serve(model_dir=folder, task="sequence_classification").client.get("/v1/models/model").status_code == 200


def test_a_prompt(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    """It would go before the pair; one that a caller has to name, and none does here, is no matter."""
    prompts = {"query": "search for: "}
    model = CrossEncoder(str(model_folder("bert", "text_ranking")), device="cpu", prompts=prompts)
    model.save_pretrained(str(tmp_path))
    np.testing.assert_allclose(score(serve(model_dir=tmp_path).client, PAIRS), model.predict(PAIRS), atol=1e-4)
    model.default_prompt_name = "query"
    model.save_pretrained(str(tmp_path))
    with pytest.raises(ModelLoadError, match="it has a prompt by default"):
        serve(model_dir=tmp_path)


def test_a_model_with_several_classes(model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("bert", "sequence_classification")
    with pytest.raises(ModelLoadError, match="the model has 5 classes, and text_ranking is for models with one"):
        serve(model_dir=folder, task="text_ranking")
