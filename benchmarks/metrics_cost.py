"""What records, metrics and the log cost: CPU time a request, and the throughput of a server with and without them.

    make bench-metrics
    make bench-metrics BENCH_METRICS="--rounds 10 --other ../checkout-without-metrics"

The first part runs in this process: a record of an encoder's request with all its moments, begun and ended, the gauges
and sizes of a batch of one text, which is the dearest, and a token of an output that runs alone. The second starts a
server of this checkout, which logs a JSON line for each request, and one of the other, and measures them in turn under
32 callers; the ratio of each pair is the result.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.cpu import describe_spread, measure, serving, wait_until_idle
from benchmarks.load import bodies, drive
from benchmarks.machine import describe, machine
from benchmarks.models import make_model
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import LOGGED, ROOT, sample, serve, serve_words
from runners.core.access_log import make_access_log
from runners.core.generation import Delta
from runners.core.generation_metrics import GenerationMetrics, SequenceMetrics
from runners.core.metric_families import flush
from runners.core.metrics import BatchMetrics, QueueMetrics
from runners.core.request_metrics import count_request
from runners.core.request_record import (
    Observer,
    RequestRecord,
    add_observer,
    begin_record,
    end_record,
    remove_observer,
)
from runners.encoder.forward import count_padding
from runners.encoder.sequences import TokenizedText

_REQUESTS = 50_000
_CALLERS = 32
_ROUTE = "/v1/models/{name}:predict"


def main() -> None:
    options = _parse(sys.argv[1:])
    sys.stdout.write(f"{describe(machine())}\n\n")
    _measure_records(options.rounds)
    if options.other is not None:
        with tempfile.TemporaryDirectory() as scratch:
            _compare_servers(make_model("sequence_classification", Path(scratch) / "model"), options)


def _parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-metrics")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0, help="the length of each load")
    parser.add_argument("--other", type=Path, help="another checkout, whose server has no metrics of requests")
    return parser.parse_args(words)


def _measure_records(rounds: int) -> None:
    """Print the CPU time of a record, of what metrics and the access line add to it, and of writing the metrics."""
    run_batch, add_token = _make_batch(), _make_token()

    def answer_with_batch() -> None:
        _answer()
        run_batch()

    def with_observers(*observers: Observer, answer: Callable[[], None] = _answer) -> float:
        for observer in observers:
            add_observer(observer)
        try:
            return _time_requests(answer)
        finally:
            for observer in observers:
                remove_observer(observer)

    # A thread writes what is kept here.
    lines: deque[bytes] = deque(maxlen=1)
    write_line = make_access_log(lines.append, {"worker": 1}, is_json=True, component="worker", logs_probes=False)
    sides: dict[str, Callable[[], float]] = {
        "a loop that does nothing": partial(_time_requests, lambda: None),
        "the record": with_observers,
        "the record and the metrics": partial(with_observers, count_request),
        "the record, the metrics and a batch": partial(with_observers, count_request, answer=answer_with_batch),
        "all that, and a JSON line": partial(with_observers, count_request, write_line, answer=answer_with_batch),
        "the metrics of a generated token": partial(_time_requests, add_token),
    }
    for name, found in take_turns(sides, rounds).items():
        sys.stdout.write(f"{name}: {describe_spread(found)} us of CPU\n")
    started = time.process_time()
    flush()
    sys.stdout.write(f"writing the metrics, once a second: {1000 * (time.process_time() - started):.2f} ms of CPU\n")


def _time_requests(answer: Callable[[], None]) -> float:
    """CPU microseconds of a call."""
    started = time.process_time()
    for _ in range(_REQUESTS):
        answer()
    return 1e6 * (time.process_time() - started) / _REQUESTS


def _answer() -> None:
    record = begin_record("server", "unknown", "POST", _read_no_header)
    record.locate("kserve_v1", _ROUTE)
    record.model_name, record.status = "model", "200"
    record.texts, record.tokens = 1, 20
    _set_moments(record)
    end_record(record)


def _set_moments(record: RequestRecord) -> None:
    record.queued = record.started + 0.0002
    record.computing = record.started + 0.001
    record.computed = record.started + 0.01
    record.rendering = record.started + 0.0101


def _make_batch() -> Callable[[], None]:
    """The metrics of a batch of one text: the queue's gauges, which change three times, its sizes and its padding."""
    queue, sizes = QueueMetrics("model"), BatchMetrics("model")
    ids = np.zeros(20, np.int64)
    texts = [TokenizedText(ids, ids, None, False)]

    def run_batch() -> None:
        for waiting, running in ((1, 0), (0, 1), (0, 0)):
            queue.waiting.set(waiting)
            queue.running.set(running)
        sizes.count(1, len(ids), count_padding(texts))

    return run_batch


def _make_token() -> Callable[[], None]:
    """The metrics of a step of one sequence: its batch and its token."""
    sizes, output = BatchMetrics("model"), SequenceMetrics(GenerationMetrics("model"), time.perf_counter(), 20)
    deltas = [Delta(" token", (7,))]

    def add_token() -> None:
        sizes.count(1, 1, 0)
        output.add(deltas)

    return add_token


def _read_no_header(_: str) -> None:
    return None


def _compare_servers(model: Path, options: argparse.Namespace) -> None:
    """Print the throughput and the CPU time of this checkout's server and of the other's, in pairs."""
    texts = sample()
    words = serve_words(model, "float32")

    def drive_server(url: str) -> tuple[float, float]:
        processes = serving(url)
        load = drive(f"{url}/v1/models/model:predict", bodies("v1", texts, 1), _CALLERS, 1, options.seconds)
        cpu, found = measure(processes, load)
        wait_until_idle(processes)
        return found.texts_a_second, cpu

    with contextlib.ExitStack() as servers:
        here = servers.enter_context(serve([*words, *LOGGED]))
        there = servers.enter_context(serve(words, folder=options.other))
        for url in (here, there):
            # Warm.
            asyncio.run(drive(f"{url}/v1/models/model:predict", bodies("v1", texts, 1), _CALLERS, 1, 2.0))
        found = take_turns({"here": partial(drive_server, here), "there": partial(drive_server, there)}, options.rounds)
    sys.stdout.write(f"\n{_CALLERS} callers, this checkout with a JSON line for each request / the other:\n")
    for name, index in (("texts/s", 0), ("us of CPU a request", 1)):
        sides = [[figures[index] for figures in found[side]] for side in ("here", "there")]
        listed = " and ".join(describe_spread(side, 0) for side in sides)
        ratio = Ratio.of(*sides)
        sys.stdout.write(f"{name}: {ratio}, mean {ratio.mean:.3f}, 95 % {ratio.interval}; {listed}\n")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(ROOT)
    main()
