"""Source and target language by request: against the tokenizers' own settings and `generate()`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from runners.core.errors import InputError
from runners.core.generation import PromptOptions
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import GeneratorFolder
from tests.generated import collect, collect_ids, copy_with_defaults, generate, load
from tests.runners.conftest import Start
from tests.translators import KINDS, save_translator

TEXT = "return the value of the key"

TranslatorFolder = Callable[[str], Path]


@pytest.fixture(scope="module")
def translator_folder(tmp_path_factory: pytest.TempPathFactory) -> TranslatorFolder:
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_translator(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return make


@pytest.mark.parametrize("kind", KINDS)
async def test_a_source_is_of_one_prompt_only(kind: str, translator_folder: TranslatorFolder, start: Start) -> None:
    folder = translator_folder(kind)
    _, _, source, target = KINDS[kind]
    engine, tokenizer = start(folder), AutoTokenizer.from_pretrained(folder)
    own = tokenizer(TEXT).input_ids
    expected: dict[str | None, list[int]] = {None: own}
    for language in (source, target):
        tokenizer.src_lang = language
        expected[language] = tokenizer(TEXT).input_ids
    assert len({tuple(ids) for ids in expected.values()}) == 3

    async def tokenize(language: str | None, **options: Any) -> list[int]:
        return await engine.tokenize(TEXT, PromptOptions(source_language=language, **options))

    languages = [source, None, target, None, "klingon", None, source]
    found = await asyncio.gather(*map(tokenize, languages), return_exceptions=True)
    assert isinstance(found.pop(4), InputError)
    del languages[4]
    assert found == [expected[language] for language in languages]
    bare = await tokenize(source, add_special_tokens=False)
    assert bare == await tokenize(None, add_special_tokens=False)
    # What is truncated keeps its special tokens, as the tokenizer does it.
    kept = len(own) - 2
    tokenizer.src_lang = source
    truncated = tokenizer(TEXT, truncation=True, max_length=kept).input_ids
    assert await tokenize(source, truncate_to=kept) == truncated


@pytest.mark.parametrize("kind", KINDS)
async def test_a_target_is_what_the_output_begins_with(
    kind: str, translator_folder: TranslatorFolder, start: Start
) -> None:
    folder = translator_folder(kind)
    _, _, source, target = KINDS[kind]
    engine, tokenizer, model = start(folder), AutoTokenizer.from_pretrained(folder), load(folder)
    inputs = tokenizer._build_translation_inputs(TEXT, return_tensors="pt", src_lang=source, tgt_lang=target)
    prompt, token = inputs["input_ids"][0].tolist(), inputs["forced_bos_token_id"]

    ids = await engine.tokenize(TEXT, PromptOptions(source_language=source))
    assert ids == prompt
    settings = {"max_new_tokens": 12, "do_sample": False}
    translated, plain, drawn = await asyncio.gather(
        collect(engine, ids, max_tokens=12, target_language=target),
        collect_ids(engine, ids, max_tokens=12),
        collect_ids(engine, ids, max_tokens=12, target_language=target, temperature=2.0, seed=1),
    )
    output = [token for delta in translated for token in delta.token_ids]
    assert output == generate(model, ids, **settings, forced_bos_token_id=token)[0]
    assert plain == generate(model, ids, **settings)[0]
    assert drawn[0] == output[0] == token != plain[0]
    assert "".join(delta.text for delta in translated) == tokenizer.decode(output, skip_special_tokens=True)


async def test_a_tokenizer_may_have_a_target_and_so_may_generation_config(
    tmp_path: Path, translator_folder: TranslatorFolder, start: Start
) -> None:
    _, _, source, target = KINDS["nllb"]
    folder = save_translator(tmp_path, "nllb", src_lang=source, tgt_lang=target)
    configured = copy_with_defaults(translator_folder("nllb"), tmp_path / "configured", forced_bos_token_id=77)
    token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids

    async def first(engine: TransformersEngine, **sampling: Any) -> int:
        return (await collect_ids(engine, TEXT, max_tokens=2, **sampling))[0]

    engine = start(folder)
    assert (await engine.tokenize(TEXT))[0] == token(source)
    assert await first(engine) == token(target)
    assert await first(engine, target_language="deu_Latn") == token("deu_Latn")
    engine = start(configured)
    assert await first(engine) == 77
    assert await first(engine, target_language=target) == token(target)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("klingon", "is 'klingon', which is none of the model's languages: ace_Arab, ace_Latn, acm_Arab, acq_Arab, aeb_Arab, afr_Latn, ajp_Arab, aka_Latn and 194 more"),
        ("</s>", "is '</s>', which is none of the model's languages: ace_Arab,"),
        ("", "is '', which is none of the model's languages: ace_Arab,"),
    ],
)  # fmt: skip
async def test_a_language_that_there_is_not_is_refused(
    name: str, message: str, translator_folder: TranslatorFolder, start: Start
) -> None:
    engine = start(translator_folder("nllb"))
    with pytest.raises(InputError) as refused:
        await engine.tokenize(TEXT, PromptOptions(source_language=name))
    assert str(refused.value).startswith(f"src_lang {message}")
    with pytest.raises(InputError) as refused:
        await collect(engine, TEXT, target_language=name)
    assert str(refused.value).startswith(f"tgt_lang {message}")


async def test_a_model_without_languages_says_so(generator_folder: GeneratorFolder, start: Start) -> None:
    engine = start(generator_folder("bart"))
    with pytest.raises(InputError) as refused:
        await engine.tokenize(TEXT, PromptOptions(source_language="fr_XX"))
    assert str(refused.value) == "src_lang is 'fr_XX', but this model's tokenizer has no languages to choose from"
    with pytest.raises(InputError, match="tgt_lang is 'fr_XX', but this model's tokenizer has no languages"):
        await collect(engine, TEXT, target_language="fr_XX")
