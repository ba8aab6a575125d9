"""What a model's generation_config.json says holds where a request says nothing: against `generate()`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
# The tokens that a tiny model says most.
OFTEN = (1234, 1575, 1260, 1118, 1761)

CASES: dict[str, dict[str, Any]] = {
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 1},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 3.0},
    "min_length": {"min_length": 18, "eos_token_id": [2, *OFTEN]},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": [2, *OFTEN]},
    "forced_bos_token_id": {"forced_bos_token_id": 77},
    "forced_eos_token_id": {"forced_eos_token_id": 2},
    "suppress_tokens": {"suppress_tokens": list(OFTEN)},
    "begin_suppress_tokens": {"begin_suppress_tokens": [*OFTEN, *range(0, 3000, 2)], "forced_bos_token_id": 77},
    "bad_words_ids": {"bad_words_ids": [[1234], [1575, 1575], [1260, 1234]]},
    "sequence_bias": {"sequence_bias": [[[1234], -9.0], [[77], 12.0]]},
    "exponential_decay_length_penalty": {"exponential_decay_length_penalty": [4, 1.8]},
    "repetition_penalty and others": {"repetition_penalty": 1.6, "no_repeat_ngram_size": 3, "renormalize_logits": True},
    "beams": {"num_beams": 3},
    "beams, as bart-large-cnn": BART_CNN,
}
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


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_is_that_of_generate(
    family: str, settings: dict[str, Any], folder_with: Folder, start: Start
) -> None:
    folder = folder_with(family, **settings)
    model, engine = load(folder), start(folder)

    async def scenario() -> None:
        prompts = [await engine.tokenize(prompt) for prompt in PROMPTS]
        expected = [generate(model, prompt, max_new_tokens=24, do_sample=False)[0] for prompt in prompts]
        # Together, and beside what is drawn.
        found = await asyncio.gather(
            *(collect_ids(engine, prompt, temperature=0, max_tokens=24) for prompt in prompts),
            *(collect_ids(engine, prompt, temperature=1.5, max_tokens=9) for prompt in prompts),
        )
        assert found[:3] == expected
        without = [name for name in settings if name not in ("eos_token_id", "forced_bos_token_id")]
        neutral = {name: None if name != "num_beams" else 1 for name in without}
        plain = [generate(model, prompt, max_new_tokens=24, do_sample=False, **neutral)[0] for prompt in prompts]
        assert plain != expected or "encoder" in without[0], "the settings must change something"

    asyncio.run(scenario())
