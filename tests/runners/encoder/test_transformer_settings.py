"""Settings of the transformer in sentence-transformers' files: followed as there, or refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models

from benchmarks.texts import docstrings
from runners.core.errors import ModelLoadError
from tests.conftest import ModelFolder, Serve
from tests.embedders import TEXTS, change, embed
from tests.families import MINILM

TRANSFORMER = "sentence_bert_config.json"
CHANGED_TEXTS = [*TEXTS, "UPPER and lower CASE", "all of this [MASK] " + " ".join(docstrings()[:40])]


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
        ("2_Normalize/config.json", {"module_input_name": "token_embeddings"}, "2_Normalize reads or writes token_embeddings; only"),
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
    assert caplog.text.count("model_kwargs.torch_dtype in sentence_bert_config.json is float16; here --dtype sets") == 1


def test_special_tokens_that_the_files_leave_out(saved: Path, serve: Serve) -> None:
    change(saved / TRANSFORMER, processing_kwargs={"text": {"add_special_tokens": False}})
    reference = SentenceTransformer(str(saved), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embed(serve, saved, disable_special_tokens=True), reference, atol=2e-5)
