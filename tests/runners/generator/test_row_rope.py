"""Rotary positions by the length of each row, against the stock embedding of each row alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from runners.generator.decoder import Decoder
from runners.generator.row_rope import RowRope
from runners.modeling.length_dependent_rope import find_length_dependent
from tests.rotary_models import DYNAMIC, LIMIT, LONGROPE, YARN, make_model, make_phi, make_phi_moe

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
