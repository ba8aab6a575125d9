"""How long outputs may be, by where a model keeps its decoder's positions."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import BartConfig, BertConfig, EncoderDecoderConfig, LEDConfig, T5Config

from runners.core.errors import InputError
from runners.generator.length_limits import Limits
from tests.families import roberta_bpe

SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
BART: dict[str, Any] = {
    "d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8,
    "encoder_attention_heads": 1, "decoder_attention_heads": 1,
}  # fmt: skip
TWO_MODELS = EncoderDecoderConfig.from_encoder_decoder_configs(
    BertConfig(**SMALL, max_position_embeddings=90),
    BertConfig(**SMALL, max_position_embeddings=40, is_decoder=True, add_cross_attention=True),
)


@pytest.mark.parametrize(
    ("config", "asked", "output"),
    [
        (BartConfig(**BART, max_position_embeddings=50), None, 50),
        (BartConfig(**BART, max_position_embeddings=50), 20, 20),
        (LEDConfig(**BART, max_encoder_position_embeddings=64, max_decoder_position_embeddings=30), None, 30),
        (TWO_MODELS, None, 40),
        (TWO_MODELS, 60, 40),
        (T5Config(d_model=8, d_kv=8, d_ff=8, num_layers=1, num_heads=1), None, None),
    ],
)
def test_an_output_is_no_longer_than_the_decoder_has_positions(
    config: Any, asked: int | None, output: int | None
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    auto_class: Any = AutoModelForSeq2SeqLM
    limits = Limits.of(auto_class.from_config(config), roberta_bpe(), asked)
    assert limits.output == output
    assert limits.default_output is not None
    if output is not None:
        assert limits.default_output <= output
        with pytest.raises(InputError, match=f"maximum output length is {output} tokens"):
            limits.room(5, output + 1)
