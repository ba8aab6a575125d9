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
from runners.errors import ArgumentsError, ModelLoadError
from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.families import MINILM, roberta_bpe, wordpiece

TEXTS = ["Hello world", "x", *docstrings()[:20:5], "a long one " * 300]


def embed(serve: Serve, folder: Path, texts: list[str] = TEXTS, **arguments: Any) -> Any:
    response = serve(model_dir=folder, **arguments).post("/v1/models/model:predict", json={"instances": texts})
    assert response.status_code == 200, response.text
    return np.array(response.json()["predictions"])


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
class Served:
    client: TestClient
    reference: SentenceTransformer


@pytest.fixture(scope="module")
def by_mode(
    model_folder: ModelFolder, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, bool], Served]:
    """Models of one family and length, with prompts by name, that differ in how they pool."""
    made: dict[tuple[str, bool], Served] = {}

    def make(mode: str, normalize: bool) -> Served:
        if (mode, normalize) not in made:
            folder = tmp_path_factory.mktemp(mode)
            transformer = models.Transformer(str(model_folder("bert", "text_embedding")), max_seq_length=48)
            modules: list[Any] = [transformer, models.Pooling(32, mode), *([models.Normalize()] if normalize else [])]
            reference = SentenceTransformer(
                modules=modules, device="cpu", prompts=PROMPTS, default_prompt_name="passage"
            )
            reference.save(str(folder))
            made[mode, normalize] = Served(serve(model_dir=folder), reference)
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
)  # fmt: skip
@pytest.mark.parametrize("mode", MODES)
def test_any_batch_is_as_sentence_transformers_has_it(
    mode: str, texts: list[str], prompt_name: str | None, dimensions: int | None, normalize: bool,
    by_mode: Callable[[str, bool], Served],
) -> None:  # fmt: skip
    """Short and truncated texts in one batch, with a prompt by name and the beginning of the vectors."""
    served = by_mode(mode, normalize)
    parameters = {"prompt_name": prompt_name, "dimensions": dimensions}
    given = {name: value for name, value in parameters.items() if value is not None}
    response = served.client.post("/v1/models/model:predict", json={"instances": texts, "parameters": given})
    assert response.status_code == 200, response.text
    found = np.array(response.json()["predictions"])
    expected = served.reference.encode(
        texts, prompt_name=prompt_name, truncate_dim=dimensions, normalize_embeddings=normalize
    )
    # Relative to their size, for vectors that have another length than 1.
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def test_options_over_the_open_inference_protocol(by_mode: Callable[[str, bool], Served]) -> None:
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
    client = serve(model_dir=tmp_path, backend="huggingface")
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
    client = serve(model_dir=tmp_path)
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
    client = serve(model_dir=tmp_path)
    np.testing.assert_allclose(embed(serve, tmp_path), reference.encode(TEXTS), atol=2e-5)
    for name, status in {"passage": 200, "query": 400}.items():
        body = {"instances": ["x"], "parameters": {"prompt_name": name}}
        assert client.post("/v1/models/model:predict", json=body).status_code == status


def test_lower_casing(serve: Serve, tmp_path: Path) -> None:
    """A cased tokenizer under a model whose sentence-transformers files lower-case."""
    folder = Path(shutil.copytree(MINILM, tmp_path / "model"))
    for filename, old, new in (
        ("sentence_bert_config.json", '"do_lower_case": false', '"do_lower_case": true'),
        ("tokenizer_config.json", '"do_lower_case": true', '"do_lower_case": false'),
    ):
        text = (folder / filename).read_text()
        assert old in text
        (folder / filename).write_text(text.replace(old, new))
    reference = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embed(serve, folder), reference, atol=2e-6)


def test_special_tokens_are_not_lower_cased(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    """sentence-transformers lower-cases in the tokenizer, after it has found them; Greek has a lower case of its own."""
    transformer = models.Transformer(str(model_folder("roberta", "text_embedding")), do_lower_case=True)
    SentenceTransformer(modules=[transformer, models.Pooling(32, "mean")], device="cpu").save(str(tmp_path))
    # Release 6 writes the normalizer instead of the setting.
    shutil.copy(model_folder("roberta", "text_embedding") / "tokenizer.json", tmp_path)
    change(tmp_path / TRANSFORMER, do_lower_case=True)
    texts = ["Ask </s> <mask> AGAIN", "ΟΔΟΣ", "İstanbul"]
    reference = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_allclose(embed(serve, tmp_path, texts), reference.encode(texts), atol=2e-5)


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; a value of None takes the key away."""
    written = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))


TRANSFORMER = "sentence_bert_config.json"
CHANGED_TEXTS = [*TEXTS, "UPPER and lower CASE", "all of this [MASK] " + " ".join(docstrings()[:40])]


@pytest.fixture
def saved(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """The files of a SentenceTransformer of a model with 512 positions, and a tokenizer that says 300."""
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    modules = [transformer, models.Pooling(32, "mean"), models.Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    change(tmp_path / "tokenizer_config.json", model_max_length=300)
    return tmp_path


@pytest.mark.parametrize(
    "settings",
    [
        {"tokenizer_args": {"truncation_side": "left", "model_max_length": 40}},
        {"processor_kwargs": {"truncation_side": "left", "model_max_length": 40}},
        # What older releases wrote wins there, and a length of the tokenizer over that of the module.
        {
            "tokenizer_args": {"model_max_length": 30},
            "processor_kwargs": {"model_max_length": 50},
            "max_seq_length": 60,
        },
        {"max_seq_length": 400},
        {"max_seq_length": 20},
        {"processing_kwargs": {"text": {"max_length": 25, "truncation": True}}, "max_seq_length": 60},
        {"processing_kwargs": {"text": {"max_length": 25}, "common": {"max_length": 35}}},
        {"processing_kwargs": {"text": {"padding": "max_length", "pad_to_multiple_of": 4}, "audio": {"x": 1}}},
        {"tokenizer_args": {"do_lower_case": False}},
        {"config_args": {"num_hidden_layers": 1}},
        {"config_kwargs": {"hidden_act": "relu", "use_cache": False, "nobody_knows": 3}},
        {"model_args": {"attn_implementation": "eager", "torch_dtype": "float32", "add_pooling_layer": False}},
        {"model_args": {"trust_remote_code": True, "revision": "x"}, "tokenizer_args": {"padding_side": "left"}},
        {"unpad_inputs": False},
    ],
    ids=str,
)
def test_settings_of_the_transformer(settings: dict[str, Any], saved: Path, serve: Serve) -> None:
    """Those that change the vectors do, as in sentence-transformers."""
    plain = SentenceTransformer(str(saved), device="cpu").encode(CHANGED_TEXTS)
    change(saved / TRANSFORMER, **settings)
    # One by one: padding on the left shifts the positions of this model.
    reference = SentenceTransformer(str(saved), device="cpu").encode(CHANGED_TEXTS, batch_size=1)
    np.testing.assert_allclose(embed(serve, saved, CHANGED_TEXTS), reference, atol=2e-5)
    without_effect = {"model_args", "unpad_inputs"}
    if not settings.keys() & without_effect and "padding" not in str(settings):
        assert np.abs(plain - reference).max() > 1e-3, "the test must see a difference"


@pytest.mark.parametrize(
    ("filename", "settings", "message"),
    [
        (TRANSFORMER, {"query_length": 32}, "query_length in sentence_bert_config.json is '32', which this server does"),
        (TRANSFORMER, {"document_length": 32}, "document_length in sentence_bert_config.json is '32', which"),
        (TRANSFORMER, {"tokenizer_name_or_path": "other"}, "tokenizer_name_or_path in .* is 'other', which"),
        (TRANSFORMER, {"transformer_task": "fill-mask"}, "transformer_task in .* is 'fill-mask', which"),
        (TRANSFORMER, {"module_output_name": "sentence_embedding"}, "module_output_name in .* 'sentence_embedding', wh"),
        (TRANSFORMER, {"modality_config": {"text": {"method": "get_text_features"}}}, "modality_config in .* which this"),
        (TRANSFORMER, {"clairvoyance": 1}, "clairvoyance in sentence_bert_config.json is '1', which this server does not"),
        (TRANSFORMER, {"model_args": {"variant": "fp16"}}, "model_kwargs.variant in .* is 'fp16', which this"),
        (TRANSFORMER, {"tokenizer_args": {"vocab_file": "/x"}}, "processor_kwargs.vocab_file in .* is '/x', which this"),
        (TRANSFORMER, {"tokenizer_args": {"model_max_length": "x"}}, "model_max_length in .* is 'x', not a number of"),
        (TRANSFORMER, {"tokenizer_args": ["x"]}, r"processor_kwargs in .* is \['x'\], not an object"),
        (TRANSFORMER, {"processing_kwargs": "x"}, "processing_kwargs in sentence_bert_config.json is 'x', not an object"),
        (TRANSFORMER, {"processing_kwargs": {"text": "x"}}, "processing_kwargs.text in .* is 'x', not an object"),
        (TRANSFORMER, {"processing_kwargs": {"common": 5}}, "processing_kwargs.common in .* is 5, not an object"),
        (TRANSFORMER, {"max_seq_length": 0}, "max_seq_length in sentence_bert_config.json is 0, not a number of tokens"),
        (TRANSFORMER, {"processing_kwargs": {"text": {"truncation": False}}}, "processing_kwargs.text.truncation in .* i"),
        (TRANSFORMER, {"processing_kwargs": {"text": {"stride": 3}}}, "processing_kwargs.text.stride in .* is '3', which"),
        (TRANSFORMER, {"processing_kwargs": {"text": {"add_special_tokens": False}}}, "is false: set --disable_special_t"),
        ("config_sentence_transformers.json", {"truncate_dim": 0}, "truncate_dim in .* is 0, not a number of dimensions"),
        ("config_sentence_transformers.json", {"truncate_dim": "x"}, "truncate_dim in .* is 'x', not a number of dim"),
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "2_Normalize is of token_embeddings, not"),
    ],
)  # fmt: skip
def test_settings_that_this_server_does_not_follow_are_named(
    filename: str, settings: dict[str, Any], message: str, saved: Path, serve: Serve
) -> None:
    change(saved / filename, **settings)
    with pytest.raises(ModelLoadError, match=message):
        embed(serve, saved)


def test_settings_are_read_once(saved: Path, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    change(saved / TRANSFORMER, model_args={"torch_dtype": "float16"})
    with caplog.at_level("INFO"):
        serve(model_dir=saved)
    assert caplog.text.count("model_kwargs.torch_dtype in sentence_bert_config.json is float16; here --dtype says") == 1


def test_special_tokens_that_the_files_leave_out(saved: Path, serve: Serve) -> None:
    change(saved / TRANSFORMER, processing_kwargs={"text": {"add_special_tokens": False}})
    reference = SentenceTransformer(str(saved), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embed(serve, saved, disable_special_tokens=True), reference, atol=2e-5)


@pytest.mark.parametrize("dimensions", [None, 8, 20, 30])
@pytest.mark.parametrize("whose", ["request", "operator"])
def test_a_truncated_dimension(whose: str, dimensions: int | None, saved: Path, serve: Serve) -> None:
    """`dimensions` wins over the files, and its vectors get length 1, which those that only the files cut do not."""
    change(saved / "config_sentence_transformers.json", truncate_dim=20)
    options = {} if dimensions is None else {"dimensions": dimensions}
    client = serve(model_dir=saved, **(options if whose == "operator" else {}))
    body = {"instances": TEXTS, "parameters": options if whose == "request" else {}}
    response = client.post("/v1/models/model:predict", json=body)
    assert response.status_code == 200, response.text
    reference = SentenceTransformer(str(saved), device="cpu")
    expected = (
        reference.encode(TEXTS)
        if dimensions is None
        else reference.encode(TEXTS, truncate_dim=dimensions, normalize_embeddings=True)
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
        ("modules.json", '"path"', '"way"', "modules.json is no list of modules with a type and a path each"),
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
