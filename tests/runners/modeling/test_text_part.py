"""Encoder-decoders as embedders."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM

from runners.core.arguments import Arguments
from runners.core.errors import RunnerError
from runners.modeling.loading import build_meta_model, load_config, load_model

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
    model = load_model(Arguments(model_dir=str(tmp_path)), AutoModel, torch.device("cpu"), torch.float32, (), config)
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
        again = load_model(alone, AutoModel, torch.device("cpu"), torch.float32, (), load_config(alone))
        with torch.inference_mode():
            torch.testing.assert_close(again(input_ids=ids)[0], expected, rtol=0, atol=0)
        assert type(build_meta_model(alone, AutoModel, load_config(alone))) is type(model)


def test_an_encoder_of_sound_is_named(tmp_path: Path) -> None:
    config = AutoConfig.for_model("whisper", **SIZES)
    AutoModel.from_config(config).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    with pytest.raises(
        RunnerError, match="WhisperModel does not run from text alone, nor does its encoder: it takes in"
    ):
        load_model(Arguments(model_dir=str(tmp_path)), AutoModel, torch.device("cpu"), torch.float32, (), config)
