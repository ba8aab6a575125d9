"""Attack started servers with every case, and print what others noticed.

    python -m tests.attack [--only WORDS] [--servers embedder,...] [--quick]

It exits with 1 if a case was answered wrongly, took a worker down, or kept or took too much memory.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from tests.attack.case import Case, ServerKind
from tests.attack.harness import Row, Target, raise_file_limit
from tests.attack.probe import OTHER, quantile
from tests.attack.servers import start_server
from tests.attack.table import CASES

_COLUMNS = (
    "case", "answers", "s", "liveness p50 / p99 / max, ms", "other user, max ms", "MiB before / peak / after", "verdict"
)  # fmt: skip

# Seconds.
_LONGEST_ON_A_QUIET_MACHINE = 0.1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.attack")
    parser.add_argument("--only", default="", help="cases whose names have one of these, with | between")
    parser.add_argument("--servers", default=",".join(each for each in ServerKind if each is not ServerKind.VLLM))
    parser.add_argument("--patience", type=float, default=math.inf, help="seconds to wait for a case at most")
    parser.add_argument("--quick", action="store_true", help="only what takes less than three seconds")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    words = given.only.split("|")
    wanted = [
        replace(case, patience=min(case.patience, given.patience)) for case in CASES
        if any(word in case.name for word in words) and (case.quick or not given.quick)
    ]  # fmt: skip
    failed = False
    _print(_COLUMNS)
    _print(["---"] * len(_COLUMNS))
    for served in map(ServerKind, given.servers.split(",")):
        cases = [case for case in wanted if case.served is served]
        if cases:
            with tempfile.TemporaryDirectory() as folder:
                failed |= not _attack(served, cases, Path(folder))
    return int(failed)


def _attack(served: ServerKind, cases: Iterable[Case], folder: Path) -> bool:
    """Whether all passed; a server that a case has taken down is started again for the next one."""
    passed = True
    target: Target | None = None
    for case in cases:
        if target is None:
            target = Target(served, start_server(served, folder), folder)
            raise_file_limit()
            _print_quiet(served, target)
        row = target.run(case)
        _print_row(row)
        passed &= row.passed
        if row.lost:
            target.close()
            target = None
    if target is not None:
        row = target.rest()
        _print_row(row)
        passed &= row.passed
        target.close()
    return passed


def _print_quiet(served: ServerKind, target: Target) -> None:
    """What the probe measures where there is no attack."""
    target.measure(1)
    seen = target.measure(3)
    _print_row(
        Row(f"{served}, nothing", {}, 3, seen.liveness, seen.latencies(OTHER), target.memory, seen.peak, target.memory)
    )


def _print_row(row: Row) -> None:
    answers = ", ".join(f"{status}: {count:,}" for status, count in sorted(row.statuses.items()))
    live = " / ".join(f"{1e3 * value:.0f}" for value in (quantile(row.live, 0.5), quantile(row.live, 0.99), max(row.live, default=math.nan)))  # fmt: skip
    other = f"{1e3 * max(row.other, default=math.nan):.0f}"
    memory = " / ".join(f"{value / 2**20:.0f}" for value in (row.before, row.peak, row.after))
    verdict = "; ".join(row.problems) or "passed"
    if max(row.live, default=0) > _LONGEST_ON_A_QUIET_MACHINE:
        # What else runs on the machine may be the reason, so that this is no failure.
        verdict += ", but others waited"
    _print([row.name, answers, f"{row.seconds:.1f}", live, other, memory, verdict])


def _print(cells: Iterable[str]) -> None:
    sys.stdout.write(f"| {' | '.join(cells)} |\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
