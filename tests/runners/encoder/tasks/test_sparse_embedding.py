"""Sparse vectors, against those of sentence-transformers' SparseEncoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Transformer
from sentence_transformers.sparse_encoder.modules import SpladePooling
from starlette.testclient import TestClient
from transformers import AutoModelForMaskedLM

from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError, ModelLoadError
from runners.core.predictions import TextInput
from runners.encoder.runner import EncoderRunner
from tests.conftest import Dial, ModelFolder, Serve
from tests.embedders import TEXTS, change
from tests.encoders import load
from tests.wire import WIRES

TOLERANCE = 2e-5


def save(folder: Path, model: Path, strategy: str = "max", activation: str = "relu", **settings: Any) -> SparseEncoder:
    """Save a SparseEncoder whose masked language model is in another folder."""
    pooling = SpladePooling(strategy, activation)  # type: ignore[arg-type]
    modules = [Transformer(str(model), transformer_task="fill-mask"), pooling]
    encoder = SparseEncoder(modules=modules, device="cpu", **settings)
    encoder.save(str(folder))
    return encoder


def encode(encoder: SparseEncoder, texts: Sequence[str], **options: Any) -> NDArray[np.float32]:
    vectors: torch.Tensor = encoder.encode([*texts], convert_to_sparse_tensor=False, **options)
    return np.asarray(vectors.numpy())


def predict(client: TestClient, texts: Sequence[str], **parameters: Any) -> NDArray[np.float32]:
    """The vectors over V1, with their zeros."""
    body = {"instances": [*texts], "parameters": parameters}
    response = client.post("/v1/models/model:predict", json=body)
    assert response.status_code == 200, response.text
    dense = np.zeros((len(texts), int(client.get("/v2/models/model").json()["properties"]["dimensions"])))
    for row, records in zip(dense, response.json()["predictions"], strict=True):
        places = [record["index"] for record in records]
        assert places == sorted({*places})
        row[places] = [record["value"] for record in records]
        assert all(record["value"] > 0 for record in records)
    return dense.astype(np.float32)


@pytest.fixture(scope="module")
def encoder(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SparseEncoder]:
    folder = tmp_path_factory.mktemp("sparse")
    prompts = {"query": "search for: ", "document": ""}
    return folder, save(folder, model_folder("bert", "fill_mask"), prompts=prompts)


@pytest.fixture(scope="module")
def client(encoder: tuple[Path, SparseEncoder], serve: Serve) -> TestClient:
    return serve(model_dir=encoder[0]).client


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "albert", "deberta-v2", "modernbert"])
@pytest.mark.parametrize(("strategy", "activation"), [("max", "relu"), ("sum", "relu"), ("max", "log1p_relu")])
def test_a_sparse_encoder(
    family: str, strategy: str, activation: str, model_folder: ModelFolder, serve: Serve, tmp_path: Path
) -> None:
    reference = save(tmp_path, model_folder(family, "fill_mask"), strategy, activation)
    served = serve(model_dir=tmp_path)
    assert served.runner.task == "sparse_embedding"
    expected = encode(reference, TEXTS)
    assert 0.1 < np.mean(expected != 0) < 1
    np.testing.assert_allclose(predict(served.client, TEXTS), expected, atol=TOLERANCE * expected.max())


def test_a_masked_language_model_without_files(model_folder: ModelFolder, serve: Serve) -> None:
    """As `SparseEncoder` makes one of it: the maximum."""
    folder = model_folder("roberta", "fill_mask")
    expected = encode(SparseEncoder(str(folder), device="cpu"), TEXTS)
    client = serve(model_dir=folder, task="sparse_embedding").client
    np.testing.assert_allclose(predict(client, TEXTS), expected, atol=TOLERANCE)


@pytest.mark.parametrize("prompt", [None, "query", "document"])
@pytest.mark.parametrize("most", [None, 1, 7, 10**6])
def test_options(prompt: str | None, most: int | None, encoder: tuple[Path, SparseEncoder], client: TestClient) -> None:
    expected = encode(encoder[1], TEXTS, prompt_name=prompt, max_active_dims=most)
    given = {name: value for name, value in {"prompt_name": prompt, "max_active_dims": most}.items() if value}
    found = predict(client, TEXTS, **given)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert (found > 0).sum(axis=1).tolist() == (expected > 0).sum(axis=1).tolist()


def test_options_of_the_files_and_of_the_operator(
    encoder: tuple[Path, SparseEncoder], serve: Serve, tmp_path: Path
) -> None:
    reference = save(tmp_path, encoder[0], prompts={"query": "find: "}, default_prompt_name="query", max_active_dims=5)
    client, operator = serve(model_dir=tmp_path).client, serve(model_dir=tmp_path, max_active_dims=9).client
    for found, most in (
        (predict(client, TEXTS), 5),
        (predict(client, TEXTS, max_active_dims=3), 3),
        (predict(client, TEXTS, max_active_dims=12), 12),
        (predict(operator, TEXTS), 9),
        (predict(operator, TEXTS, max_active_dims=2), 2),
    ):
        np.testing.assert_allclose(found, encode(reference, TEXTS, max_active_dims=most), atol=TOLERANCE)


def test_the_open_inference_protocol(encoder: tuple[Path, SparseEncoder], serve: Serve, dial: Dial) -> None:
    """Shorter lists are filled up, as the tensors of other records are."""
    served = serve(model_dir=encoder[0])
    texts = ["x", TEXTS[2]]
    expected = encode(encoder[1], texts)
    longest = int((expected > 0).sum(axis=1).max())
    request = {"inputs": [{"name": "x", "shape": [2], "datatype": "BYTES", "data": texts}]}
    for wire in WIRES:
        index, value = wire(served.client, dial(served), "model", request).outputs
        assert (index[:3], value[:3]) == (("index", "INT64", [2, longest]), ("value", "FP32", [2, longest]))
        for row, places, weights in zip(
            expected, np.reshape(index[3], index[2]), np.reshape(value[3], value[2]), strict=True
        ):
            real = places >= 0
            assert places[real].tolist() == np.flatnonzero(row).tolist()
            assert set(places[~real].tolist()) <= {-100}
            np.testing.assert_allclose(weights[real], row[row > 0], atol=TOLERANCE)
            assert not weights[~real].any()


def test_a_text_without_any_entry(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(model_folder("bert", "fill_mask"))
    with torch.no_grad():
        model.cls.predictions.decoder.bias.fill_(-100.0)
    save(tmp_path, model_folder("bert", "fill_mask"))
    model.save_pretrained(tmp_path)
    client = serve(model_dir=tmp_path).client
    response = client.post("/v1/models/model:predict", json={"instances": ["a", "b"]})
    assert response.json() == {"predictions": [[], []]}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"prompt_name": "no"}, "there is no prompt 'no': there are document, query"),
        ({"max_active_dims": 0}, "the parameter max_active_dims is wrong: Input should be greater than or equal to 1"),
        ({"dimensions": 3}, "the parameter dimensions does not apply to sparse_embedding, whose options are: "),
        ({"stride": 3}, "the parameter stride does not apply to sparse_embedding, whose options are: "),
    ],
)
def test_what_is_refused(parameters: dict[str, Any], message: str, client: TestClient) -> None:
    response = client.post("/v1/models/model:predict", json={"instances": ["x"], "parameters": parameters})
    assert response.status_code == 400
    assert response.json()["error"].startswith(message)


async def test_the_numbers_of_an_answer_are_limited(encoder: tuple[Path, SparseEncoder]) -> None:
    """Although they are known only once the model has run; they count until the answer has been sent."""
    [entries] = (encode(encoder[1], ["x"]) != 0).sum(axis=1).tolist()
    runner = load(model_dir=str(encoder[0]), max_answer_numbers=5 * entries)
    try:
        options = runner.default_options
        assert len(await runner.infer([TextInput("x")] * 2, options)) == 2
        for texts in ([TextInput("x")] * 3, [TextInput("x")] * 300):
            with pytest.raises(Exception, match=f"{6 * entries} numbers of the answer are more than the {5 * entries}"):
                await runner.infer(texts, options)
        few = options.answer.model_copy(update={"max_active_dims": 2})
        assert len(await runner.infer([TextInput("x")] * 300, replace(options, answer=few))) == 300
        assert runner._loaded is not None
        assert runner._loaded.queue.admission.numbers.held == 0
    finally:
        runner.close()


def test_padded_tensors_are_limited(encoder: tuple[Path, SparseEncoder], serve: Serve) -> None:
    vectors = encode(encoder[1], ["x", TEXTS[2]])
    few, many = (vectors != 0).sum(axis=1).tolist()
    assert few < many
    limit = 2 * (9 * few + many) + 100
    client = serve(model_dir=encoder[0], max_answer_numbers=limit).client
    texts = ["x"] * 9 + [TEXTS[2]]
    assert client.post("/v1/models/model:predict", json={"instances": texts}).status_code == 200
    body = {"inputs": [{"name": "x", "shape": [10], "datatype": "BYTES", "data": texts}]}
    response = client.post("/v2/models/model/infer", json=body)
    assert response.status_code == 413
    assert response.json()["error"].startswith(f"{20 * many} numbers of the answer (lists are padded) are more")


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("1_SpladePooling/config.json", {"pooling_strategy": "mean"}, "1_SpladePooling/config.json has pooling_strategy 'mean' and"),
        ("1_SpladePooling/config.json", {"activation_function": "gelu"}, "and activation_function 'gelu'; there are max and sum, and"),
        ("config_sentence_transformers.json", {"max_active_dims": "5"}, "max_active_dims in config_sentence_transformers.json is '5', not a number"),
        ("config_sentence_transformers.json", {"default_prompt_name": "no"}, "default_prompt_name is 'no', which is none of the model's prompts"),
    ],
)  # fmt: skip
def test_files_that_would_be_misread(
    path: str, values: dict[str, Any], message: str, encoder: tuple[Path, SparseEncoder], tmp_path: Path
) -> None:
    encoder[1].save(str(tmp_path))
    change(tmp_path / path, **values)
    with pytest.raises(ModelLoadError) as error:
        load(model_dir=str(tmp_path))
    assert message in str(error.value)


def test_modules_that_it_does_not_run(encoder: tuple[Path, SparseEncoder], tmp_path: Path) -> None:
    encoder[1].save(str(tmp_path))
    modules = json.loads((tmp_path / "modules.json").read_text())
    for listed in (modules[1:], [*modules, modules[1]], [{**modules[0], "path": "0_Transformer"}, modules[1]], [1]):
        (tmp_path / "modules.json").write_text(json.dumps(listed))
        with pytest.raises(
            ModelLoadError, match="sparse_embedding runs a Transformer in the model's folder and a Splade"
        ):
            load(model_dir=str(tmp_path), task="sparse_embedding")


async def test_a_predictor_cannot_run_it(model_folder: ModelFolder) -> None:
    arguments = {"model_dir": str(model_folder("bert", "fill_mask")), "predictor_host": "localhost:1"}
    runner = EncoderRunner(Arguments.model_validate({**arguments, "task": "sparse_embedding"}), lambda _: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(ArgumentsError, match="predictor_host: sparse_embedding needs the model here"):
        await runner.load()
    runner.close()
