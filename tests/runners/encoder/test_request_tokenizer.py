"""How a request's texts come to the queue: in slices, in two threads, only so far ahead of the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from runners.core.answer_options import OverflowOptions
from runners.core.arguments import Arguments
from runners.core.errors import InputError, LimitExceededError, OverloadedError
from runners.core.predictions import Options, TextInput, TokenInput
from runners.encoder.packing import PackedForward
from runners.encoder.runner import EncoderRunner
from runners.encoder.tasks.sequence_classification import SequenceClassification
from runners.encoder.tokenization import TextTokenizer
from tests.conftest import ModelFolder
from tests.waiting import eventually

SMALL = TextInput("a small one")
LONG = TextInput("word " * 20_000)
BUDGET = 256


class Gate:
    """The model, a batch at a time, and the number of tokens of each text in the batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[int]] = []
        self.allowed = threading.Semaphore(0)
        run = PackedForward.run

        def count_and_run(forward: Any, texts: Any) -> Any:
            self.allowed.acquire()
            self.batches.append([len(text.input_ids) for text in texts])
            return run(forward, texts)

        monkeypatch.setattr(PackedForward, "run", count_and_run)

    def open(self) -> None:
        self.allowed.release(1_000_000)

    def has_run(self, batches: int) -> bool:
        return len(self.batches) >= batches


@pytest.fixture
def runner(model_folder: ModelFolder) -> Iterator[EncoderRunner]:
    folder = model_folder("bert", "sequence_classification")
    runner = EncoderRunner(
        Arguments(
            model_dir=str(folder), max_length=64, max_batch_tokens=BUDGET, max_request_sequences=5000,
            max_queue_characters=300_000,
        )
    )  # fmt: skip
    asyncio.run(runner.load())
    yield runner
    runner.close()


def infer(runner: EncoderRunner, *texts: TextInput | TokenInput, **overflow: Any) -> asyncio.Future[list[Any]]:
    options = runner.default_options
    options = Options(options.form, options.answer, OverflowOptions(**overflow))
    return asyncio.ensure_future(runner.infer(texts, options))


def tokens(count: int) -> TokenInput:
    return TokenInput(np.full(count, 5, dtype=np.int64))


@pytest.mark.parametrize(
    "texts", [[TextInput("word " * 60)] * 900, [tokens(64)] * 1000, [LONG] * 2 + [TextInput("one two three")] * 2000]
)
async def test_a_single_text_is_at_most_three_batches_late(
    runner: EncoderRunner, texts: list[TextInput | TokenInput], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)

    large = infer(runner, *texts)
    for batches in (1, 5, 20):
        gate.allowed.release(batches)
        await eventually(partial(gate.has_run, batches))
        # Until it is tokenized as far ahead as it may be, which nothing tells.
        await asyncio.sleep(0.2)
        single = infer(runner, tokens(41))
        await asyncio.sleep(0)
        before = len(gate.batches)
        for _ in range(4):
            gate.allowed.release()
        await single
        late = next(number for number, batch in enumerate(gate.batches[before:]) if 41 in batch)
        assert late <= 3
    gate.open()
    assert len(await large) == len(texts)


async def test_short_texts_do_not_wait_for_long_ones_of_others(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, reached = threading.Event(), threading.Event()
    tokenize = TextTokenizer.tokenize

    def hold_long_texts(self: Any, texts: Any, *given: Any) -> Any:
        if len(texts[0].text) > 2**14:
            reached.set()
            held.wait(60)
        return tokenize(self, texts, *given)

    monkeypatch.setattr(TextTokenizer, "tokenize", hold_long_texts)

    long = infer(runner, SMALL, LONG, SMALL)
    await asyncio.to_thread(reached.wait, 60)
    assert len(await infer(runner, SMALL)) == 1
    assert not long.done()
    held.set()
    assert len(await long) == 3


@pytest.mark.parametrize(
    ("family", "is_inline"),
    [
        pytest.param("bert", True, id="WordPiece"),
        pytest.param("albert", True, id="Unigram"),
        pytest.param("roberta", False, id="BPE, which keeps words in each thread"),
    ],
)
async def test_the_event_loop_tokenizes_short_texts_unless_its_thread_would_keep_words(
    family: str, is_inline: bool, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = EncoderRunner(Arguments(model_dir=str(model_folder(family, "sequence_classification"))))
    await runner.load()
    threads = []
    tokenize = TextTokenizer.tokenize

    def note_thread(self: Any, *given: Any) -> Any:
        threads.append(threading.current_thread())
        return tokenize(self, *given)

    monkeypatch.setattr(TextTokenizer, "tokenize", note_thread)
    try:
        await infer(runner, SMALL)
        [thread] = threads
        assert (thread is threading.current_thread()) == is_inline
    finally:
        runner.close()
    await eventually(lambda: is_inline or not thread.is_alive())


async def test_answers_of_both_threads_are_in_order(runner: EncoderRunner) -> None:
    texts = [TextInput(f"{'word ' * (5000 * (number % 3 == 1))} {number}") for number in range(40)]
    options = runner.default_options
    together = await runner.infer(texts, options)
    alone = [(await runner.infer([text], options))[0] for text in texts]
    assert [each.tokens for each in together] == [each.tokens for each in alone]
    assert {each.tokens for each in together} > {64}


async def test_texts_are_tokenized_only_a_few_batches_ahead_of_the_model(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    tokenized = []
    tokenize = TextTokenizer.tokenize

    def count(self: Any, texts: Any, *given: Any) -> Any:
        tokenized.extend(texts)
        return tokenize(self, texts, *given)

    monkeypatch.setattr(TextTokenizer, "tokenize", count)

    request = infer(runner, *[TextInput("word " * 60)] * 800)
    # Long enough to tokenize all of them, if nothing held it.
    await asyncio.sleep(0.5)
    assert 0 < len(tokenized) <= 128
    gate.open()
    assert len(await request) == 800
    assert len(tokenized) == 800


async def test_a_request_that_waits_for_room_ends_when_one_of_its_texts_fails(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PackedForward, "run", lambda *_: (_ for _ in ()).throw(ValueError("no")))
    with pytest.raises(InputError, match="does not run"):
        await infer(runner, *[TextInput("word " * 60)] * 500)
    monkeypatch.undo()
    assert len(await infer(runner, SMALL)) == 1


async def test_a_client_that_leaves_while_its_texts_wait_leaves_nothing(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)

    assert runner._loaded is not None
    queue = runner._loaded.queue
    gone = [infer(runner, *[TextInput("word " * 60)] * 500) for _ in range(2)]
    await eventually(lambda: len(queue._entries) > 0)
    for each in gone:
        each.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    admission = queue.admission
    assert (admission.requests, admission.characters.held, admission.tokens.held) == (0, 0, 0)
    gate.open()
    assert len(await infer(runner, SMALL)) == 1
    assert not len(queue._entries)


async def test_windows_count_as_they_appear(runner: EncoderRunner) -> None:
    with pytest.raises(LimitExceededError, match=r"sequences .* the 5000 that --max_request_sequences allows"):
        await infer(runner, *[LONG] * 9, stride=30)
    assert len(await infer(runner, LONG, stride=30)) == 1


async def test_too_many_characters_are_refused_before_work(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)

    first = infer(runner, *[LONG] * 4)
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="exceed the 300000 that --max_queue_characters allows") as error:
        await infer(runner, SMALL)
    assert error.value.retry_after >= 1
    gate.open()
    assert len(await first) == 4, "alone a request is only bounded by what one may have"
    assert len(await infer(runner, SMALL)) == 1


async def test_a_full_server_refuses_before_it_tokenizes(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    tokenized: list[int] = []
    tokenize = TextTokenizer.tokenize

    def count(self: Any, texts: Any, *given: Any) -> Any:
        tokenized.append(len(texts))
        return tokenize(self, texts, *given)

    monkeypatch.setattr(TextTokenizer, "tokenize", count)

    assert runner._loaded is not None
    queue = runner._loaded.queue
    queue.admission.tokens.limit = 500
    first = infer(runner, *[tokens(64)] * 30)
    await eventually(lambda: queue.admission.tokens.held > 500)
    with pytest.raises(OverloadedError, match="exceed the 500 that --max_queue_tokens allows"):
        await infer(runner, SMALL)
    assert tokenized == []
    gate.open()
    assert len(await first) == 30
    queue.admission.characters.limit = 1000
    gate.allowed = threading.Semaphore(0)
    second = infer(runner, *[tokens(64)] * 4)
    await asyncio.sleep(0)
    with pytest.raises(
        OverloadedError, match="have 1024 characters; 11 more would exceed the 1000 that --max_queue_characters allows"
    ):
        await infer(runner, SMALL)
    assert tokenized == []
    gate.open()
    assert len(await second) == 4
    assert len(await infer(runner, SMALL)) == 1
    assert tokenized == [1]


async def test_an_error_in_a_head_fails_one_request_alone(
    runner: EncoderRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(monkeypatch)
    predict = SequenceClassification.predict

    def fail_on_one(self: Any, parts: Any, encoded: Any, options: Any) -> Any:
        if len(encoded.text.input_ids) == 21:
            raise IndexError("a secret text")
        return predict(self, parts, encoded, options)

    monkeypatch.setattr(SequenceClassification, "predict", fail_on_one)

    # The first one holds the model until the others wait for one batch.
    asked = [infer(runner, *given) for given in ([tokens(9)], [tokens(20)], [tokens(22), tokens(21)], [tokens(23)])]
    await asyncio.sleep(0.1)
    gate.open()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers] == [list, list, IndexError, list]
    assert sorted(number for batch in gate.batches for number in batch) == [9, 20, 21, 22, 23], "the model runs once"
