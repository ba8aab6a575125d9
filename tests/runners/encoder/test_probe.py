"""Which forward pass a model gets, and what is refused at load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from runners.core.errors import ModelLoadError
from runners.core.predictions import Numbers, Options, TextInput
from runners.core.task import Task
from runners.encoder import forward_selection
from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import ModelInputs, TokenSelection
from runners.encoder.forward_selection import in_float32, select_forward
from runners.encoder.packing import PackedForward
from runners.encoder.probe import Probe, count_probe_words
from runners.encoder.runner import EncoderRunner
from runners.encoder.sequences import TokenizedText
from runners.encoder.tasks import ENCODER_TASKS
from tests.architectures.models import save_model
from tests.architectures.registry import Pair
from tests.conftest import ModelFolder
from tests.dispatched import DispatchedCalls
from tests.encoders import load
from tests.faults import LARGE_SCORES, change_weights
from tests.forwards import MAX_BATCH_TOKENS, ForwardCase


@contextmanager
def loaded(folder: Path, **arguments: Any) -> Iterator[EncoderRunner]:
    runner = load(model_dir=str(folder), **arguments)
    try:
        yield runner
    finally:
        runner.close()


# As LARGE_SCORES, in all dtypes.
HUGE_SCORES = dict.fromkeys(LARGE_SCORES, 1e30)


@pytest.fixture
def damaged(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """A tiny BERT with one weight that is no number."""
    folder = shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.bias"][3] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("model_type", "task", "mode", "reason"),
    [
        ("bert", Task.FILL_MASK, BatchMode.PACKED, "gives the same as for each text alone"),
        # Causal attention, keys and values that heads share, no padding token.
        ("qwen3", Task.TEXT_EMBEDDING, BatchMode.PACKED, "gives the same as for each text alone"),
        # A bias by the distance of two tokens, which the attention function is given.
        ("t5", Task.TOKEN_CLASSIFICATION, BatchMode.PACKED, "gives the same as for each text alone"),
        # Attention of their own, which is replaced.
        ("deberta-v2", Task.TEXT_EMBEDDING, BatchMode.PACKED, "gives the same as for each text alone"),
        ("mpnet", Task.TEXT_EMBEDDING, BatchMode.PACKED, "gives the same as for each text alone"),
        # What packed attention does not compute: a maximum of the scores, another score beside them, a mask of chunks.
        ("gemma2", Task.TEXT_EMBEDDING, BatchMode.PADDED, "not packed, since its attention has softcap"),
        ("gpt_oss", Task.TOKEN_CLASSIFICATION, BatchMode.PADDED, "not packed, since its attention has s_aux"),
        ("llama4_text", Task.TEXT_EMBEDDING, BatchMode.PADDED, "not packed, since its mask confines attention to 8192"),
        # A row of more tokens than the model has positions for one text.
        (
            "clip_text_model",
            Task.TEXT_EMBEDDING,
            BatchMode.PADDED,
            "not packed, since Sequence length must be less than",
        ),
        # Each token is embedded with the ones before and after it.
        ("mobilebert", Task.TEXT_EMBEDDING, BatchMode.EQUAL_LENGTH, "not padded on the right, since its scores differ"),
        # A convolution.
        (
            "convbert",
            Task.TOKEN_CLASSIFICATION,
            BatchMode.EQUAL_LENGTH,
            "not padded on the right, since its scores differ",
        ),
        # A longer text is read with another kind of attention than a short one.
        (
            "big_bird",
            Task.QUESTION_ANSWERING,
            BatchMode.EQUAL_LENGTH,
            "not padded on the right, since its scores differ",
        ),
    ],
)
def test_the_fastest_way_that_neighbours_do_not_change(
    model_type: str,
    task: Task,
    mode: BatchMode,
    reason: str,
    dtype: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save_model(Pair(model_type, task), tmp_path)
    caplog.set_level("INFO")
    with loaded(tmp_path, task=task, dtype=dtype) as runner:
        assert runner.forward_mode is mode
    [line] = [record for record in caplog.records if record.message.startswith("texts are run ")]
    assert reason in line.message
    assert (line.levelname == "WARNING") == (mode is BatchMode.EQUAL_LENGTH)


async def test_padding_goes_where_the_tokenizer_puts_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """XLNet's classifier reads the last column, and its tokenizer pads on the left."""
    save_model(Pair("xlnet", Task.SEQUENCE_CLASSIFICATION), tmp_path)
    with loaded(tmp_path) as runner:
        assert runner.forward_mode is BatchMode.PADDED
        text = TextInput("Good Rome.")
        options = Options(outputs=frozenset({"logits"}))
        [alone] = await runner.infer([text], options)
        beside, _ = await runner.infer([text, TextInput("a longer text " * 9)], options)
        np.testing.assert_allclose(beside.arrays["logits"], alone.arrays["logits"], atol=2e-5)


def test_what_the_stock_model_does_not_run_in_a_dtype_is_said(tmp_path: Path) -> None:
    save_model(Pair("xlnet", Task.SEQUENCE_CLASSIFICATION), tmp_path)
    with (
        pytest.raises(
            ModelLoadError, match="XLNetForSequenceClassification does not run with text alone in bfloat16: "
        ),
        loaded(tmp_path, dtype="bfloat16"),
    ):
        pass


def test_without_memory_for_float32_nothing_is_padded_in_16_bit(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(forward_selection, "available_memory", lambda: 1000)
    caplog.set_level("INFO")
    folder = model_folder("deberta-v2", "sequence_classification", conv_kernel_size=3)
    with loaded(folder, dtype="bfloat16") as runner:
        assert runner.forward_mode is BatchMode.EQUAL_LENGTH
    assert "not padded, since there is no memory to try it in float32" in caplog.text
    with loaded(folder) as runner:
        assert runner.forward_mode is BatchMode.PADDED


def test_weights_in_16_bit_are_the_same_after_they_were_tried_in_float32(model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder("modernbert", "text_embedding"), "text_embedding", dtype="bfloat16")
    before = {name: tensor.clone() for name, tensor in case.reference.state_dict(keep_vars=True).items()}
    inputs = ModelInputs(case.reference, frozenset({"input_ids"}), TokenSelection.ALL, None, 0)
    with in_float32(inputs):
        assert {parameter.dtype for parameter in case.reference.parameters()} == {torch.float32}
    for name, tensor in case.reference.state_dict(keep_vars=True).items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_a_weight_that_is_no_number_ends_the_load(damaged: Path) -> None:
    with (
        pytest.raises(
            ModelLoadError, match=r"weights bert\.encoder\.layer\.1\.output\.dense\.bias hold NaN or infinity"
        ),
        loaded(damaged),
    ):
        pass


@pytest.mark.parametrize("task", [task for task in ENCODER_TASKS if task is not Task.ZERO_SHOT_CLASSIFICATION])
def test_scores_that_overflow_end_the_load_and_name_another_dtype(
    task: Task, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = change_weights(model_folder("bert", str(task)), tmp_path / "large", LARGE_SCORES)
    with (
        pytest.raises(ModelLoadError, match=r"gives NaN or infinity in float16: set --dtype to bfloat16 or float32$"),
        loaded(folder, task=task, dtype="float16"),
    ):
        pass
    with loaded(folder, task=task, dtype="bfloat16") as runner:
        assert runner.ready


@pytest.mark.parametrize(
    ("dtype", "changes", "message"),
    [
        (
            "float16",
            {"last": {"query.bias": 70_000.0}},
            "query.bias hold NaN or infinity in float16: the checkpoint is",
        ),
        ("bfloat16", {"last": {"query.bias": 3.402e38}}, "bias hold NaN or infinity in bfloat16: the checkpoint is"),
        ("bfloat16", {"largest": HUGE_SCORES}, "gives NaN or infinity in bfloat16: set --dtype to float32"),
        ("float32", {"largest": HUGE_SCORES}, "BertForSequenceClassification gives NaN or infinity in float32"),
    ],
)
def test_numbers_that_overflow_in_any_dtype_end_the_load(
    dtype: str, changes: dict[str, dict[str, float]], message: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folder = change_weights(model_folder("bert", "sequence_classification"), tmp_path / "large", **changes)
    with pytest.raises(ModelLoadError, match=message), loaded(folder, dtype=dtype):
        pass


def test_the_weights_are_read_at_once(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU waits for each number that Python reads."""
    case = ForwardCase(model_folder("bert", "token_classification"), "token_classification")
    case.forward.detach()
    probe = case.probe()
    with DispatchedCalls() as calls:
        forward_selection._check_finite(probe)
    assert 0 < calls.waits <= 2, "one for all weights, one for all scores"


def test_a_model_that_needs_more_than_text_is_refused_by_what_it_needs(tmp_path: Path) -> None:
    save_model(Pair("lxmert", Task.QUESTION_ANSWERING), tmp_path)
    with (
        pytest.raises(ModelLoadError, match="does not run with text alone in float32, it takes visual_feats beside it"),
        loaded(tmp_path, task=Task.QUESTION_ANSWERING),
    ):
        pass


def test_texts_that_the_stock_model_refuses_do_not_end_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Funnel cannot shorten a text of two tokens, which is what one word is without special ones."""
    save_model(Pair("funnel", Task.TEXT_EMBEDDING), tmp_path)
    caplog.set_level("INFO")
    with loaded(tmp_path, disable_special_tokens=True) as runner:
        assert runner.forward_mode is BatchMode.EQUAL_LENGTH
    assert "some texts were not tried, since the stock model refuses them: output with shape" in caplog.text


def test_one_text_that_the_stock_model_runs_is_enough(model_folder: ModelFolder) -> None:
    case = ForwardCase(model_folder("bert", "token_classification"), "token_classification")
    case.forward.detach()
    one = Probe(case.inputs, case.texts([9], 0), np.arange(10, 1000), MAX_BATCH_TOKENS)
    forward, reason = select_forward(one, "right")
    assert forward.mode is BatchMode.PACKED, reason


def test_a_vocabulary_of_special_tokens_alone(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "special"))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    tokenizer["model"]["vocab"] = special
    path.write_text(json.dumps(tokenizer))
    with loaded(folder) as runner:
        assert runner.forward_mode is BatchMode.PACKED


def test_no_memory_for_a_text_ends_the_load(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe without its longest text would try less than what is served."""
    case = ForwardCase(model_folder("bert", "token_classification"), "token_classification")

    def run_out(_: ModelInputs, text: TokenizedText) -> torch.Tensor:
        raise torch.OutOfMemoryError(f"no memory for {len(text.input_ids)} tokens")

    monkeypatch.setattr(ModelInputs, "run_alone", run_out)
    with pytest.raises(torch.OutOfMemoryError, match="no memory for 7 tokens"):
        case.probe()


def test_running_out_of_memory_in_float32_only_leaves_padding_out(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_alone = ModelInputs.run_alone

    def run_out(inputs: ModelInputs, text: TokenizedText) -> torch.Tensor:
        if inputs.dtype == torch.float32:
            raise torch.OutOfMemoryError("out of memory")
        return run_alone(inputs, text)

    monkeypatch.setattr(ModelInputs, "run_alone", run_out)
    caplog.set_level("INFO")
    with loaded(model_folder("deberta-v2", "sequence_classification", conv_kernel_size=3), dtype="bfloat16") as runner:
        assert runner.forward_mode is BatchMode.EQUAL_LENGTH
    assert "not padded, since there is no memory to try it in float32: out of memory" in caplog.text


def test_a_batch_without_memory_in_float32_is_packed_all_the_same(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = PackedForward.run_checked

    def run_out(forward: PackedForward, texts: Sequence[TokenizedText]) -> Any:
        if forward._inputs.dtype == torch.float32:
            raise torch.OutOfMemoryError("out of memory")
        return run(forward, texts)

    monkeypatch.setattr(PackedForward, "run_checked", run_out)
    with loaded(model_folder("bert", "token_classification"), dtype="bfloat16") as runner:
        assert runner.forward_mode is BatchMode.PACKED


async def test_vectors_are_as_wide_as_the_rows_of_the_model(tmp_path: Path) -> None:
    """Reformer joins two streams of `hidden_size` each."""
    save_model(Pair("reformer", Task.TEXT_EMBEDDING), tmp_path)
    with loaded(tmp_path) as runner:
        [prediction] = await runner.infer([TextInput("good")], runner.default_options)
        assert isinstance(prediction.main, Numbers)
        assert prediction.main.values.shape == (64,)
        assert runner.properties["dimensions"] == "64"


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({"model_type": "bert"}, 24),
        ({"model_type": "modernbert", "local_attention": 128}, 152),
        ({"model_type": "longformer", "attention_window": [16, 64]}, 88),
        ({"model_type": "mistral", "sliding_window": 4096}, 1100),
        ({"model_type": "big_bird", "attention_type": "block_sparse", "block_size": 64, "num_random_blocks": 3}, 728),
        ({"model_type": "big_bird", "attention_type": "original_full"}, 24),
        ({"model_type": "llama4_text", "attention_chunk_size": 64}, 88),
        ({"model_type": "gpt_neo", "window_size": 200}, 224),
        ({"model_type": "reformer", "local_attn_chunk_length": 32, "lsh_attn_chunk_length": 64}, 88),
        ({"model_type": "longt5", "local_radius": 127, "global_block_size": 16}, 151),
        ({"model_type": "recurrent_gemma", "attention_window_size": 300}, 324),
        ({"model_type": "mamba2", "chunk_size": 256}, 280),
        ({"model_type": "pegasus_x", "block_size": 512}, 536),
        ({"model_type": "canine", "local_transformer_stride": 128}, 152),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "sliding_window": 32}}, 56),
    ],
)
def test_probes_are_longer_than_what_attention_reaches(config: dict[str, object], longest: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert max(count_probe_words(AutoConfig.from_pretrained(tmp_path))) == longest
