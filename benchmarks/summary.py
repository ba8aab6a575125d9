"""Write the figures of docs/explanation/performance.md and its plot from what `benchmarks.run` measured.

make bench-summary RESULTS=benchmarks/results/results.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.report import make_table, plot

PAGE = Path(__file__).resolve().parent.parent / "docs/explanation/performance.md"
MARK = "<!-- Written by `make bench-summary`; do not edit below. -->\n"


def write_summary(results_path: Path, page: Path = PAGE) -> None:
    """
    Raises:
        ValueError: the page has lost the line that its generated part follows.
    """
    results = json.loads(results_path.read_text())
    text, mark, _ = page.read_text(encoding="utf-8").partition(MARK)
    if not mark:
        raise ValueError(f"{page} has no line {MARK!r}")
    picture = page.with_suffix(".svg")
    plot(results, picture)
    image = f"![Texts a second by load and server]({picture.name})"
    page.write_text(f"{text}{MARK}\n{image}\n\n{make_table(results).rstrip()}\n", encoding="utf-8")


if __name__ == "__main__":
    write_summary(Path(sys.argv[1]))
