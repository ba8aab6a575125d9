"""What a model's generation_config.json says holds where a request says nothing: against `generate()`."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from runners.core.errors import ModelLoadError
from runners.core.generation import Sampling
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import GeneratorFolder
from tests.generated import PROMPTS, collect, collect_ids, copy_with_defaults, generate, load
from tests.generator_families.models import save_generator
from tests.generator_families.registry import registered_families
from tests.runners.conftest import Start

# facebook/bart-large-cnn's, smaller.
BART_CNN = {
    "num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "min_length": 12, "max_length": 30,
    "early_stopping": True, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
}  # fmt: skip
# The tokenizers' own end tokens, which end an output too.
ENDS = [2, 3]
# By the tokens that the model says where nothing is set, those it says most first.
CASES: dict[str, Callable[[list[int]], dict[str, Any]]] = {
    "no_repeat_ngram_size": lambda said: {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": lambda said: {"encoder_no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": lambda said: {"encoder_repetition_penalty": 9.0},
    "min_length": lambda said: {"min_length": 18, "eos_token_id": [*ENDS, *said]},
    "min_new_tokens": lambda said: {"min_new_tokens": 9, "eos_token_id": [*ENDS, *said]},
    "forced_bos_token_id": lambda said: {"forced_bos_token_id": 77},
    "forced_eos_token_id": lambda said: {"forced_eos_token_id": 2},
    "suppress_tokens": lambda said: {"suppress_tokens": said[:5]},
    "begin_suppress_tokens": lambda said: {"begin_suppress_tokens": said},
    "begin_suppress_tokens after a forced one": lambda said: {"begin_suppress_tokens": said, "forced_bos_token_id": 77},
    "bad_words_ids": lambda said: {"bad_words_ids": [said[:1], [said[1], said[1]], said[2:4]]},
    "sequence_bias": lambda said: {"sequence_bias": [[said[:1], -9.0], [[77], 12.0]]},
    "exponential_decay_length_penalty": lambda said: {"exponential_decay_length_penalty": [4, 1.8]},
    "repetition_penalty and others": lambda said: {
        "repetition_penalty": 1.6, "no_repeat_ngram_size": 3, "renormalize_logits": True
    },
    "beams": lambda said: {"num_beams": 3},
    "beams, as bart-large-cnn": lambda said: BART_CNN,
}  # fmt: skip
# A causal model's prompt is longer than what it looks at.
WITHOUT_EFFECT = {
    ("llama", "forced_bos_token_id"),
}
Folder = Callable[..., Path]


@pytest.fixture
def folder_with(generator_folder: GeneratorFolder, tmp_path: Path) -> Folder:
    """A model with these settings: `folder_with("bart", num_beams=4)`."""
    return lambda family, **settings: copy_with_defaults(generator_folder(family), tmp_path / family, **settings)


@pytest.mark.parametrize(
    ("family", "case"),
    # What `transformers` makes of a setting does not depend on the family; where the history is kept does.
    [(family, case) for family in ("bart", "llama") for case in CASES]
    + [(family, case) for family in ("t5", "mbart") for case in ("no_repeat_ngram_size", "beams, as bart-large-cnn")],
)
async def test_an_answer_is_that_of_generate(
    family: str, case: str, generator_folder: GeneratorFolder, folder_with: Folder, start: Start
) -> None:
    plain_model = load(generator_folder(family))
    tokenizer = AutoTokenizer.from_pretrained(generator_folder(family))
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]

    def say_plain() -> list[list[int]]:
        return [
            generate(plain_model, prompt, max_new_tokens=24, do_sample=False, eos_token_id=ENDS)[0]
            for prompt in prompts
        ]

    plain = say_plain()
    said = [token for token, _ in Counter(token for ids in plain for token in ids).most_common()]
    if "encoder" in case:
        # What is not to be repeated must be there.
        prompts = [[*prompt[:-1], *said[:8], prompt[-1]] for prompt in prompts]
        plain = say_plain()
    folder = folder_with(family, **{"eos_token_id": ENDS} | CASES[case](said))
    model = load(folder)
    expected = [generate(model, prompt, max_new_tokens=24, do_sample=False)[0] for prompt in prompts]
    assert (expected == plain) is ((family, case) in WITHOUT_EFFECT)
    engine = start(folder)

    # Together, and beside what is drawn.
    found = await asyncio.gather(
        *(collect_ids(engine, prompt, temperature=0, max_tokens=24) for prompt in prompts),
        *(collect_ids(engine, prompt, temperature=1.5, max_tokens=9) for prompt in prompts),
    )
    assert found[:3] == expected


async def test_a_summarizer_gives_what_generate_gives(folder_with: Folder, start: Start) -> None:
    """Where a request says nothing at all; its own length too. From a config.json as old models have it as well."""
    folder = folder_with("bart", **BART_CNN)
    legacy = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | legacy), encoding="utf-8")
    model, engine = load(folder), start(folder)

    for prompt in PROMPTS:
        ids = await engine.tokenize(prompt)
        [expected] = generate(model, ids)
        assert await collect_ids(engine, ids) == expected
        assert len(expected) == 29
        # To ask for chance is not to ask for beams.
        drawn = [await collect_ids(engine, ids, temperature=2.0, seed=seed) for seed in range(3)]
        assert len({tuple(each) for each in drawn}) == 3
        assert len(await collect(engine, ids, seed=1)) == 29


@pytest.mark.parametrize(
    ("settings", "sampling", "is_drawn"),
    [
        ({}, {}, False),
        ({}, {"top_p": 1.0, "top_k": 0, "min_p": 0.0}, False),
        ({}, {"temperature": 0.0, "seed": 1, "top_p": 0.9}, False),
        ({"temperature": 2.0}, {}, False),
        ({}, {"temperature": 2.0}, True),
        ({"temperature": 2.0}, {"seed": None, "top_p": 0.999}, True),
        ({"do_sample": True, "temperature": 2.0}, {}, True),
        ({"do_sample": True, "temperature": 2.0, "num_beams": 4}, {}, True),
    ],
)  # fmt: skip
async def test_an_encoder_decoder_is_drawn_from_where_the_request_or_the_model_says_so(
    settings: dict[str, Any], sampling: dict[str, Any], is_drawn: bool, folder_with: Folder, start: Start
) -> None:
    engine = start(folder_with("bart", **settings))

    outputs = [await collect_ids(engine, PROMPTS[0], max_tokens=12, **sampling) for _ in range(3)]
    assert len({tuple(output) for output in outputs}) == (3 if is_drawn else 1)


async def test_a_request_wins(folder_with: Folder, start: Start) -> None:
    folder = folder_with(
        "bart", eos_token_id=[2, *range(20, 3000, 7)], min_length=15, repetition_penalty=1.9, max_length=20, num_beams=2
    )
    model, engine = load(folder), start(folder)

    ids = await engine.tokenize(PROMPTS[1])
    for sampling, settings in (
        ({"min_tokens": 3}, {"min_length": 4}),
        ({"repetition_penalty": 1.0}, {"repetition_penalty": 1.0}),
        ({"max_tokens": 5}, {"max_new_tokens": 5}),
        ({"max_tokens": 40}, {"max_new_tokens": 40}),
        ({"ignore_eos": True}, {"eos_token_id": None, "min_length": 0}),
    ):
        assert await collect_ids(engine, ids, **sampling) == generate(model, ids, **settings)[0], sampling


async def test_a_causal_model_has_its_length_and_its_stop_strings(folder_with: Folder, start: Start) -> None:
    # Its temperature is vLLM's, so that the words are no test of `generate`.
    engine = start(folder_with("llama", max_new_tokens=7))
    deltas = await collect(engine, PROMPTS[0], temperature=0, ignore_eos=True)
    assert deltas[-1].finish_reason == "length"
    assert len(deltas) == 7
    assert len(await collect(engine, PROMPTS[0], max_tokens=9, ignore_eos=True)) == 9
    texts = [delta.text for delta in deltas]
    loaded = engine._model()
    engine._loaded = replace(loaded, defaults=replace(loaded.defaults, stop=("never there", texts[3])))
    stopped = await collect(engine, PROMPTS[0], temperature=0, ignore_eos=True)
    assert "".join(delta.text for delta in stopped) == "".join(texts[:3])
    assert stopped[-1].stop_reason == texts[3]


@pytest.mark.parametrize(
    "settings",
    [
        {"typical_p": 0.3},
        {"epsilon_cutoff": 0.02, "temperature": 2.0},
        {"eta_cutoff": 0.05, "top_k": 9, "temperature": 1.5},
        {"top_h": 0.4},
    ],
)
async def test_a_model_leaves_out_what_generate_leaves_out(
    settings: dict[str, Any], folder_with: Folder, start: Start
) -> None:
    """What of the vocabulary is drawn, 400 times, is what `generate` leaves."""
    folder = folder_with("gpt2", do_sample=True, **{"top_k": 0} | settings)
    await check_what_is_left_out(folder, start(folder))


@pytest.mark.parametrize("model_s", [{}, {"typical_p": 0.6}])
@pytest.mark.parametrize("typical_p", [0.3, 1.0])
async def test_a_request_s_typical_p_wins(
    typical_p: float, model_s: dict[str, Any], folder_with: Folder, start: Start
) -> None:
    folder = folder_with("gpt2", do_sample=True, top_k=0, **model_s)
    await check_what_is_left_out(folder, start(folder), typical_p=typical_p)


async def check_what_is_left_out(folder: Path, engine: TransformersEngine, **sampling: Any) -> None:
    model: Any = load(folder)
    ids = await engine.tokenize(PROMPTS[0])
    given = torch.tensor([ids])
    scores = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=1, output_scores=True,
        return_dict_in_generate=True, **sampling,
    ).scores[0][0]  # fmt: skip
    kept = {int(token) for token in (scores > -torch.inf).nonzero()[:, 0]}
    likely = {int(token) for token in (scores.softmax(-1) > 0.05).nonzero()[:, 0]}
    requests = (collect_ids(engine, ids, max_tokens=1, seed=seed, **sampling) for seed in range(400))
    drawn = {token for ids in await asyncio.gather(*requests) for token in ids}
    assert likely <= drawn <= kept
    assert (len(kept) < 2000) == (sampling.get("typical_p") != 1)


@pytest.mark.parametrize(
    ("family", "settings", "sampling", "tokens"),
    [
        ("bart", {"max_length": 20}, {"default_tokens": 16}, 19),
        ("bart", {"max_length": 200}, {"default_tokens": 16}, 64),
        ("bart", {"max_new_tokens": 9}, {}, 9),
        ("bart", {"max_new_tokens": 9}, {"max_tokens": 11}, 11),
        ("bart", {}, {"default_tokens": 16}, 16),
        ("bart", {}, {}, 64),
        ("llama", {"max_new_tokens": 9}, {"default_tokens": 16}, 16),
        ("llama", {"max_new_tokens": 9, "max_length": 5}, {}, 9),
        # A route's default is no wish: it gives way to what there is room for.
        ("llama", {}, {"default_tokens": 1000}, 62),
    ],
)  # fmt: skip
async def test_a_length_is_the_request_s_or_the_model_s_or_the_protocol_s(
    family: str, settings: dict[str, Any], sampling: dict[str, Any], tokens: int, folder_with: Folder, start: Start
) -> None:
    engine = start(folder_with(family, **settings))
    assert len(await collect_ids(engine, [8, 9], ignore_eos=True, **sampling)) == tokens


def test_what_has_no_effect_is_named(folder_with: Folder, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    start(
        folder_with("bart", penalty_alpha=0.6, max_time=3.0, guidance_scale=2.0, num_beams=40, no_repeat_ngram_size=0)
    )
    assert caplog.messages.count(
        "of generation_config.json these have no effect here: penalty_alpha, guidance_scale, max_time, num_beams (it is "
        "40, with do_sample None)"
    ) == 1  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"no_repeat_ngram_size": "three"}, "generation_config.json cannot be used: "),
        ({"bad_words_ids": [[-1]]}, "generation_config.json cannot be used: "),
        ({"forced_bos_token_id": 3000}, "generation_config.json cannot be used: "),
        ({"temperature": "1"}, "generation_config.json has temperature '1', which must be a number from 0"),
        ({"repetition_penalty": -1.0}, "generation_config.json has repetition_penalty -1.0, which must be a number"),
        ({"eos_token_id": "2"}, "generation_config.json has eos_token_id '2', which must be a token id"),
    ],
)
def test_what_means_nothing_ends_the_load(
    settings: dict[str, Any], message: str, folder_with: Folder, start: Start
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        start(folder_with("bart", **settings))


def test_a_file_of_defaults_that_is_no_json_ends_the_load(folder_with: Folder, start: Start) -> None:
    folder = folder_with("bart")
    (folder / "generation_config.json").write_text("{bad")
    with pytest.raises(ModelLoadError, match=r"generation_config\.json"):
        start(folder)


async def test_a_model_that_runs_alone_has_its_defaults_too(tmp_path: Path, start: Start) -> None:
    """Its steps are those of a `generate` that is not to do them again."""
    [family] = [family for family in registered_families() if str(family) == "mamba-causal"]
    save_generator(family, tmp_path / "plain")
    settings = {"no_repeat_ngram_size": 1, "num_beams": 2, "eos_token_id": ENDS}
    folder = copy_with_defaults(tmp_path / "plain", tmp_path / "configured", **settings)
    model, prompt = load(folder), list(range(9, 20))
    expected = generate(model, prompt, max_new_tokens=12)[0]
    assert await collect_ids(start(folder), prompt, max_tokens=12) == expected
    assert len(set(expected)) == len(expected)
    # It stops by strings that only a tokenizer knows, and searches as `generate` does by code of others.
    others = {"stop_strings": ["never there"], "penalty_alpha": 0.6, "top_k": 4, "token_healing": True}
    folder = copy_with_defaults(tmp_path / "plain", tmp_path / "others", **others)
    assert len(await collect_ids(start(folder), prompt, max_tokens=5, ignore_eos=True)) == 5


def test_a_model_without_settings_pays_nothing(folder_with: Folder, start: Start) -> None:
    defaults = start(folder_with("gpt2"))._model().defaults
    sampling = Sampling(temperature=0)
    assert defaults.process(defaults.resolve(sampling), sampling, [5, 6], 7) == (defaults.resolve(sampling), ())
