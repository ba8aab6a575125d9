"""The tokens of texts and the texts of tokens, against the tokenizers of `transformers`."""

from __future__ import annotations

import asyncio
import json
import threading
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from runners.core.arguments import Arguments
from runners.core.errors import InputError, LimitExceededError, ModelNotReadyError, OverloadedError
from runners.core.generation import Chat, Prompt
from runners.core.tokens import TokenizeOptions
from runners.encoder.runner import EncoderRunner
from runners.encoder.tokenization import TextTokenizer
from tests.conftest import ModelFolder
from tests.encoders import load
from tests.waiting import eventually

FAMILIES = ("bert", "roberta", "albert", "deberta-v2")
TEXTS = ["Hello wörld, [MASK] <mask>", "unbelievable 中文 😀", "", " word" * 9000, *["short"] * 70]
DETAILS = TokenizeOptions(details=True)


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, model_folder: ModelFolder) -> Path:
    return model_folder(request.param, "fill_mask")


@pytest.fixture(scope="module")
def runner(folder: Path) -> Iterator[EncoderRunner]:
    runner = load(model_dir=str(folder), log_inputs=5)
    yield runner
    runner.close()


@pytest.mark.parametrize("special", [None, True, False])
async def test_the_tokens_of_texts(runner: EncoderRunner, folder: Path, special: bool | None) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    found = await runner.tokenize(TEXTS, TokenizeOptions(special, details=True))
    plain = await runner.tokenize(TEXTS, TokenizeOptions(special))
    for text, tokens, ids in zip(TEXTS, found, plain, strict=True):
        expected = reference(text, add_special_tokens=special is not False, return_offsets_mapping=True)
        assert tokens.ids == ids.ids == expected.input_ids
        assert tokens.strings == reference.convert_ids_to_tokens(expected.input_ids)
        assert tokens.offsets is not None
        assert [*map(tuple, tokens.offsets.tolist())] == expected.offset_mapping
        # The mask of a text is special to the tokenizer's class, but has not been added by it.
        [encoding] = expected.encodings
        assert tokens.special == [*map(bool, encoding.special_tokens_mask)]
        assert (tokens.text, ids.text, ids.strings) == (text, None, ())


@pytest.mark.parametrize("skipped", [True, False])
async def test_the_texts_of_tokens(runner: EncoderRunner, folder: Path, skipped: bool) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    sequences = reference(TEXTS).input_ids
    expected = reference.backend_tokenizer.decode_batch(sequences, skip_special_tokens=skipped)
    assert await runner.detokenize(sequences, skipped) == expected
    last = max(reference.get_vocab().values())
    for wrong in (-1, last + 1, 2**40):
        with pytest.raises(InputError, match=f"text 1 .*there is no token {wrong}: the vocabulary ends at {last}"):
            await runner.detokenize([[last], [last, wrong]])


def save_prompts(folder: Path, prompts: Mapping[str, str]) -> None:
    """Make a model of sentence-transformers' of the folder, with `text` as its usual prompt."""
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate([("Transformer", ""), ("Pooling", "1_Pooling")])
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    settings = {"prompts": prompts, "default_prompt_name": "text"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))


async def test_the_prompts_of_an_embedder(model_folder: ModelFolder) -> None:
    folder = model_folder("bert", "text_embedding", num_attention_heads=4)
    save_prompts(folder, {"query": "Find: ", "text": "This: "})
    runner = load(model_dir=str(folder))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for name, text in ((None, "This: a"), ("query", "Find: a")):
            [tokens] = await runner.tokenize(["a"], TokenizeOptions(prompt_name=name, details=True))
            assert (tokens.text, tokens.ids) == (text, tokenizer(text).input_ids)
        with pytest.raises(InputError, match="there is no prompt 'other': there are query, text"):
            await runner.tokenize(["a"], TokenizeOptions(prompt_name="other"))
    finally:
        runner.close()


async def test_texts_are_counted_before_a_prompt_precedes_each(model_folder: ModelFolder) -> None:
    folder = model_folder("bert", "text_embedding", num_attention_heads=8)
    prompt = "a " * 5000
    save_prompts(folder, {"text": prompt})
    runner = load(model_dir=str(folder), max_client_batch_size=3, max_whole_text_characters=len(prompt) + 10)
    try:
        tracemalloc.start()
        with pytest.raises(LimitExceededError, match="1000 texts are more than the 3"):
            await runner.tokenize(["a"] * 1000)
        # With the prompt, the texts have 10 MB.
        assert tracemalloc.get_traced_memory()[1] < 10**6
        assert len(await runner.tokenize(["a" * 10])) == 1
        message = f"{len(prompt) + 11} characters of a text .* --max_whole_text_characters allows"
        with pytest.raises(LimitExceededError, match=message):
            await runner.tokenize(["a", "a" * 11])
    finally:
        tracemalloc.stop()
        runner.close()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([Chat([{"role": "user", "content": "a"}])], DETAILS, "fill_mask takes texts, neither chats nor token ids"),
        (["a", [1, 2]], DETAILS, "fill_mask takes texts, neither chats nor token ids"),
        (["a", np.array([1])], DETAILS, "fill_mask takes texts, neither chats nor token ids"),
        (["a"], TokenizeOptions(prompt_name="query"), "the parameter prompt_name does not apply to fill_mask"),
    ],
)
async def test_what_is_refused(
    runner: EncoderRunner, prompts: list[Prompt], options: TokenizeOptions, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        await runner.tokenize(prompts, options)


@pytest.fixture(scope="module")
def small(model_folder: ModelFolder) -> Iterator[EncoderRunner]:
    limits = {
        "max_client_batch_size": 3, "max_text_characters": 400, "max_whole_text_characters": 300,
        "max_request_characters": 500, "max_answer_numbers": 60, "max_queue_tokens": 40, "max_concurrent_requests": 1,
    }  # fmt: skip
    runner = load(model_dir=str(model_folder("bert", "fill_mask")), **limits)
    yield runner
    runner.close()


@pytest.mark.parametrize(
    ("texts", "limit"),
    [
        (["a"] * 4, "max_client_batch_size"),
        (["a" * 401], "max_text_characters"),
        (["a" * 301], "max_whole_text_characters"),
        (["a " * 100] * 3, "max_request_characters"),
        (["a " * 11], "max_answer_numbers"),
        (["a " * 5] * 2, "max_answer_numbers"),
    ],
)
async def test_too_much_text(small: EncoderRunner, texts: list[str], limit: str) -> None:
    with pytest.raises(LimitExceededError, match=f"--{limit} allows"):
        await small.tokenize(texts, DETAILS)
    assert len(await small.tokenize(["a " * 10], DETAILS)) == 1


@pytest.mark.parametrize(
    ("ids", "limit"), [([[1]] * 4, "max_client_batch_size"), ([[1] * 20, [1] * 21], "max_queue_tokens")]
)
async def test_too_many_tokens(small: EncoderRunner, ids: list[list[int]], limit: str) -> None:
    with pytest.raises(LimitExceededError, match=f"--{limit} allows"):
        await small.detokenize(ids)
    assert len(await small.detokenize([[1] * 20] * 2)) == 2


async def test_a_busy_server_refuses_and_does_its_work_in_threads(
    small: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, threads = threading.Event(), []
    list_tokens = TextTokenizer.list_tokens

    def hold(self: Any, *given: Any) -> Any:
        threads.append(threading.current_thread())
        held.wait(60)
        return list_tokens(self, *given)

    monkeypatch.setattr(TextTokenizer, "list_tokens", hold)
    # Else the event loop would tokenize this short text itself.
    assert small._loaded is not None
    monkeypatch.setattr(small._loaded.tokenizer_threads._inline, "_limit", 0)
    first = asyncio.ensure_future(small.tokenize(["a"]))
    await eventually(lambda: bool(threads))
    for call in (small.tokenize(["a"]), small.detokenize([[1]])):
        with pytest.raises(OverloadedError, match="max_concurrent_requests"):
            await call
    held.set()
    assert len(await first) == 1
    assert threads[0] is not threading.current_thread()
    assert small._loaded.queue.admission.requests == 0
    assert small._loaded.queue.admission.characters.held == 0


async def test_before_the_model_is_loaded(model_folder: ModelFolder) -> None:
    runner = EncoderRunner(Arguments(model_dir=str(model_folder("bert", "fill_mask"))))
    for call in (runner.tokenize(["a"]), runner.detokenize([[1]])):
        with pytest.raises(ModelNotReadyError):
            await call
    runner.close()
