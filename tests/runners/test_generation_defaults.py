"""What a model's generation_config.json says holds where a request says nothing: against `generate()`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from runners.arguments import Arguments
from runners.generator.transformers import TransformersEngine
from tests.conftest import GeneratorFolder
from tests.generated import PROMPTS, collect_ids, copy_with_defaults, generate, load

FAMILIES = ("bart", "t5", "llama", "mbart")
# facebook/bart-large-cnn's, smaller.
BART_CNN = {
    "num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "min_length": 12, "max_length": 30,
    "early_stopping": True, "forced_bos_token_id": 0, "forced_eos_token_id": 2,
}  # fmt: skip
# By the tokens that the model says where nothing is set, those it says most first.
CASES: dict[str, Callable[[list[int]], dict[str, Any]]] = {
    "no_repeat_ngram_size": lambda said: {"no_repeat_ngram_size": 1},
    "encoder_no_repeat_ngram_size": lambda said: {"encoder_no_repeat_ngram_size": 1, "sequence_bias": [[[9], 9.0]]},
    "encoder_repetition_penalty": lambda said: {"encoder_repetition_penalty": 9.0},
    "min_length": lambda said: {"min_length": 18, "eos_token_id": [2, *said]},
    "min_new_tokens": lambda said: {"min_new_tokens": 9, "eos_token_id": [2, *said]},
    "forced_bos_token_id": lambda said: {"forced_bos_token_id": 77},
    "forced_eos_token_id": lambda said: {"forced_eos_token_id": 2},
    "suppress_tokens": lambda said: {"suppress_tokens": said[:5]},
    "begin_suppress_tokens": lambda said: {"begin_suppress_tokens": said},
    "begin_suppress_tokens after a forced one": lambda said: {"begin_suppress_tokens": said, "forced_bos_token_id": 77},
    "bad_words_ids": lambda said: {"bad_words_ids": [said[:1], [said[1], said[1]], said[2:4]]},
    "sequence_bias": lambda said: {"sequence_bias": [[said[:1], -9.0], [[77], 12.0]]},
    "exponential_decay_length_penalty": lambda said: {"exponential_decay_length_penalty": [4, 1.8], "eos_token_id": [2, 3]},
    "repetition_penalty and others": lambda said: {
        "repetition_penalty": 1.6, "no_repeat_ngram_size": 3, "renormalize_logits": True
    },
    "beams": lambda said: {"num_beams": 3},
    "beams, as bart-large-cnn": lambda said: BART_CNN,
}  # fmt: skip
# A causal model's prompt is longer than what these look at.
WITHOUT_EFFECT = {("llama", "forced_bos_token_id")}
Folder = Callable[..., Path]


@pytest.fixture
def folder_with(generator_folder: GeneratorFolder, tmp_path: Path) -> Folder:
    """A model with these settings: `folder_with("bart", num_beams=4)`."""
    return lambda family, **settings: copy_with_defaults(generator_folder(family), tmp_path / family, **settings)


@pytest.fixture
def start() -> Iterator[Callable[[Path], TransformersEngine]]:
    """A loaded engine, closed after the test."""
    engines: list[TransformersEngine] = []

    def make(folder: Path) -> TransformersEngine:
        engines.append(TransformersEngine(Arguments(model_dir=str(folder))))
        engines[-1].load()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


Start = Callable[[Path], TransformersEngine]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_that_of_generate(
    family: str, case: str, generator_folder: GeneratorFolder, folder_with: Folder, start: Start
) -> None:
    plain_model = load(generator_folder(family))
    tokenizer = AutoTokenizer.from_pretrained(generator_folder(family))
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    plain = [generate(plain_model, prompt, max_new_tokens=24, do_sample=False)[0] for prompt in prompts]
    said = [token for token, _ in Counter(token for ids in plain for token in ids).most_common()]
    folder = folder_with(family, **CASES[case](said))
    model = load(folder)
    expected = [generate(model, prompt, max_new_tokens=24, do_sample=False)[0] for prompt in prompts]
    assert (expected == plain) is ((family, case) in WITHOUT_EFFECT)
    engine = start(folder)

    async def scenario() -> None:
        # Together, and beside what is drawn.
        found = await asyncio.gather(
            *(collect_ids(engine, prompt, temperature=0, max_tokens=24) for prompt in prompts),
            *(collect_ids(engine, prompt, temperature=1.5, max_tokens=9) for prompt in prompts),
        )
        assert found[:3] == expected

    asyncio.run(scenario())
