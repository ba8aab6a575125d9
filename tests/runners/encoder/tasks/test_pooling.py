"""Embeddings against sentence-transformers, for the forms its files can have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models
from starlette.testclient import TestClient
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from benchmarks.texts import docstrings
from runners.core.errors import ArgumentsError, ModelLoadError
from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.embedders import TEXTS, change, embed
from tests.families import MINILM, roberta_bpe, wordpiece


def test_minilm(serve: Serve) -> None:
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embed(serve, MINILM), expected, atol=2e-6)


@pytest.mark.parametrize(
    "pooling", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean")]
)
@pytest.mark.parametrize("after", ["nothing", "dense", "dense and normalize"])
def test_modules(pooling: Any, after: str, model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")), max_seq_length=100)
    pool = models.Pooling(32, pooling)
    modules: list[Any] = [transformer, pool]
    if "dense" in after:
        modules.append(models.Dense(pool.get_embedding_dimension(), 7))
    if "normalize" in after:
        modules.append(models.Normalize())
    reference = SentenceTransformer(modules=modules, device="cpu")
    reference.save(str(tmp_path))
    np.testing.assert_allclose(embed(serve, tmp_path), reference.encode(TEXTS), atol=2e-5)


def test_a_dense_module_with_a_weight_that_is_no_number(
    model_folder: ModelFolder, serve: Serve, tmp_path: Path
) -> None:
    dense = models.Dense(32, 7)
    torch.nn.init.constant_(dense.linear.bias, torch.nan)
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    SentenceTransformer(modules=[transformer, models.Pooling(32, "mean"), dense], device="cpu").save(str(tmp_path))
    with pytest.raises(ModelLoadError, match="weights of the Dense module in 2_Dense hold NaN or infinity"):
        serve(model_dir=tmp_path)


def test_default_prompt(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    reference = SentenceTransformer(
        modules=[transformer, models.Pooling(32, "mean")], device="cpu",
        prompts={"query": "search for: "}, default_prompt_name="query",
    )  # fmt: skip
    reference.save(str(tmp_path))
    np.testing.assert_allclose(embed(serve, tmp_path), reference.encode(TEXTS), atol=2e-5)


MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
PROMPTS = {"query": "Search for: ", "passage": ""}


@dataclass(frozen=True)
class PooledModel:
    client: TestClient
    reference: SentenceTransformer


@pytest.fixture(scope="module")
def by_mode(
    model_folder: ModelFolder, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], PooledModel]:
    """Models of one family and length, with prompts by name, that differ in how they pool."""
    made: dict[tuple[str, bool], PooledModel] = {}

    def make(mode: str, normalize: bool) -> PooledModel:
        if (mode, normalize) not in made:
            folder = tmp_path_factory.mktemp(mode)
            transformer = models.Transformer(str(model_folder("bert", "text_embedding")), max_seq_length=48)
            modules: list[Any] = [transformer, models.Pooling(32, mode), *([models.Normalize()] if normalize else [])]
            reference = SentenceTransformer(
                modules=modules, device="cpu", prompts=PROMPTS, default_prompt_name="passage"
            )
            reference.save(str(folder))
            made[mode, normalize] = PooledModel(serve(model_dir=folder).client, reference)
        return made[mode, normalize]

    return make


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.text(max_size=60) | st.lists(st.sampled_from(docstrings()[:50]), max_size=3).map(" ".join),
        min_size=1, max_size=12,
    ),
    prompt_name=st.sampled_from([None, *PROMPTS]),
    dimensions=st.none() | st.integers(1, 32),
    normalize=st.booleans(),
    asked=st.sampled_from([None, True, False]),
)  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_any_batch_is_as_sentence_transformers_has_it(
    mode: str, texts: list[str], prompt_name: str | None, dimensions: int | None, normalize: bool,
    asked: bool | None, by_mode: Callable[[str, bool], PooledModel],
) -> None:  # fmt: skip
    """Short and truncated texts in one batch, with a prompt by name and the beginning of the vectors."""
    served = by_mode(mode, normalize)
    parameters = {"prompt_name": prompt_name, "dimensions": dimensions, "normalize": asked}
    given = {name: value for name, value in parameters.items() if value is not None}
    response = served.client.post("/v1/models/model:predict", json={"instances": texts, "parameters": given})
    assert response.status_code == 200, response.text
    found = np.array(response.json()["predictions"])
    expected = served.reference.encode(
        texts, prompt_name=prompt_name, truncate_dim=dimensions,
        # What is truncated is normalized again unless the request says otherwise.
        normalize_embeddings=normalize if asked is None else asked,
    )  # fmt: skip
    # Relative to their size, for vectors that have another length than 1.
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def test_options_over_the_open_inference_protocol(by_mode: Callable[[str, bool], PooledModel]) -> None:
    served = by_mode("lasttoken", True)
    body = {
        "inputs": [{"name": "input-0", "shape": [len(TEXTS)], "datatype": "BYTES", "data": TEXTS}],
        "parameters": {"dimensions": 5, "prompt_name": "query"},
    }
    [output] = served.client.post("/v2/models/model/infer", json=body).json()["outputs"]
    assert output["shape"] == [len(TEXTS), 5]
    expected = served.reference.encode(TEXTS, prompt_name="query", truncate_dim=5, normalize_embeddings=True)
    np.testing.assert_allclose(output["data"], expected.ravel(), atol=1e-5)
    properties = served.client.get("/v2/models/model").json()["properties"]
    assert (properties["dimensions"], properties["prompts"], properties["max_length"]) == (
        "32",
        "document,passage,query",
        "48",
    )


def test_the_last_token_of_a_decoder(generator_folder: GeneratorFolder, serve: Serve, tmp_path: Path) -> None:
    """As the embedding models are that were made of language models: each token sees only those before it."""
    transformer = models.Transformer(str(generator_folder("llama")), max_seq_length=64)
    width = transformer.get_embedding_dimension()
    modules = [transformer, models.Pooling(width, "lasttoken"), models.Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    arguments: dict[str, Any] = {"task": "text_embedding", "backend": "huggingface"}
    with pytest.raises(ModelLoadError, match="its texts go through a chat template"):
        embed(serve, tmp_path, **arguments)
    path = tmp_path / "sentence_bert_config.json"
    config = json.loads(path.read_text())
    del config["modality_config"]["message"]
    path.write_text(json.dumps(config))
    reference = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(embed(serve, tmp_path, **arguments), reference.encode(TEXTS), atol=1e-5)


QWEN = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("auto_class", "model_type", "config", "pooling"),
    [
        (AutoModelForCausalLM, "qwen3", QWEN | {"tie_word_embeddings": True}, "lasttoken"),
        (AutoModelForCausalLM, "qwen3", QWEN | {"tie_word_embeddings": False}, "lasttoken"),
        (AutoModel, "qwen2", QWEN, "lasttoken"),
        (AutoModel, "mistral", QWEN, "mean"),
        (AutoModelForMaskedLM, "bert", {name: QWEN[name] for name in QWEN.keys() - {"head_dim"}}, "cls"),
    ],
    ids=["Qwen3ForCausalLM, tied", "Qwen3ForCausalLM", "Qwen2Model", "MistralModel", "BertForMaskedLM"],
)
def test_files_of_an_embedder_say_more_than_its_architecture(
    auto_class: Any, model_type: str, config: dict[str, Any], pooling: str, serve: Serve, tmp_path: Path
) -> None:
    """As Qwen3-Embedding, whose weights have the names of a language model."""
    tokenizer = roberta_bpe() if model_type != "bert" else wordpiece()
    torch.manual_seed(3)
    full = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **config)
    model = auto_class.from_config(full)
    transformer = models.Transformer(str(save_parts(tmp_path / "parts", model, tokenizer)))
    modules = [transformer, models.Pooling(32, pooling), models.Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    save_parts(tmp_path, model, tokenizer)
    shutil.rmtree(tmp_path / "parts")
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [type(model).__name__]
    client = serve(model_dir=tmp_path, backend="huggingface").client
    assert client.get("/v2/models/model").json()["properties"]["task"] == "text_embedding"
    reference = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(embed(serve, tmp_path, backend="huggingface"), reference.encode(TEXTS), atol=1e-5)


@pytest.mark.parametrize("model_type", ["bart", "pegasus", "m2m_100", "t5", "mt5", "umt5", "longt5", "t5gemma"])
def test_encoder_decoders(model_type: str, serve: Serve, tmp_path: Path) -> None:
    """As sentence-transformers saves and runs them: BART whole, of the others the encoder."""
    tokenizer = roberta_bpe()
    layers = QWEN | {"vocab_size": len(tokenizer)}
    sizes: dict[str, Any] = {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "pad_token_id": 1, "init_std": 0.3,
        "decoder_start_token_id": 2, "max_position_embeddings": 512, "d_kv": 16, "d_ff": 64, "num_heads": 2,
        "num_layers": 2,
    }  # fmt: skip
    if model_type == "t5gemma":
        sizes = {"encoder": layers, "decoder": layers}
    torch.manual_seed(3)
    auto_class: Any = AutoModelForSeq2SeqLM
    full = auto_class.from_config(AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **sizes))
    transformer = models.Transformer(str(save_parts(tmp_path / "parts", full, tokenizer)), max_seq_length=64)
    reference = SentenceTransformer(modules=[transformer, models.Pooling(32, "mean")], device="cpu")
    reference.save(str(tmp_path / "saved"))
    expected = reference.encode(TEXTS, batch_size=1)
    np.testing.assert_allclose(embed(serve, tmp_path / "saved"), expected, atol=2e-5)


def save_parts(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def test_files_of_a_cross_encoder_make_no_embedder(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    reference = CrossEncoder(str(model_folder("bert", "text_ranking")), device="cpu")
    reference.save_pretrained(str(tmp_path))
    assert (tmp_path / "modules.json").exists()
    client = serve(model_dir=tmp_path).client
    assert client.get("/v2/models/model").json()["properties"]["task"] == "text_ranking"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dimensions": 385}, "dimensions is 385; the model's vectors have 384"),
        ({"prompt_name": "query"}, "there is no prompt 'query': the model has none"),
    ],
)
def test_options_that_the_model_does_not_have_end_the_start(
    serve: Serve, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArgumentsError, match=message):
        serve(model_dir=MINILM, **arguments)


def test_a_prompt_that_is_not_pooled_is_refused(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    """Only when it is asked for: without it the vectors are right."""
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    pooling = models.Pooling(32, "mean", include_prompt=False)
    reference = SentenceTransformer(modules=[transformer, pooling], device="cpu", prompts=PROMPTS)
    reference.save(str(tmp_path))
    client = serve(model_dir=tmp_path).client
    np.testing.assert_allclose(embed(serve, tmp_path), reference.encode(TEXTS), atol=2e-5)
    for name, status in {"passage": 200, "query": 400}.items():
        body = {"instances": ["x"], "parameters": {"prompt_name": name}}
        assert client.post("/v1/models/model:predict", json=body).status_code == status


@pytest.mark.parametrize("dimensions", [None, 8, 20, 30])
@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("whose", ["request", "operator"])
def test_a_truncated_dimension(
    whose: str, normalize: bool | None, dimensions: int | None, saved: Path, serve: Serve
) -> None:
    """`dimensions` wins over the files, and its vectors get length 1, which those that only the files cut do not."""
    change(saved / "config_sentence_transformers.json", truncate_dim=20)
    options = {
        name: value for name, value in {"dimensions": dimensions, "normalize": normalize}.items() if value is not None
    }
    client = serve(model_dir=saved, **(options if whose == "operator" else {})).client
    body = {"instances": TEXTS, "parameters": options if whose == "request" else {}}
    response = client.post("/v1/models/model:predict", json=body)
    assert response.status_code == 200, response.text
    reference = SentenceTransformer(str(saved), device="cpu")
    usual = dimensions is not None
    expected = reference.encode(
        TEXTS, truncate_dim=dimensions or 20, normalize_embeddings=usual if normalize is None else normalize
    )
    np.testing.assert_allclose(response.json()["predictions"], expected, atol=2e-5)
    metadata = client.get("/v2/models/model").json()
    assert (metadata["properties"]["dimensions"], metadata["properties"]["normalized"]) == ("20", "false")
    output = metadata["outputs"][0]
    assert output["shape"] == [-1, dimensions if whose == "operator" and dimensions else 20]


def test_mean_of_length_one_without_files(model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("roberta", "text_embedding")
    reference = SentenceTransformer(
        modules=[models.Transformer(str(folder)), models.Pooling(32, "mean"), models.Normalize()], device="cpu"
    )
    np.testing.assert_allclose(embed(serve, folder), reference.encode(TEXTS), atol=2e-5)


@pytest.mark.parametrize(
    ("filename", "old", "new", "message"),
    [
        (
            "modules.json",
            '"type": "sentence_transformers.base',
            '"type": "custom_st.base',
            "modules.json has custom_st.base.modules.* whose code this server does not run",
        ),
        (
            "modules.json",
            '"path": ""',
            '"path": "0_Transformer"',
            "modules.json has its Transformer in 0_Transformer, and",
        ),
        ("modules.json", '"path"', '"way"', "modules.json must be a list of modules with a type and a path each"),
        ("modules.json", ".Pooling", ".Clairvoyance", "modules.json has a Clairvoyance"),
        ("modules.json", ".Pooling", ".Dense", "modules.json has a Dense in an unusual place"),
        ("modules.json", ".Normalize", ".Pooling", "modules.json has a Pooling in an unusual place"),
        ("1_Pooling/config.json", '"include_prompt": true', '"include_prompt": false', "pools without the prompt"),
        (
            "config_sentence_transformers.json",
            '"default_prompt_name": "query"',
            '"default_prompt_name": "q"',
            "default_prompt_name is 'q', which is none of the model's prompts",
        ),
        ("1_Pooling/config.json", '"pooling_mode": "mean"', '"pooling_mode": "median"', "unknown pooling 'median'"),
    ],
)
def test_what_would_give_other_vectors_is_refused(
    filename: str, old: str, new: str, message: str, model_folder: ModelFolder, serve: Serve, tmp_path: Path
) -> None:
    modules = [
        models.Transformer(str(model_folder("bert", "text_embedding"))),
        models.Pooling(32, "mean"),
        models.Normalize(),
    ]
    prompts = {"query": "search for: "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts, default_prompt_name="query").save(str(tmp_path))
    text = (tmp_path / filename).read_text()
    assert old in text
    (tmp_path / filename).write_text(text.replace(old, new))
    with pytest.raises(ModelLoadError, match=message):
        embed(serve, tmp_path)
