"""The comparison of many families in worker processes.

`python -m tests.generator_families.sweep llama phi3` prints the outcomes of these model types.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.generator_families.comparison import Outcome, compare
from tests.generator_families.registry import Family, registered_families

_PROCESSES = 2

Outcomes = dict[Family, Outcome]


def sweep(families: Sequence[Family]) -> Iterator[tuple[Family, Outcome]]:
    """The outcomes of all the families, as they come."""
    # No fork: torch has threads.
    context = multiprocessing.get_context("spawn")
    with context.Pool(_PROCESSES, initializer=_start_worker) as pool:
        yield from pool.imap_unordered(_compare, families)


def _start_worker() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.disable(logging.CRITICAL)
    gc.freeze()


def _compare(family: Family) -> tuple[Family, Outcome]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        outcome = compare(family, Path(folder))
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    return family, outcome


def main(model_types: Sequence[str]) -> None:
    chosen = [
        each for each in registered_families() if not model_types or {each.model_type, str(each)} & {*model_types}
    ]
    for family, outcome in sweep(chosen):
        print(family, outcome.verdict, outcome.batching, outcome.reason, sep=" | ", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
