from __future__ import annotations

import json
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError, RunnerError
from runners.core.metric_families import flush
from runners.core.predictions import TextInput
from runners.generator.runner import GeneratorRunner
from runners.modeling import loading
from runners.modeling.max_length import count_positions, limit_length, limit_sequence
from tests.conftest import GeneratorFolder, ModelFolder
from tests.encoders import load
from tests.families import MINILM
from tests.faults import LARGE_SCORES, change_weights


@pytest.mark.parametrize(
    ("family", "max_length", "recommended", "limit"),
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
    model_folder: ModelFolder, family: str, max_length: int | None, recommended: int | None, limit: int
) -> None:
    """RoBERTa has 514 positions for 512 tokens; KServe lets 513 in and crashes."""
    folder = model_folder(family, "text_embedding")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = int(1e30)
    assert limit_length(AutoModel.from_pretrained(folder), tokenizer, max_length, recommended) == limit


def test_length_limit_of_the_tokenizer(model_folder: ModelFolder) -> None:
    """It does not stand against what the operator asks for, where the model has the positions."""
    folder = model_folder("bert", "text_embedding")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 77
    model = AutoModel.from_pretrained(folder)
    assert limit_length(model, tokenizer, None) == 77
    assert limit_length(model, tokenizer, 300) == 300
    assert limit_length(model, tokenizer, 1000) == 512


_ROPE = {"rope_theta": 10000.0, "factor": 4.0}
_LONGROPE = {**_ROPE, "rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
_LLAMA3 = {**_ROPE, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("model_type", "positions", "rope", "count"),
    [
        ("llama", 40, {"rope_type": "default", "rope_theta": 10000.0}, 40),
        ("llama", 40, {**_ROPE, "rope_type": "linear"}, 160),
        ("llama", 40, {**_ROPE, "rope_type": "dynamic"}, 160),
        # Not scaled in the config, as Qwen2.5 is configured, and scaled already.
        ("qwen2", 40, {**_ROPE, "rope_type": "yarn"}, 160),
        ("qwen2", 40, {**_ROPE, "rope_type": "yarn", "original_max_position_embeddings": 40}, 160),
        ("qwen2", 160, {**_ROPE, "rope_type": "yarn", "original_max_position_embeddings": 40}, 160),
        ("llama", 160, _LLAMA3 | {"original_max_position_embeddings": 40}, 160),
        # Llama 3.2's factor is more than what it makes of the positions.
        ("llama", 100, _LLAMA3 | {"original_max_position_embeddings": 40}, 100),
        ("llama", 160, _LONGROPE | {"original_max_position_embeddings": 40}, 160),
        ("gemma3_text", 160, {"full_attention": {**_ROPE, "rope_type": "linear"}, "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}, 160),
        ("modernbert", 40, {"full_attention": {**_ROPE, "rope_type": "linear"}, "sliding_attention": {**_ROPE, "rope_type": "linear"}}, 160),
    ],
)  # fmt: skip
def test_positions_after_rotary_scaling(model_type: str, positions: int, rope: dict[str, Any], count: int) -> None:
    assert count_positions(_outline(model_type, max_position_embeddings=positions, rope_parameters=rope)) == count


def test_an_old_config_of_scaling() -> None:
    scaling = {"type": "dynamic", "factor": 4.0}
    assert count_positions(_outline("llama", max_position_embeddings=40, rope_scaling=scaling)) == 160


@pytest.mark.parametrize(
    ("model_type", "config", "known", "requested", "limit"),
    [
        ("llama", {"max_position_embeddings": 64}, 20, None, 64),
        ("llama", {"max_position_embeddings": 64}, 20, 40, 40),
        ("llama", {"max_position_embeddings": 64}, 20, 100, 64),
        # Relative positions end nowhere, but memory does.
        ("t5", {"n_positions": 512}, 512, None, 2048),
        ("t5", {"n_positions": 512}, 4096, None, 4096),
        ("t5", {"n_positions": 512}, 512, 4096, 4096),
        ("mt5", {}, int(1e30), None, 2048),
        ("mt5", {}, int(1e30), 4096, 4096),
        ("led", {"max_encoder_position_embeddings": 128, "attention_window": 8}, 16, None, 128),
    ],
)  # fmt: skip
def test_the_limit_of_a_generator(
    model_type: str, config: dict[str, Any], known: int, requested: int | None, limit: int
) -> None:
    """The tokenizer's limit counts where the model has none and it is above what is assumed otherwise."""
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    tokenizer.model_max_length = known
    assert limit_sequence(_outline(model_type, **config), tokenizer, requested) == limit


def _outline(model_type: str, **config: Any) -> PreTrainedModel:
    """A model without weights."""
    auto_class: Any = AutoModel
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(AutoConfig.for_model(model_type, **config))
    return model


@pytest.mark.parametrize("family", ["roberta", "bert", "deberta-v2"])
async def test_texts_over_the_limit_are_truncated_counted_and_said_once(
    model_folder: ModelFolder, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    from prometheus_client import REGISTRY

    runner = load(model_dir=str(model_folder(family, "token_classification")), model_name=f"long-{family}")
    texts = [TextInput("very long " * 1000), TextInput("short"), TextInput("x y z " * 5000)]
    for _ in range(2):
        predictions = await runner.infer(texts, runner.default_options)
        lengths = [prediction.main.values.shape[1] for prediction in predictions]  # type: ignore[union-attr]
        assert [length == 512 for length in lengths] == [True, False, True]
    runner.close()
    assert caplog.text.count("was truncated") == 1
    flush()
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
    ("changes", "capability", "dtype", "warnings"),
    [
        ({}, (8, 0), "float16", []),
        (
            {"largest": LARGE_SCORES},
            (8, 0),
            "bfloat16",
            ["gives NaN or infinity in float16: it is served in bfloat16 instead"],
        ),
        (
            {"largest": LARGE_SCORES},
            (7, 5),
            "float32",
            ["gives NaN or infinity in float16: it is served in float32 instead"],
        ),
        (
            {"last": {"position_embeddings.weight": 70_000.0}},
            (8, 0),
            "bfloat16",
            ["position_embeddings.weight hold NaN or infinity in float16: it is served in bfloat16 instead"],
        ),
        (
            # The largest number of float32 is larger than that of bfloat16.
            {"last": {"position_embeddings.weight": 3.402e38}},
            (8, 0),
            "float32",
            [
                "position_embeddings.weight hold NaN or infinity in float16: it is served in bfloat16 instead",
                "position_embeddings.weight hold NaN or infinity in bfloat16: it is served in float32 instead",
            ],
        ),
    ],
    ids=["fits", "scores", "scores without bfloat16", "weights", "weights twice"],
)
def test_auto_falls_back_to_a_dtype_that_the_model_fits_into(
    changes: dict[str, dict[str, float]],
    capability: tuple[int, int],
    dtype: str,
    warnings: list[str],
    model_folder: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a CPU that says it is a GPU of this capability: the numbers really overflow."""
    folder = change_weights(model_folder("bert", "text_embedding"), tmp_path / "large", **changes)
    monkeypatch.setattr(loading, "read_capability", lambda _: capability)
    loads: list[weakref.ref[PreTrainedModel]] = []
    load_model = loading.load_model

    def load_after_the_last_is_freed(*arguments: Any) -> PreTrainedModel:
        assert [each() for each in loads] == [None] * len(loads)
        model = load_model(*arguments)
        loads.append(weakref.ref(model))
        return model

    monkeypatch.setattr("runners.encoder.loader.load_model", load_after_the_last_is_freed)
    runner = load(model_dir=str(folder), dtype="auto")
    assert (runner.details.dtype, len(loads)) == (dtype, 1 + len(warnings))
    lines = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(lines) == len(warnings)
    assert all(line.endswith(warning) for line, warning in zip(lines, warnings, strict=True)), lines
    runner.close()


def test_auto_ends_with_the_last_dtype(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"layer.1.output.dense.bias": math.nan}
    folder = change_weights(model_folder("bert", "text_embedding"), tmp_path / "broken", last=broken)
    monkeypatch.setattr(loading, "read_capability", lambda _: (8, 0))
    with pytest.raises(ModelLoadError, match=r"hold NaN or infinity in float32: the checkpoint is broken$"):
        load(model_dir=str(folder), dtype="auto")


async def test_auto_falls_back_for_a_generator(
    generator_folder: GeneratorFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = change_weights(
        generator_folder("llama"), tmp_path / "large", {"layers.0.mlp.down_proj.weight": 60_000, "up_proj.weight": 100}
    )
    arguments = {"model_dir": str(folder), "backend": "huggingface"}
    with pytest.raises(ModelLoadError, match=r"NaN or infinity in float16: set --dtype to bfloat16 or float32$"):
        await GeneratorRunner(Arguments(**arguments, dtype="float16")).load()
    monkeypatch.setattr(loading, "read_capability", lambda _: (8, 0))
    runner = GeneratorRunner(Arguments(**arguments, dtype="auto"))
    await runner.load()
    assert runner.details.dtype == "bfloat16"
    assert "LlamaForCausalLM gives NaN or infinity in float16: it is served in bfloat16 instead" in caplog.text
    runner.close()
