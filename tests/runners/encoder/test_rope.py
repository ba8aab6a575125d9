"""Rotary positions by the length of each row, against the stock embedding of each row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from runners.generator.decoder import Decoder
from runners.generator.rope import RowRope
from runners.modeling.rotary import find_length_dependent

LIMIT = 40
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 3.0, 2.0, 6.0],
    "original_max_position_embeddings": LIMIT, "factor": 4.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LIMIT}


def make_model(model_type: str, rope: dict[str, Any], **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64,
        "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
        "max_position_embeddings": LIMIT if rope is DYNAMIC else 4 * LIMIT,
    }  # fmt: skip
    parameters = {"rope_theta": 10000.0, **rope}
    auto_class: Any = AutoModelForCausalLM
    made: PreTrainedModel = auto_class.from_config(
        AutoConfig.for_model(model_type, **sizes | {"rope_parameters": parameters} | config)
    )
    # As it comes from `from_config`, it is in training mode.
    made.train(False)
    return made


def make_phi() -> PreTrainedModel:
    return make_model("phi3", LONGROPE, original_max_position_embeddings=LIMIT)


def make_phi_moe() -> PreTrainedModel:
    rope = LONGROPE | {"short_mscale": 1.2, "long_mscale": 1.4}
    experts = {"num_local_experts": 2, "num_experts_per_tok": 2}
    return make_model("phimoe", rope, original_max_position_embeddings=LIMIT, **experts)


MODELS = {
    "dynamic": lambda: make_model("llama", DYNAMIC),
    "longrope": lambda: make_model("llama", LONGROPE),
    "phi3": make_phi,
    "phimoe": make_phi_moe,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [(5, 40), (39, 41, 90), (120, 3, 60, 60)])
def test_each_row_gets_what_it_gets_alone(name: str, lengths: tuple[int, ...]) -> None:
    model = MODELS[name]()
    [embedding] = find_length_dependent(model)
    hidden = torch.zeros(1, 1, 32)
    last = [torch.tensor([[length - 2, length - 1]]) for length in lengths]
    alone = []
    for positions in last:
        embedding.reset()
        alone.append(embedding.module(hidden, positions))
    rope = RowRope(model)
    with rope.at(lengths):
        found = embedding.module(hidden, torch.cat(last))
        # The first columns of prompts that go into the cache in parts.
        first = embedding.module(hidden, torch.zeros(len(lengths), 1, dtype=torch.long) + 1)
    for part in range(2):
        torch.testing.assert_close(found[part], torch.cat([each[part] for each in alone]))
    for row, length in enumerate(lengths):
        embedding.reset()
        torch.testing.assert_close(first[0][row], embedding.module(hidden, torch.tensor([[1, length - 1]]))[0][0, :1])


@pytest.mark.parametrize(
    ("make", "limit", "restarts_above"),
    [
        (MODELS["dynamic"], LIMIT, None),
        # Where LongRoPE changes, `generate` goes on with Llama's cache and gives up Phi-3's.
        (MODELS["longrope"], LIMIT, None),
        (make_phi, LIMIT, LIMIT),
        (make_phi_moe, LIMIT, LIMIT),
        (lambda: make_model("llama", YARN), None, None),
        (lambda: make_model("phi3", {"rope_type": "default"}, original_max_position_embeddings=LIMIT), None, None),
    ],
    ids=["dynamic", "longrope", "phi3", "phimoe", "yarn", "phi3 without"],
)
def test_where_positions_change(make: Any, limit: int | None, restarts_above: int | None) -> None:
    decoder = Decoder(make(), None)
    assert decoder.rope.limit == limit
    assert decoder.restarts_above == restarts_above


@pytest.mark.parametrize("name", MODELS)
def test_a_limit_is_lowered_and_comes_back(name: str) -> None:
    model = MODELS[name]()
    rope = RowRope(model)
    before = model.config.to_dict()
    hidden, positions = torch.zeros(1, 1, 32), torch.tensor([[9]])
    [embedding] = find_length_dependent(model)
    stock = embedding.module(hidden, positions)
    with rope.lowered(8):
        assert rope.limit == 8
        assert not torch.equal(embedding.module(hidden, positions)[0], stock[0])
    assert rope.limit == LIMIT
    assert torch.equal(embedding.module(hidden, positions)[0], stock[0])
    assert model.config.to_dict() == before
