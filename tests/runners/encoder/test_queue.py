from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest
from prometheus_client import REGISTRY

from runners.core.errors import LimitExceededError, ModelNotReadyError, OverloadedError
from runners.core.metric_families import counting, flush
from runners.core.metrics import RUNNING_TEXTS, WAITING_TEXTS, QueueMetrics
from runners.core.predictions import MAIN, Numbers, Options, Prediction
from runners.core.request_limits import RequestLimits
from runners.core.sent_answers import collect_releases
from runners.encoder.batch_mode import BatchMode
from runners.encoder.queue import BatchQueue
from runners.encoder.queue_entries import Entry, PendingRequest, deliver
from runners.encoder.sequences import EncodedText, TokenizedText

BUDGET = 100
MODEL = "queued"
LIMITS = RequestLimits(max_concurrent_requests=8, max_queue_characters=20_000, max_queue_tokens=15_000)


def text(tokens: int) -> EncodedText:
    made = TokenizedText(np.zeros(tokens, np.int64), np.zeros(tokens, np.int64), None, False)
    return EncodedText(made, [made])


def put(queue: BatchQueue, *lengths: int) -> PendingRequest:
    """A request of texts of these lengths."""
    request = queue.admit(len(lengths), sum(lengths))
    queue.put(request, 0, map(text, lengths), Options())
    return request


def lengths(batch: list[Entry]) -> list[int]:
    return [entry.tokens for entry in batch]


def answer(batch: list[Entry]) -> None:
    for entry in batch:
        entry.request.deliver([(entry.position, Prediction({MAIN: Numbers(np.asarray(entry.tokens))}))])


def load() -> tuple[float | None, float | None]:
    """How many texts wait and run, by the metrics."""
    flush()
    names = ("runtime_waiting_texts", "runtime_running_texts")
    waiting, running = (REGISTRY.get_sample_value(name, {"model_name": MODEL}) for name in names)
    return waiting, running


def large_queue() -> BatchQueue:
    """With a GPU's budget."""
    limits = RequestLimits(max_concurrent_requests=500, max_queue_tokens=10**6)
    return BatchQueue(16_384, limits, QueueMetrics(MODEL), threading.Condition())


@pytest.fixture
def queue() -> BatchQueue:
    with counting:
        for gauge in (WAITING_TEXTS, RUNNING_TEXTS):
            # What other tests have left in their queues.
            gauge.series(MODEL).value = 0
    return BatchQueue(BUDGET, LIMITS, QueueMetrics(MODEL), threading.Condition())


async def test_a_batch_is_what_waits_oldest_first_up_to_the_budget(queue: BatchQueue) -> None:
    put(queue, 50, 30, 30, 10, 120, 10)
    assert lengths(queue.take()) == [50, 30]
    assert lengths(queue.take()) == [30, 10]
    assert lengths(queue.take()) == [120], "a text over the budget is a batch of its own, when its turn comes"
    assert lengths(queue.take()) == [10]


async def test_padded_batches_are_of_like_length_around_the_oldest(queue: BatchQueue) -> None:
    put(queue, 20, 90, 21, 5, 19, 22, 80)
    assert sorted(lengths(queue.take(BatchMode.PADDED))) == [19, 20, 21, 22]
    assert lengths(queue.take(BatchMode.PADDED)) == [90]
    assert sorted(lengths(queue.take(BatchMode.PADDED))) == [5], "80 would make it two times 80"
    assert lengths(queue.take(BatchMode.PADDED)) == [80]


async def test_a_padded_batch_has_few_slots_beside_its_tokens() -> None:
    queue = large_queue()
    source = np.random.default_rng(0)
    for _ in range(200):
        put(queue, int(source.choice([8, 20, 40, 250])) + int(source.integers(8)))
    sizes = []
    while batch := queue.take(BatchMode.PADDED):
        sizes.append(len(batch))
        tokens = lengths(batch)
        assert len(batch) * max(tokens) <= 1.25 * sum(tokens) + 512
    assert (sum(sizes), max(sizes) > 40) == (200, True), "four kinds of length make few batches"


@pytest.mark.parametrize("mode", [BatchMode.PADDED, BatchMode.EQUAL_LENGTH])
async def test_texts_of_like_length_are_found_among_512(mode: BatchMode) -> None:
    queue = large_queue()
    put(queue, 10, *[200] * 400, *[10] * 111, 10)
    assert lengths(queue.take(mode)) == [10] * 112, "the last one is the 513th"


async def test_a_text_that_was_only_looked_at_still_waits(queue: BatchQueue) -> None:
    large = put(queue, *[10] * 45)
    waits = asyncio.create_task(queue.wait_for_room(large))
    await asyncio.sleep(0)
    put(queue, 90)
    assert lengths(queue.take(BatchMode.PADDED)) == [90]
    await asyncio.sleep(0.01)
    assert not waits.done(), "four batches of it wait"
    waits.cancel()


async def test_a_candidate_whose_caller_has_gone_is_dropped(queue: BatchQueue) -> None:
    put(queue, 10)
    gone = put(queue, 10, 10)
    put(queue, 10)
    queue.release(gone)
    assert lengths(queue.take(BatchMode.PADDED)) == [10, 10]
    assert (load(), queue.admission.tokens.held) == ((0, 2), 0)


async def test_batches_of_equal_length_are_of_the_length_of_the_oldest(queue: BatchQueue) -> None:
    put(queue, 20, 90, 20, 21, 20, 90)
    for expected in ([20, 20, 20], [90], [21], [90]):
        assert lengths(queue.take(BatchMode.EQUAL_LENGTH)) == expected


async def test_one_by_one_takes_the_oldest_alone(queue: BatchQueue) -> None:
    put(queue, 20, 90, 20)
    for expected in (20, 90, 20):
        assert lengths(queue.take(BatchMode.ONE_BY_ONE)) == [expected]


async def test_a_huge_request_neither_starves_others_nor_is_starved(queue: BatchQueue) -> None:
    huge = put(queue, *[10] * 1000)
    served: dict[bool, int] = {True: 0, False: 0}
    waits = []
    for _ in range(60):
        small = put(queue, 60)
        waited = 0
        while True:
            batch = queue.take()
            waited += 1
            for entry in batch:
                served[entry.request is huge] += entry.tokens
            if any(entry.request is small for entry in batch):
                break
        waits.append(waited)
        queue.release(small)
    assert max(waits[5:]) <= 3, "a small request waits for some batches, not for a thousand texts"
    assert served[True] >= 0.2 * sum(served.values()), "the huge one goes on all the same"


@pytest.mark.parametrize("mode", [BatchMode.PACKED, BatchMode.PADDED, BatchMode.EQUAL_LENGTH])
@pytest.mark.parametrize(
    ("requests", "texts", "tokens", "length"),
    [
        pytest.param(7, 12, 30, 20, id="requests of some texts"),
        pytest.param(7, 12, 30, 120, id="requests of some texts, and a long one"),
        pytest.param(7, 300, 1, 34, id="requests of many texts of one token"),
        pytest.param(7, 300, 1, 120, id="requests of many texts of one token, and a long one"),
        pytest.param(7, 1, 1000, 20, id="requests of a long text"),
        pytest.param(1, 1000, 10, 120, id="one request of many texts"),
    ],
)
async def test_a_text_alone_waits_for_no_more_than_three_batches(
    queue: BatchQueue, mode: BatchMode, requests: int, texts: int, tokens: int, length: int
) -> None:
    """However many requests came before it; 100 tokens make a batch."""

    for _ in range(requests):
        put(queue, *[tokens] * texts)
    for _ in range(10):
        alone = put(queue, length)
        batches = iter(lambda: queue.take(mode), [])
        waited = next(count for count, batch in enumerate(batches) if any(entry.request is alone for entry in batch))
        assert waited <= 2, "beside the batch that runs"
        queue.release(alone)


async def test_among_small_requests_the_cheapest_goes_first(queue: BatchQueue) -> None:
    limits = RequestLimits(max_concurrent_requests=500)
    queue = BatchQueue(BUDGET, limits, QueueMetrics(MODEL), threading.Condition())
    for _ in range(400):
        put(queue, *[4] * 8)
    for _ in range(50):
        alone = put(queue, 5)
        assert any(entry.request is alone for entry in queue.take())
        queue.release(alone)


async def test_a_small_request_is_not_overtaken_for_ever(queue: BatchQueue) -> None:
    large = put(queue, 33)
    batches = 0
    while not any(entry.request is large for entry in queue.take()):
        batches += 1
        for request in [put(queue, 1) for _ in range(6)]:
            asyncio.get_running_loop().call_soon(queue.release, request)
        await asyncio.sleep(0)
    assert batches < 20


@pytest.mark.parametrize("mode", [BatchMode.PADDED, BatchMode.EQUAL_LENGTH])
async def test_a_text_of_a_rare_length_is_not_passed_over_for_long(queue: BatchQueue, mode: BatchMode) -> None:
    rare, taken = put(queue, 33), []
    for _ in range(4):
        for request in [put(queue, 1) for _ in range(6)]:
            asyncio.get_running_loop().call_soon(queue.release, request)
        taken += queue.take(mode)
        await asyncio.sleep(0)
    assert any(entry.request is rare for entry in taken)


async def test_small_requests_without_end_leave_others_a_batch_in_four(queue: BatchQueue) -> None:
    large = put(queue, *[10] * 1000)
    served = 0
    for _ in range(40):
        for request in [put(queue, 30) for _ in range(4)]:
            asyncio.get_running_loop().call_later(0, queue.release, request)
        served += sum(entry.tokens for entry in queue.take() if entry.request is large)
        await asyncio.sleep(0.001)
    assert served >= 40 // 4 * BUDGET * 0.9


async def test_requests_within_a_batch_are_served_in_order(queue: BatchQueue) -> None:
    requests = [put(queue, 30, 30, 30) for _ in range(3)]
    for request in requests:
        assert [entry.request for entry in queue.take()] == [request] * 3


async def test_a_caller_that_has_gone_is_dropped(queue: BatchQueue) -> None:
    gone, stays = put(queue, 10, 10), put(queue, 20)
    queue.release(gone)
    assert [entry.request for entry in queue.take()] == [stays]


async def test_a_full_queue_refuses_at_once(queue: BatchQueue) -> None:
    requests = [put(queue, 1000) for _ in range(8)]
    queue.record_throughput(tokens=100, seconds=1)
    with pytest.raises(OverloadedError, match="busy with 8 requests") as error:
        queue.admit(1, 1)
    assert error.value.retry_after == 60, "80 s of work wait, and nobody is told to wait for more than a minute"
    queue.release(requests[0])
    queue.admit(1, 1)


async def test_answers_come_back_in_order(queue: BatchQueue) -> None:
    request = put(queue, 90, 20, 50)
    while not request.result.done():
        answer(queue.take()[::-1])
        await asyncio.sleep(0)
    outputs = [prediction.main for prediction in await request.result]
    assert outputs == [Numbers(np.asarray(length)) for length in (90, 20, 50)]


async def test_a_text_that_fails_ends_its_request_only(queue: BatchQueue) -> None:
    bad, good = put(queue, 10, 10), put(queue, 10)
    batch = queue.take()
    bad.deliver([(1, RuntimeError("no"))])
    answer(batch)
    await good.result
    with pytest.raises(RuntimeError, match="no"):
        await bad.result


async def test_the_answers_of_a_batch_wake_the_event_loop_once(
    queue: BatchQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [put(queue, 10) for _ in range(3)]
    loop = asyncio.get_running_loop()
    wake, calls = loop.call_soon_threadsafe, []

    def count(*arguments: Any) -> Any:
        calls.append(arguments)
        return wake(*arguments)

    monkeypatch.setattr(loop, "call_soon_threadsafe", count)
    deliver({request: [(0, Prediction({MAIN: Numbers(np.asarray(1))}))] for request in requests})
    for request in requests:
        assert len(await request.result) == 1
    assert len(calls) == 1


async def test_closing_tells_those_who_wait(queue: BatchQueue) -> None:
    request = put(queue, 10)
    queue.close()
    with pytest.raises(ModelNotReadyError, match="shutting down"):
        await request.result


@pytest.mark.parametrize("mode", BatchMode)
async def test_the_metrics_say_how_many_texts_wait_and_run(queue: BatchQueue, mode: BatchMode) -> None:
    assert load() == (0, 0), "an idle queue has numbers too"
    request = put(queue, 60, 60, 60)
    other = put(queue, 60)
    assert load() == (4, 0)
    first = queue.take(mode)
    assert load() == (3, 1)
    second = queue.take(mode)
    assert load() == (2, 2), "several batches may run at once"
    queue.release(request)
    assert load() == (0, 2), "nobody waits for the rest of it, although it still lies there"
    queue.finish(first)
    queue.finish(second)
    assert load() == (0, 0)
    queue.release(other)
    assert load() == (0, 0)


async def test_a_closed_queue_counts_nothing(queue: BatchQueue) -> None:
    request = put(queue, 60, 60)
    batch = queue.take()
    queue.close()
    assert load() == (0, 1)
    queue.finish(batch)
    queue.release(request)
    assert load() == (0, 0)


async def test_what_is_left_of_a_failed_request_counts_no_more_while_the_model_waits(queue: BatchQueue) -> None:
    """Its error is known before it is released, and the device thread meets the rest of it in between."""
    request = put(queue, 60, 60, 60)
    queue.finish(queue.take())
    assert load() == (2, 0)
    request.result.set_exception(RuntimeError("the model fails"))
    assert queue.take() == []
    assert load() == (0, 0)
    queue.release(request)
    assert load() == (0, 0)


async def test_all_answers_together_have_so_many_numbers(queue: BatchQueue) -> None:
    """One request is only bounded by what a request may have; another one is told to try again."""
    most = 8 * LIMITS.max_answer_numbers
    first, second = queue.admit(1, 1), queue.admit(1, 1)
    queue.reserve(first, most - 5)
    queue.reserve(second, 5)
    with pytest.raises(
        OverloadedError, match=f"{most} numbers in answers; 1 more would exceed the {most} that 8 times --max_answer"
    ):
        queue.reserve(second, 1)
    queue.release(first)
    queue.reserve(second, most)
    queue.release(second)


async def test_an_answer_counts_until_it_is_sent(queue: BatchQueue) -> None:
    releases = collect_releases()
    request = queue.admit(1, 1)
    queue.reserve(request, 5)
    queue.release(request)
    assert queue.admission.numbers.held == 5
    for release in releases:
        release()
    assert queue.admission.numbers.held == 0


async def test_what_is_tokenized_after_its_request_is_over_counts_nowhere(queue: BatchQueue) -> None:
    request = queue.admit(1, 1)
    queue.release(request)
    queue.reserve(request, 5)
    assert queue.admission.numbers.held == 0


async def test_threads_that_find_numbers_together_find_no_more_than_the_limit(
    queue: BatchQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both tokenizer threads count the tokens of a request."""
    request, refused = queue.admit(1, 1), []
    most = LIMITS.max_answer_numbers
    share, check = most // 5, RequestLimits.check

    def check_slowly(*arguments: Any) -> None:
        check(*arguments)
        time.sleep(0.005)

    monkeypatch.setattr(RequestLimits, "check", check_slowly)

    def find() -> None:
        for _ in range(3):
            try:
                queue.reserve_found(request, share, "tokens")
            except LimitExceededError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=find) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (request.numbers, len(refused)) == (5 * share, 7)
    assert set(refused) == {f"{6 * share} tokens are more than the {most} that --max_answer_numbers allows"}
    queue.release(request)
