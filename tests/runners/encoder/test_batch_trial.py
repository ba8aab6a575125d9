"""The largest batch that there is memory for, found when a model is loaded; memory is emulated."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch

from runners.core.arguments import Arguments
from runners.core.device_thread import DeviceFailedError
from runners.core.errors import ModelLoadError
from runners.encoder.batch_mode import BatchMode
from runners.encoder.batch_trial import fill_batch, find_batch_tokens
from runners.encoder.packing import PackedForward
from runners.encoder.runner import EncoderRunner
from runners.encoder.sample_texts import SampleTexts
from runners.encoder.sequences import TokenizedText
from tests.conftest import ModelFolder

CPU = torch.device("cpu")
NO_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB"


def limit(most_tokens: int, tried: list[int]) -> Callable[[int], None]:
    """Runs batches where there is memory for so many tokens."""

    def run(tokens: int) -> None:
        tried.append(tokens)
        if tokens > most_tokens:
            raise torch.OutOfMemoryError(NO_MEMORY)

    return run


@pytest.mark.parametrize(
    ("most_tokens", "expected"),
    [
        (16384, [16384]),
        (16383, [16384, 8192]),
        (1000, [16384, 8192, 4096, 2048, 1024, 512]),
        (128, [16384, 8192, 4096, 2048, 1024, 512, 256, 128]),
    ],
)
def test_the_budget_is_halved_until_a_batch_runs(
    most_tokens: int, expected: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[int] = []
    with caplog.at_level(logging.WARNING):
        assert find_batch_tokens(limit(most_tokens, tried), 16384, "a-model", CPU) == expected[-1]
    assert tried == expected
    found = expected[-1]
    assert [record.getMessage() for record in caplog.records] == [
        f"memory of cpu runs out in a batch of more tokens: batches have at most {found} tokens, not 16384; set "
        f"--max_batch_tokens={found} to start so"
    ] * (len(tried) > 1)


@pytest.mark.parametrize(("max_batch_tokens", "last"), [(300, 128), (16384, 128), (100, 100), (1, 1)])
def test_a_model_without_memory_for_a_small_batch_is_refused(max_batch_tokens: int, last: int) -> None:
    with pytest.raises(ModelLoadError) as raised:
        find_batch_tokens(limit(0, []), max_batch_tokens, "a-model", CPU)
    assert str(raised.value) == f"a-model has no memory for a batch of {last} tokens on cpu: {NO_MEMORY}"


def test_a_model_that_refuses_the_batch_keeps_its_budget() -> None:
    def run(_: int) -> None:
        raise ValueError("all examples must have the same number of end-of-text tokens")

    assert find_batch_tokens(run, 16384, "a-model", CPU) == 16384


def test_a_device_that_fails_in_the_trial() -> None:
    def run(_: int) -> None:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    with pytest.raises(DeviceFailedError):
        find_batch_tokens(run, 16384, "a-model", CPU)


@pytest.mark.parametrize(
    ("mode", "length", "tokens", "expected"),
    [
        (BatchMode.PACKED, 512, 16384, [512] * 32),
        (BatchMode.PACKED, 500, 1100, [500, 500, 100]),
        # The rest is too short for a text.
        (BatchMode.PACKED, 500, 1007, [500, 500]),
        (BatchMode.PACKED, 8192, 1000, [1000]),
        # As the queue, which takes 256 texts at most.
        (BatchMode.PACKED, 32, 16384, [32] * 256),
        (BatchMode.PADDED, 500, 1100, [500, 500]),
        (BatchMode.EQUAL_LENGTH, 500, 1100, [500, 500]),
        (BatchMode.ONE_BY_ONE, 500, 1100, [500]),
    ],
)
def test_a_batch_is_as_the_queue_makes_it(mode: BatchMode, length: int, tokens: int, expected: list[int]) -> None:
    ids = np.arange(length)
    texts = fill_batch(TokenizedText(ids, ids + 1, None, truncated=False), tokens, mode)
    assert [len(text.input_ids) for text in texts] == expected
    for text in texts:
        # Its first and last tokens, the special ones, are those of the whole text.
        assert (text.input_ids[0], text.input_ids[-1]) == (0, length - 1)
        assert (text.token_type_ids == text.input_ids + 1).all()
        assert (np.diff(text.input_ids) >= 1).all()


@pytest.mark.parametrize(("family", "task"), [("bert", "sequence_classification"), ("roberta", "text_ranking")])
async def test_the_first_batch_has_the_whole_budget(
    family: str, task: str, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real model: its texts have what the tokenizer adds, and are as long as the model allows."""
    runner = EncoderRunner(Arguments(model_dir=str(model_folder(family, task))))
    await runner.load()
    loaded = runner._loaded
    assert loaded is not None
    batches: list[list[TokenizedText]] = []
    run = PackedForward.run

    def observe(forward: PackedForward, texts: Sequence[TokenizedText]) -> tuple[torch.Tensor, list[int]]:
        batches.append(list(texts))
        result = run(forward, texts)
        if len(batches) == 1:
            raise torch.OutOfMemoryError(NO_MEMORY)
        return result

    monkeypatch.setattr(PackedForward, "run", observe)
    samples = SampleTexts(loaded.encoder_task, loaded.tokenizer, loaded.token_limits, loaded.default_options)
    assert samples.find_batch_tokens(loaded.forward, 4000, CPU) == 2000
    longest = loaded.token_limits.max_length
    lengths = [[len(text.input_ids) for text in batch] for batch in batches]
    rest = 4000 % longest
    assert lengths == [[longest] * (4000 // longest) + [rest] * (rest > 0), [longest] * 3 + [2000 - 3 * longest]]
    ends = {(int(text.input_ids[0]), int(text.input_ids[-1])) for batch in batches for text in batch}
    assert len(ends) == 1
    await asyncio.to_thread(runner.close)
