"""A process that does one measurement for each line it is sent, and waits between them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def start_child(words: Sequence[str], failure: str) -> Iterator[Callable[[str], str]]:
    """Start `python -m` with these words; what sends it a line and returns its answer, once it has printed `ready`.

    Args:
        failure: the error if it ends before, or instead of an answer.
    """
    with subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answered = process.stdin, process.stdout
        # The log may go to stdout too.
        if not any(line == "ready\n" for line in answered):
            raise SystemExit(f"error: {failure}")

        def ask(line: str) -> str:
            # A child that has ended answers nothing.
            with contextlib.suppress(BrokenPipeError):
                asked.write(f"{line}\n")
                asked.flush()
            if not (answer := answered.readline()):
                with contextlib.suppress(BrokenPipeError):
                    asked.close()
                raise SystemExit(f"error: {failure}")
            return answer

        yield ask
        asked.close()
