"""The tables of docs/reference/generators.md: `python -m tests.generator_families.table` measures them and writes them."""

from __future__ import annotations

from pathlib import Path

from tests.generator_families.comparison import Outcome, Verdict
from tests.generator_families.registry import Family, registered_families
from tests.generator_families.sweep import Outcomes, sweep

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "generators.md"
_MARK = "<!-- What follows is written by `make architectures-table`. -->\n"
_KINDS = {False: "decoder", True: "encoder-decoder"}
# Where a temporary folder stands in a reason, and how much of one is worth a cell.
_LONGEST_REASON = 110


def render(outcomes: Outcomes) -> str:
    """The part of the page that is measured: how many are right, and every family."""
    counts = count(outcomes)
    lines = [
        "| families | " + " | ".join(counts) + " |",
        "|--:" * (len(counts) + 1) + "|",
        f"| {len(outcomes)} | " + " | ".join(str(number) for number in counts.values()) + " |",
        "",
        "| model type | kind | variant | outcome |",
        "|---|---|---|---|",
    ]
    lines += [_render_row(family, render_cell(outcome)) for family, outcome in sorted(outcomes.items())]
    return "\n".join([*lines, ""])


def count(outcomes: Outcomes) -> dict[Verdict, int]:
    verdicts = [outcome.verdict for outcome in outcomes.values()]
    return {verdict: verdicts.count(verdict) for verdict in Verdict}


def render_cell(outcome: Outcome) -> str:
    """How sequences are batched, or why there are none."""
    if outcome.verdict is Verdict.RIGHT:
        return outcome.batching
    reason = outcome.reason.replace("|", "/")
    shortened = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]}..."
    return f"{outcome.verdict}: {shortened}"


def read_cells(page: str) -> dict[str, str]:
    """The outcomes of a page's table, by family."""
    cells: dict[str, str] = {}
    families = {_render_row(family, ""): family for family in registered_families()}
    for line in page.partition(_MARK)[2].splitlines():
        row, _, cell = line.removesuffix(" |").rpartition(" | ")
        if (family := families.get(f"{row} |  |")) is not None:
            cells[str(family)] = cell
    return cells


def write(outcomes: Outcomes) -> None:
    head = PAGE.read_text(encoding="utf-8").partition(_MARK)[0]
    PAGE.write_text(f"{head}{_MARK}\n{render(outcomes)}", encoding="utf-8")


def _render_row(family: Family, cell: str) -> str:
    return f"| `{family.model_type}` | {_KINDS[family.has_encoder]} | {family.variant} | {cell} |"


if __name__ == "__main__":
    write(dict(sweep(registered_families())))
