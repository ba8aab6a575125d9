"""The decode loop: nobody starves, and what fails fails alone; on a real engine, with faults put in."""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from runners.core.admission import Admission, Admitted
from runners.core.errors import EngineDeadError, GenerationFailedError
from runners.core.generation import Constraint, Delta, Sampling
from runners.core.metrics import BatchMetrics
from runners.core.request_limits import RequestLimits
from runners.generator import logprobs
from runners.generator import running_batch as batch
from runners.generator import sequence_state as request
from runners.generator import token_masks as masks
from runners.generator.constraints import GrammarMatcher
from runners.generator.decoder import Decoder
from runners.generator.parallel_sampling import Sequences, run
from runners.generator.row_allocation import MAX_ROWS
from runners.generator.sampler import SampledRow, Sampler
from runners.generator.text_stream import TextStream
from runners.generator.transformers_engine import TransformersEngine
from tests.runners.conftest import MakeEngine

# The sequence of ten that fails has a token and a penalty that no other has.
_TOKEN, _PENALTY = 77, 0.75
_TEXT = "a secret of the prompt"

Outcome = list[Delta] | BaseException


async def ask_ten(engine: TransformersEngine, **sampling: Any) -> list[Outcome]:
    """Ten sampled sequences at the same time, of which the fourth is the culprit."""

    async def ask(index: int) -> list[Delta]:
        is_culprit = index == 3
        prompt = [_TOKEN if is_culprit else 50, *range(9, 12 + index % 4)]
        given = {"seed": index, "temperature": 1.2, "max_tokens": 12, "ignore_eos": True}
        settings = {"presence_penalty": 0.5, "logprobs": 2, "stop": ("never there",), "top_p": 0.9}
        own = {"presence_penalty": _PENALTY, **sampling} if is_culprit else {}
        asked = Sampling(**{**given, **settings, **own})
        return [delta async for delta in engine.generate(prompt, asked)]

    return await asyncio.gather(*(ask(index) for index in range(10)), return_exceptions=True)


def written(outcome: Outcome) -> list[Any]:
    """All but log probabilities, whose last bits are those of the batch that a step happens to have."""
    assert isinstance(outcome, list), outcome
    return [(delta.text, delta.token_ids, delta.finish_reason, delta.stop_reason) for delta in outcome]


def is_culprit(row: SampledRow) -> bool:
    return row.settings.presence_penalty == _PENALTY


def fail() -> None:
    raise ValueError(_TEXT)


def in_forward(patch: pytest.MonkeyPatch) -> None:
    step = batch.Batch.step

    def faulty(self: batch.Batch) -> Any:
        if any(_TOKEN in each.request.prompt and len(each.outputs[0]) >= 4 for each in self.generations):
            fail()
        return step(self)

    patch.setattr(batch.Batch, "step", faulty)


def in_prefill(patch: pytest.MonkeyPatch) -> None:
    advance = Decoder.advance

    def faulty(self: Decoder, prefill: Any, tokens: int) -> Any:
        if (prefill.ids == _TOKEN).any():
            fail()
        return advance(self, prefill, tokens)

    patch.setattr(Decoder, "advance", faulty)


def in_sampler(method: str) -> Callable[[pytest.MonkeyPatch], None]:
    def put(patch: pytest.MonkeyPatch) -> None:
        work = getattr(Sampler, method)

        def faulty(self: Sampler, *given: Any) -> Any:
            rows = given[0] if method == "__init__" else self._rows
            if any(is_culprit(row) and (method == "__init__" or len(row.output) >= 4) for row in rows):
                fail()
            return work(self, *given)

        patch.setattr(Sampler, method, faulty)

    return put


def in_text(patch: pytest.MonkeyPatch) -> None:
    take = request.Output.take

    def faulty(self: request.Output, *given: Any) -> Any:
        if _TOKEN in self._request.prompt and self._tokens == 4:
            fail()
        return take(self, *given)

    patch.setattr(request.Output, "take", faulty)


def in_stop_strings(patch: pytest.MonkeyPatch) -> None:
    push = TextStream.push

    def faulty(self: TextStream, *given: Any) -> Any:
        if any(search.string == "culprit" for search in self._searches):
            fail()
        return push(self, *given)

    patch.setattr(TextStream, "push", faulty)


def in_logprobs(patch: pytest.MonkeyPatch) -> None:
    describe = logprobs.describe

    def faulty(vocabulary: Any, token: int, ranked: Any, offset: int) -> Any:
        if len(ranked.top) == 5:
            fail()
        return describe(vocabulary, token, ranked, offset)

    patch.setattr(request, "describe", faulty)


def in_grammar(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(GrammarMatcher, "consume", lambda *_: fail())


def in_masks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(masks, "fill_masks", lambda _: fail())


def in_prompt_scores(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(logprobs.PromptScores, "add", lambda *_: fail())


@pytest.mark.parametrize(
    ("put", "sampling"),
    [
        (in_forward, {}),
        (in_prefill, {}),
        *((in_sampler(method), {}) for method in ("adjust", "_penalise", "_draw", "rank")),
        (in_sampler("__init__"), {}),
        (in_text, {}),
        (in_stop_strings, {"stop": ("culprit",)}),
        (in_logprobs, {"logprobs": 5}),
        (in_grammar, {"constraint": Constraint("regex", "[a-z]+")}),
        (in_masks, {"constraint": Constraint("regex", "[a-z]+")}),
        (in_prompt_scores, {"prompt_logprobs": 1}),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
@pytest.mark.parametrize("family", ["llama", "t5"])
async def test_one_of_ten_fails_alone(
    family: str,
    put: Callable[[pytest.MonkeyPatch], None],
    sampling: dict[str, Any],
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The other nine are what they are without it; its error repeats no text, nor does the log."""
    if family == "t5" and "prompt_logprobs" in sampling:
        pytest.skip("encoder-decoders have none")
    engine = make_engine(family)
    undisturbed = await ask_ten(engine)
    put(monkeypatch)
    caplog.set_level(logging.DEBUG)
    outcomes = await ask_ten(engine, **sampling)
    failed = outcomes.pop(3)
    undisturbed.pop(3)
    assert isinstance(failed, GenerationFailedError)
    assert [written(each) for each in outcomes] == [written(each) for each in undisturbed]
    assert "an output has failed: ValueError" in caplog.text
    assert _TEXT not in f"{failed}{caplog.text}"


def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The first tokens of prompts, in the order in which the model begins with them."""
    order: list[int] = []
    start = Decoder.start

    def record(self: Decoder, prompts: Sequence[Sequence[int]], keep_logits: bool = False) -> Any:
        order.extend(prompt[0] for prompt in prompts)
        return start(self, prompts, keep_logits)

    monkeypatch.setattr(Decoder, "start", record)
    return order


async def ask(engine: TransformersEngine, admitted: Admitted, first: int, count: int, tokens: int) -> list[list[int]]:
    """The tokens of each sequence; each has a seed of its own."""
    sequences = Sequences([[first, 9, 10]], Sampling(max_tokens=tokens, ignore_eos=True, seed=1), count)
    outputs: list[list[int]] = [[] for _ in range(count)]
    async with run(engine, sequences, admitted) as deltas:
        async for index, delta in deltas:
            outputs[index] += delta.token_ids
    return outputs


@pytest.mark.parametrize("family", ["llama", "t5"])
async def test_a_single_prompt_joins_at_once_beside_a_request_of_hundreds(
    family: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, the large one holds all rows; some pause for the next request, which has its row in the next step."""
    engine = make_engine(family)
    order = begun(monkeypatch)
    admission = Admission(RequestLimits())

    with admission.admit() as large, admission.admit() as small:
        undisturbed = await ask(engine, large, 20, MAX_ROWS + 6, 40)
        order.clear()
        many = asyncio.create_task(ask(engine, large, 20, MAX_ROWS + 6, 40))
        while len(order) < MAX_ROWS:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert len(order) == MAX_ROWS
        await ask(engine, small, 30, 1, 1)
        assert order.index(30) == MAX_ROWS, "nobody goes before it"
        assert not many.done()
        assert await many == undisturbed, "what has paused goes on as it was"
    assert admission.tokens.held == admission.requests == 0


@pytest.mark.parametrize(
    ("family", "max_batch_tokens", "batches"),
    [
        ("llama", 4096, [(2, 8, 4), (2, 2, 0), (2, 2, 0)]),
        # The long prompt is alone in its group, and computed in parts: of 1 token beside the other's step, and of 4.
        ("llama", 4, [(1, 2, 0), (1, 1, 0), (1, 1, 0), (1, 1, 0), (1, 4, 0), (1, 1, 0), (1, 1, 0), (1, 1, 0)]),
        ("t5", 4096, [(2, 8, 4), (2, 2, 0), (2, 2, 0)]),
        ("pegasus_x", 4096, [(2, 8, 4), (2, 2, 0), (2, 2, 0)]),
    ],
)
async def test_each_forward_pass_is_counted(
    family: str,
    max_batch_tokens: int,
    batches: list[tuple[int, int, int]],
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rows, tokens and padding: of prompts of 2 and 6 tokens, and of two further steps."""
    engine = make_engine(family, max_batch_tokens=max_batch_tokens)
    counted: list[tuple[int, int, int]] = []
    monkeypatch.setattr(BatchMetrics, "count", lambda _, *sizes: counted.append(sizes))
    sampling = Sampling(max_tokens=3, ignore_eos=True)

    async def generate(length: int) -> None:
        async for _ in engine.generate([9] * length, sampling):
            pass

    with engine._device.changed:
        both = [asyncio.create_task(generate(length)) for length in (2, 6)]
        while engine.count < len(both):  # noqa: ASYNC110
            await asyncio.sleep(0)
    await asyncio.gather(*both)
    assert counted == batches


async def test_what_is_paused_can_be_left(own_engine: TransformersEngine) -> None:
    admission = Admission(RequestLimits())
    scheduler = own_engine._model().scheduler

    with admission.admit() as large, admission.admit() as small:
        many = asyncio.create_task(ask(own_engine, large, 20, MAX_ROWS, 50))
        while len(scheduler._running) < MAX_ROWS:  # noqa: ASYNC110
            await asyncio.sleep(0)
        other = asyncio.create_task(ask(own_engine, small, 30, 1, 40))
        while not len(scheduler._paused):  # noqa: ASYNC110
            await asyncio.sleep(0)
        many.cancel()
        await asyncio.gather(many, return_exceptions=True)
        await other
        await ask(own_engine, small, 30, 1, 2)
    assert scheduler.count == 0


async def test_what_waits_and_is_left_is_not_computed(
    own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = begun(monkeypatch)
    admission = Admission(RequestLimits())
    scheduler = own_engine._model().scheduler
    released = threading.Event()
    step = Decoder.step

    def step_once_released(self: Decoder, rows: Any, tokens: Sequence[int]) -> Any:
        released.wait()
        return step(self, rows, tokens)

    monkeypatch.setattr(Decoder, "step", step_once_released)
    with admission.admit() as admitted:
        many = asyncio.create_task(ask(own_engine, admitted, 20, 2 * MAX_ROWS, 50))
        # The first group has its prompts computed, and its step waits: all others wait for rows.
        while not order or len(scheduler._waiting) < 2 * MAX_ROWS - len(order):
            assert not many.done()
            await asyncio.sleep(0.001)
        computed = len(order)
        assert 0 < computed <= MAX_ROWS
        many.cancel()
        await asyncio.gather(many, return_exceptions=True)
        assert len(scheduler._waiting) == 0
        released.set()
        await ask(own_engine, admitted, 30, 1, 1)
    assert order[computed:] == [30]


class Activation:
    """Something large that a forward pass holds when memory runs out."""


async def test_memory_that_runs_out_is_freed_first(
    own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [written(outcome) for outcome in await ask_ten(own_engine)]
    alive: list[weakref.ref[Activation]] = []
    held: list[int] = []
    failures = 0
    step, advance = Decoder.step, Decoder.advance

    def run(compute: Callable[..., Any], rows: int, *given: Any) -> Any:
        nonlocal failures
        held.append(sum(each() is not None for each in alive))
        activation = Activation()
        alive.append(weakref.ref(activation))
        if rows > 1 and failures < 4:
            failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(*given)

    monkeypatch.setattr(Decoder, "step", lambda *given: run(step, len(given[2]), *given))
    monkeypatch.setattr(Decoder, "advance", lambda *given: run(advance, len(given[1].ids), *given))
    with caplog.at_level(logging.WARNING):
        assert [written(outcome) for outcome in await ask_ten(own_engine)] == expected
    assert failures == 4
    assert set(held) == {0}


async def test_prompts_without_memory_are_computed_in_smaller_parts(
    own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = own_engine._loaded
    assert loaded is not None
    before = loaded.scheduler._token_budget.tokens
    advance = Decoder.advance

    def run(decoder: Decoder, prefill: Any, budget: int) -> Any:
        if budget >= before:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return advance(decoder, prefill, budget)

    monkeypatch.setattr(Decoder, "advance", run)
    outcomes = await ask_ten(own_engine)
    assert any(isinstance(outcome, GenerationFailedError) for outcome in outcomes)
    assert loaded.scheduler._token_budget.tokens == before
    # The second time the budget is halved before the sequences are computed again.
    assert all(isinstance(outcome, list) for outcome in await ask_ten(own_engine))
    assert loaded.scheduler._token_budget.tokens == before // 2
    assert f"not {before}; set --max_batch_tokens=" in caplog.text


@pytest.mark.parametrize("while_recovering", [False, True])
async def test_a_failed_device_ends_all_sequences(
    while_recovering: bool, own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that were to be computed again."""
    step, calls = Decoder.step, 0

    def fail(decoder: Decoder, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        if while_recovering and calls == 1:
            raise RuntimeError("a kernel refuses this shape")
        if calls > 2:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return step(decoder, *given)

    monkeypatch.setattr(Decoder, "step", fail)
    outcomes = await asyncio.wait_for(ask_ten(own_engine), 60)
    assert {type(outcome) for outcome in outcomes} == {EngineDeadError}
    assert own_engine.failed
