"""Texts of several requests in a few threads: what is tokenized together, and that each gets what it would get alone."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest

from runners.core.answer_options import OverflowOptions
from runners.core.arguments import Arguments
from runners.core.errors import InputError, ModelNotReadyError
from runners.core.predictions import TextInput
from runners.encoder.fair_threads import Flow
from runners.encoder.runner import EncoderRunner
from runners.encoder.sequences import EncodedText
from runners.encoder.tokenization import TextTokenizer
from runners.encoder.tokenizer_threads import SliceWork, TokenizerThreads
from tests.conftest import ModelFolder
from tests.tokenizer_kinds import TOKENIZER_KINDS
from tests.waiting import eventually

REQUESTS = [
    [TextInput("one two three")],
    [TextInput(""), TextInput("a longer one: " + "word " * 40)],
    [TextInput("a pair", "and its second text " * 9)],
    [TextInput("has words", None, ("has", "words"))],
    [TextInput("Ünïcode, and 数字 12345")] * 3,
    [TextInput("x" * 300)],
]
OVERFLOWS = [OverflowOptions(), OverflowOptions(truncation_side="left"), OverflowOptions(stride=4)]


class Held:
    """Tokenizer threads of one core, the first of which is held until `release`; counts the texts of each call."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.threads = TokenizerThreads(tokenizer)
        # Else the event loop would tokenize the first one.
        self.threads._inline.close()
        self.calls: list[int] = []
        self._free, self._runs = threading.Event(), threading.Event()
        self._first = asyncio.ensure_future(self.threads.run([TextInput("first")], self._work(self._hold)))

    def _hold(self, *_: Any) -> list[None]:
        self._runs.set()
        self._free.wait(60)
        return [None]

    @staticmethod
    def _work(tokenize: Any, kind: object = None) -> SliceWork[Any]:
        return SliceWork(tokenize, lambda *_: None, lambda: False, kind)

    async def tokenize(
        self, texts: Sequence[TextInput], overflow: OverflowOptions, is_over: bool = False
    ) -> list[EncodedText]:
        found: dict[int, EncodedText] = {}

        def tokenize(tokenizer: TextTokenizer, together: Sequence[TextInput], first: int) -> list[EncodedText]:
            self.calls.append(len(together))
            return tokenizer.tokenize(together, True, overflow=overflow, first_position=first)

        def finish(start: int, encoded: Sequence[EncodedText]) -> None:
            found.update(enumerate(encoded, start))

        await self.threads.run(texts, SliceWork(tokenize, finish, lambda: is_over, overflow))
        return [found[position] for position in sorted(found)]

    async def runs(self) -> Held:
        await asyncio.to_thread(self._runs.wait, 60)
        return self

    async def release(self, waiting: int) -> None:
        await eventually(lambda: len(self.threads._short._pieces) == waiting)
        self._free.set()
        await self._first


@pytest.fixture(params=TOKENIZER_KINDS, ids=lambda kind: kind)
def tokenizer(request: pytest.FixtureRequest) -> TextTokenizer:
    return TextTokenizer(TOKENIZER_KINDS[request.param](), max_length=24, add_special_tokens=True)


async def test_texts_of_waiting_requests_are_tokenized_together_as_each_alone(tokenizer: TextTokenizer) -> None:
    alone = tokenizer.copy()
    for overflow in OVERFLOWS:
        held = await Held(tokenizer).runs()
        asked = [asyncio.ensure_future(held.tokenize(texts, overflow)) for texts in REQUESTS]
        await held.release(len(REQUESTS))
        together = await asyncio.gather(*asked, return_exceptions=True)
        expected = [_tokenize(alone, texts, overflow) for texts in REQUESTS]
        assert list(map(_describe, together)) == list(map(_describe, expected))
        assert held.calls[0] == sum(map(len, REQUESTS))
        held.threads.close()


def _tokenize(tokenizer: TextTokenizer, texts: Sequence[TextInput], overflow: OverflowOptions) -> Any:
    try:
        return tokenizer.tokenize(texts, True, overflow=overflow)
    except InputError as error:
        return error


def _describe(found: Any) -> Any:
    """What can be compared of encoded texts, or of an error."""
    if isinstance(found, Exception):
        return type(found), str(found)
    sequences = [sequence for encoded in found for sequence in encoded.sequences]
    arrays = [
        [each.tolist() if isinstance(each, np.ndarray) else each for each in astuple(sequence)[:4]]
        for sequence in sequences
    ]
    return arrays, [encoded.truncated_tokens for encoded in found]


async def test_only_the_request_of_a_bad_text_fails(tokenizer: TextTokenizer) -> None:
    refuses = OverflowOptions(truncation=False)
    held = await Held(tokenizer).runs()
    requests = [[TextInput("a")], [TextInput("b"), TextInput("long " * 90)], [TextInput("c")]]
    asked = [asyncio.ensure_future(held.tokenize(texts, refuses)) for texts in requests]
    await held.release(3)
    first, bad, last = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(first, list)
    assert isinstance(last, list)
    assert isinstance(bad, InputError)
    assert str(bad).startswith("text 1 cannot be served"), "its position is that in its own request"
    assert held.calls == [4, 1, 2, 1]
    held.threads.close()


async def test_texts_of_other_options_or_of_requests_that_have_ended_are_not_among_them() -> None:
    tokenizer = TextTokenizer(TOKENIZER_KINDS["WordPiece"](), max_length=24, add_special_tokens=True)
    held = await Held(tokenizer).runs()
    plain, left = OVERFLOWS[:2]
    ended = (TextInput("its model has failed"),)
    asked = [
        asyncio.ensure_future(held.tokenize(texts, overflow, texts is ended))
        for texts, overflow in (([TextInput("a")], plain), (ended, plain), ([TextInput("c")] * 2, plain))
    ]
    asked.append(asyncio.ensure_future(held.tokenize([TextInput("d")], left)))
    gone = asyncio.ensure_future(held.tokenize([TextInput("gone")] * 5, left))
    await eventually(lambda: len(held.threads._short._pieces) == 5)
    gone.cancel()
    await held.release(5)
    found = await asyncio.gather(*asked)
    assert [len(each) for each in found] == [1, 0, 2, 1]
    assert held.calls == [3, 1]
    held.threads.close()


async def test_a_call_has_at_most_the_texts_and_characters_of_a_slice() -> None:
    tokenizer = TextTokenizer(TOKENIZER_KINDS["WordPiece"](), max_length=24, add_special_tokens=True)
    held = await Held(tokenizer).runs()
    few, many = [TextInput("word " * 1000)] * 10, [TextInput("a")] * 300
    asked = [asyncio.ensure_future(held.tokenize([text], OVERFLOWS[0])) for text in [*few, *many]]
    await held.release(310)
    await asyncio.gather(*asked)
    # A text costs 5,000 characters or 1, and 256 more; a call 32,768 at most.
    assert held.calls == [6, 4 + 45, 127, 127, 1]
    held.threads.close()


@pytest.mark.parametrize(("cores", "short", "long"), [(1, 1, 1), (2, 1, 1), (4, 2, 1), (8, 4, 2), (64, 4, 2)])
def test_the_threads_follow_the_cores(cores: int, short: int, long: int) -> None:
    tokenizer = TextTokenizer(TOKENIZER_KINDS["WordPiece"](), max_length=24, add_special_tokens=True)
    threads = TokenizerThreads(tokenizer, cores)
    assert (len(threads._short), len(threads._long), threads.count) == (short, long, short + long)
    threads.close()


async def test_a_large_request_has_all_threads() -> None:
    tokenizer = TextTokenizer(TOKENIZER_KINDS["WordPiece"](), max_length=24, add_special_tokens=True)
    threads = TokenizerThreads(tokenizer, 8)
    together, found = threading.Barrier(4), dict[int, EncodedText]()

    def tokenize(tokenizer: TextTokenizer, texts: Sequence[TextInput], first: int) -> list[EncodedText]:
        if first < 64:
            # The first four slices are tokenized at the same time, or never.
            together.wait(60)
        return tokenizer.tokenize(texts, False, first_position=first)

    def finish(start: int, encoded: Sequence[EncodedText]) -> None:
        found.update(enumerate(encoded, start))

    texts = [TextInput("word " * (number % 9)) for number in range(64)]
    await threads.run(texts, SliceWork(tokenize, finish, lambda: False))
    expected = tokenizer.tokenize(texts, False)
    assert [len(found[at].text.input_ids) for at in range(64)] == [len(each.text.input_ids) for each in expected]
    threads.close()


async def test_the_event_loop_tokenizes_a_little_in_each_iteration() -> None:
    tokenizer = TextTokenizer(TOKENIZER_KINDS["WordPiece"](), max_length=24, add_special_tokens=True)
    threads = TokenizerThreads(tokenizer)
    here = threading.current_thread()

    async def ask(characters: int) -> bool:
        return await threads.call(Flow(), characters, lambda *_: threading.current_thread() is here, None)

    for _ in range(2):
        assert await asyncio.gather(*(ask(100) for _ in range(5))) == [True] * 3 + [False] * 2
    assert await ask(999)
    assert not await ask(1000)
    threads.close()
    with pytest.raises(ModelNotReadyError):
        await ask(1)


def test_an_event_loop_that_has_ended_takes_nothing_from_the_next_one() -> None:
    tokenizer = TextTokenizer(TOKENIZER_KINDS["WordPiece"](), max_length=24, add_special_tokens=True)
    inline = TokenizerThreads(tokenizer)._inline
    entered: list[bool] = []

    def enter(loop: asyncio.AbstractEventLoop) -> None:
        entered.append(inline.enter(1000))
        loop.stop()

    for _ in range(2):
        loop = asyncio.new_event_loop()
        loop.call_soon(enter, loop)
        loop.run_forever()
        loop.close()
        inline._in_use.release()
    assert entered == [True, True]


async def test_the_library_starts_no_threads_of_its_own(model_folder: ModelFolder) -> None:
    """They would keep words of the texts of BPE, and there would be one for each core of the machine."""
    runner = EncoderRunner(Arguments(model_dir=str(model_folder("roberta", "sequence_classification"))))
    await runner.load()
    try:
        before = len(os.listdir("/proc/self/task"))
        await runner.infer([TextInput("some words")] * 40, runner.default_options)
        assert len(os.listdir("/proc/self/task")) == before
    finally:
        runner.close()
