from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer

from runners.arguments import Arguments
from runners.encoder.runner import EncoderRunner
from runners.errors import RunnerError
from runners.inference import TextInput
from runners.loading import limit_length, load_config, load_model, outline_model
from tests.conftest import ModelFolder
from tests.families import MINILM


def load(**arguments: Any) -> EncoderRunner:
    runner = EncoderRunner(Arguments.model_validate(arguments))
    asyncio.run(runner.load())
    return runner


@pytest.mark.parametrize(
    ("family", "asked", "recommended", "limit"),
    [
        ("bert", None, None, 512),
        ("bert", None, 256, 256),
        ("bert", 300, 256, 300),
        ("bert", 100, None, 100),
        ("bert", 1000, None, 512),
        ("roberta", None, None, 512),
        ("modernbert", None, None, 512),
        ("deberta-v2", None, None, 512),
    ],
)
def test_length_limit(
    model_folder: ModelFolder, family: str, asked: int | None, recommended: int | None, limit: int
) -> None:
    """RoBERTa has 514 positions for 512 tokens; KServe lets 513 in and crashes."""
    folder = model_folder(family, "text_embedding")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = int(1e30)
    assert limit_length(AutoModel.from_pretrained(folder), tokenizer, asked, recommended) == limit


def test_length_limit_of_the_tokenizer(model_folder: ModelFolder) -> None:
    folder = model_folder("bert", "text_embedding")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 77
    assert limit_length(AutoModel.from_pretrained(folder), tokenizer, None) == 77


@pytest.mark.parametrize("family", ["roberta", "bert", "deberta-v2"])
def test_texts_over_the_limit_are_truncated_counted_and_said_once(
    model_folder: ModelFolder, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    from prometheus_client import REGISTRY

    runner = load(model_dir=str(model_folder(family, "token_classification")), model_name=f"long-{family}")
    texts = [TextInput("very long " * 1000), TextInput("short"), TextInput("x y z " * 5000)]
    for _ in range(2):
        predictions = asyncio.run(runner.infer(texts, runner.default_options))
        lengths = [prediction.output.values.shape[1] for prediction in predictions]  # type: ignore[union-attr]
        assert [length == 512 for length in lengths] == [True, False, True]
    runner.close()
    assert caplog.text.count("was truncated") == 1
    count = REGISTRY.get_sample_value("runtime_truncated_texts_total", {"model_name": f"long-{family}"})
    assert count == 4


def test_pickles_only_when_asked(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("bert", "text_embedding"), tmp_path / "pickle")
    (folder / "model.safetensors").unlink()
    model = AutoModel.from_pretrained(model_folder("bert", "text_embedding"))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(RunnerError, match=r"no safetensors weights.*--allow_pickle"):
        load(model_dir=str(folder))
    load(model_dir=str(folder), allow_pickle=True).close()


def test_remote_code_only_when_trusted(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("bert", "text_embedding"), tmp_path / "remote")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "code.C", "AutoModel": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(RunnerError, match="trust_remote_code"):
        load(model_dir=str(folder))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_dir": "/nowhere"}, "there is no folder /nowhere: set --model_id"),
        ({"model_id": "/nowhere"}, "there is no folder /nowhere: set --model_id"),
        ({"model_dir": "/tmp"}, "the folder /tmp holds no config.json"),
        ({"model_id": "nobody/nothing"}, "HF_HUB_OFFLINE|couldn't|connect"),
        ({"model_dir": str(MINILM), "task": "fill_mask"}, r"lacks weights of BertForMaskedLM \(cls.predictions"),
        ({"model_dir": str(MINILM), "task": "token_classification"}, r"lacks weights .*\(classifier.bias, classifier.w"),
        ({"model_dir": str(MINILM), "tensor_input_names": "input_ids,pixels"}, "tensor_input_names is input_ids,pixels"),
        ({"model_dir": str(MINILM), "tensor_input_names": "attention_mask"}, "BertModel needs input_ids and takes"),
    ],
)  # fmt: skip
def test_what_cannot_load_says_why_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RunnerError, match=message) as error:
        load(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, r"config\.json does not fit the weights: classifier\.bias has the shape \[5\], and \[2\] by the config \(of that size there: .*id2label\)"),
        ({"id2label": {str(index): "x" for index in range(9)}}, r"has the shape \[5\], and \[9\] by the config \(of that size there: id2label\)"),
        ({"id2label": None, "num_labels": 3}, r"and \[3\] by the config \(of that size there: num_labels\)"),
        ({"id2label": {"none": "a", "one": "b"}}, r"id2label in .*/config\.json must be an object that names classes by their numbers.* it is {'none': 'a', 'one': 'b'}"),
        ({"id2label": ["a", "b"]}, r"id2label in .*/config\.json must be an object"),
        ({"id2label": None, "num_labels": "5"}, r"num_labels in .*/config\.json is '5', not a number of classes"),
        ({"architectures": 5}, r"architectures in the model's config\.json is 5, not a list of class names"),
        ({"max_position_embeddings": "512"}, r"/config\.json cannot be used: .*'max_position_embeddings' expected int, got str \(value: '512'\)"),
        ({"max_position_embeddings": 256}, r"position_embeddings\.weight has the shape \[512, 32\], and \[256, 32\] by the config \(of that size there: max_position_embeddings\)"),
        ({"hidden_act": "nope"}, r"no model can be made of .*/config\.json: KeyError: 'nope' \(hidden_act is 'nope'\)"),
        ({"dtype": "nope"}, r"/config\.json cannot be used: .* \(dtype is 'nope'\)"),
        ([], r"the model's config\.json is no JSON object"),
        (None, r"the model's config\.json is no JSON object"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_named(
    changes: Any, message: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "model"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes if isinstance(changes, dict) else changes))
    with pytest.raises(RunnerError, match=message) as error:
        load(model_dir=str(folder))
    assert "\n" not in str(error.value)


def test_a_config_that_is_no_json(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "model"))
    (folder / "config.json").write_text("{")
    with pytest.raises(RunnerError, match=r"/config\.json is no JSON: "):
        load(model_dir=str(folder))


@pytest.mark.parametrize("has_weights", [True, False])
def test_an_adapter_is_refused(has_weights: bool, model_folder: ModelFolder, tmp_path: Path) -> None:
    """PEFT would apply it; without PEFT `transformers` answers as if it were not there."""
    folder = Path(shutil.copytree(model_folder("bert", "text_embedding"), tmp_path / "model"))
    if not has_weights:
        (folder / "config.json").unlink()
        (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/base"}))
    with pytest.raises(RunnerError, match=r"holds an adapter_config\.json: it is a PEFT adapter of someone/base, and"):
        load(model_dir=str(folder))


def test_an_architecture_that_is_no_list_is_taken_for_one(
    model_folder: ModelFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "model"))
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": "BertForSequenceClassification"}))
    runner = load(model_dir=str(folder))
    assert runner.task == "sequence_classification"
    runner.close()
    assert "architectures in config.json is a name, not a list" in caplog.text


SIZES = {
    "d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 2, "vocab_size": 100, "encoder_layers": 2,
    "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip
GEMMA = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("model_type", "loaded"),
    [
        ("t5", "T5EncoderModel"),
        ("mt5", "MT5EncoderModel"),
        ("umt5", "UMT5EncoderModel"),
        ("t5gemma", "T5GemmaEncoder"),
        ("longt5", "LongT5Stack"),
        ("pegasus", "PegasusEncoder"),
        ("m2m_100", "M2M100Encoder"),
        ("bart", "BartModel"),
        ("mbart", "MBartModel"),
    ],
)
def test_an_encoder_decoder_embeds(model_type: str, loaded: str, tmp_path: Path) -> None:
    """By its encoder alone, as in sentence-transformers; BART's kind, which runs from a text alone, by its decoder."""
    # The encoder is another size than the decoder where that can be.
    parts = {"encoder": GEMMA, "decoder": GEMMA | {"hidden_size": 48}, "vocab_size": 100}
    torch.manual_seed(1)
    full = AutoModelForSeq2SeqLM.from_config(  # type: ignore[no-untyped-call]
        AutoConfig.for_model(model_type, **parts if model_type == "t5gemma" else SIZES)
    ).eval()
    full.save_pretrained(tmp_path)
    config = load_config(Arguments(model_dir=str(tmp_path)))
    model = load_model(Arguments(model_dir=str(tmp_path)), AutoModel, torch.device("cpu"), (), config)
    assert type(model).__name__ == loaded
    reference = full.base_model if loaded == type(full.base_model).__name__ else full.get_encoder()
    ids = torch.tensor([[7, 8, 9, 2]])
    with torch.inference_mode():
        found, expected = model(input_ids=ids)[0], reference(input_ids=ids)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert found.shape[-1] == model.config.hidden_size
    if loaded.endswith(("EncoderModel", "Encoder")) and model_type != "t5gemma":
        # What sentence-transformers saves.
        model.save_pretrained(tmp_path / "encoder")
        alone = Arguments(model_dir=str(tmp_path / "encoder"))
        again = load_model(alone, AutoModel, torch.device("cpu"), (), load_config(alone))
        with torch.inference_mode():
            torch.testing.assert_close(again(input_ids=ids)[0], expected, rtol=0, atol=0)
        assert type(outline_model(alone, AutoModel, load_config(alone))) is type(model)


def test_an_encoder_of_sound_is_named(tmp_path: Path) -> None:
    config = AutoConfig.for_model("whisper", **SIZES)
    AutoModel.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    with pytest.raises(
        RunnerError, match="WhisperModel does not run from text alone, nor does its encoder: it takes in"
    ):
        load_model(Arguments(model_dir=str(tmp_path)), AutoModel, torch.device("cpu"), (), config)


def test_token_type_ids_for_a_model_without(model_folder: ModelFolder) -> None:
    with pytest.raises(RunnerError, match="takes no token_type_ids"):
        load(model_dir=str(model_folder("distilbert", "text_embedding")), return_token_type_ids=True)


def test_a_folder_without_a_tokenizer(model_folder: ModelFolder, tmp_path: Path) -> None:
    """transformers would make an empty one, to which every word is unknown."""
    folder = shutil.copytree(model_folder("bert", "text_embedding"), tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(RunnerError, match=r"has no tokenizer: none of tokenizer\.json, vocab\.txt"):
        load(model_dir=str(folder))


def test_a_length_that_leaves_no_room(model_folder: ModelFolder) -> None:
    with pytest.raises(RunnerError, match="max_length 3 is too short: special tokens alone take up to 3"):
        load(model_dir=str(model_folder("bert", "text_embedding")), max_length=3)


def test_casing_that_a_tokenizer_does_not_know(model_folder: ModelFolder, caplog: pytest.LogCaptureFixture) -> None:
    load(model_dir=str(model_folder("roberta", "text_embedding")), disable_lower_case=False).close()
    assert "disable_lower_case has no effect on RobertaTokenizer" in caplog.text


def test_broken_weights(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("bert", "text_embedding"), tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunnerError) as error:
        load(model_dir=str(folder))
    assert str(error.value).startswith(f"{folder} cannot be loaded: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "dtype"), [("auto", torch.float32), ("half", torch.float16), ("bfloat16", torch.bfloat16)]
)
def test_dtype_on_a_cpu(name: str, dtype: torch.dtype) -> None:
    from runners.loading import resolve_dtype

    assert resolve_dtype(Arguments(dtype=name), torch.device("cpu")) == dtype
    assert resolve_dtype(Arguments(), torch.device("cuda")) == torch.float32
    assert resolve_dtype(Arguments(dtype="auto"), torch.device("cuda")) == torch.float16
