"""The comparison of many pairs in worker processes.

`python -m tests.architectures.sweep bert fnet` prints the outcomes of these model types.
"""

from __future__ import annotations

import gc
import itertools
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.architectures.comparison import DTYPES, Outcome, compare
from tests.architectures.registry import Pair, registered_pairs

_PROCESSES = 2
# Models that are made before the memory of their cycles is taken back.
_BEFORE_COLLECTING = 20

Outcomes = dict[Pair, dict[str, Outcome]]


def sweep(pairs: Sequence[Pair], dtypes: Sequence[str] = DTYPES) -> Outcomes:
    """The outcomes of all the pairs; the pairs of a type run in one process, one after another."""
    # No fork: torch has threads.
    context = multiprocessing.get_context("spawn")
    by_type = [list(group) for _, group in itertools.groupby(sorted(pairs), key=lambda pair: pair.model_type)]
    with context.Pool(_PROCESSES, initializer=_start_worker) as pool:
        found = pool.imap_unordered(_compare_all, [(group, tuple(dtypes)) for group in by_type])
        return {pair: outcomes for group in found for pair, outcomes in group}


@contextmanager
def frozen_heap() -> Iterator[None]:
    """What is imported is not for the collector meanwhile.

    A runner collects when it loads, which takes 2 s of a heap with `transformers` in it, and 0.1 s otherwise.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _start_worker() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.WARNING)


_compared = itertools.count(1)


def _compare_all(given: tuple[Sequence[Pair], Sequence[str]]) -> list[tuple[Pair, dict[str, Outcome]]]:
    pairs, dtypes = given
    outcomes = []
    for pair in pairs:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            outcomes.append((pair, compare(pair, Path(folder), dtypes)))
        if next(_compared) % _BEFORE_COLLECTING == 1:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
    return outcomes


def main(model_types: Sequence[str]) -> None:
    pairs = [pair for pair in registered_pairs() if not model_types or pair.model_type in model_types]
    for pair, outcomes in sorted(sweep(pairs).items()):
        for dtype, outcome in outcomes.items():
            words = (pair.model_type, pair.task, dtype, outcome.verdict, outcome.mode, outcome.reason)
            print(*words, f"{outcome.error:.0e}", sep=" | ", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
