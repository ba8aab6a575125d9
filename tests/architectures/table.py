"""The table of docs/reference/models.md: `python -m tests.architectures.table` measures it and writes it."""

from __future__ import annotations

from pathlib import Path

from runners.core.task import Task
from tests.architectures.comparison import DTYPES, Outcome, Verdict
from tests.architectures.refusals import stock_refusal
from tests.architectures.registry import Pair, registered_pairs
from tests.architectures.sweep import Outcomes, sweep

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
_MARK = "<!-- What follows is written by `make architectures-table`. -->\n"
# Text ranking and zero-shot classification run the classes of sequence classification, sparse embedding those of
# fill-mask.
TASKS = {
    Task.TEXT_EMBEDDING: "embedding",
    Task.FILL_MASK: "fill-mask",
    Task.SEQUENCE_CLASSIFICATION: "sequence classification",
    Task.TOKEN_CLASSIFICATION: "token classification",
    Task.QUESTION_ANSWERING: "question answering",
}


def render(outcomes: Outcomes) -> str:
    """The part of the page that is measured: how many are right, and every pair."""
    return "\n".join([*_render_counts(outcomes), "", *_render_pairs(outcomes), ""])


def count(outcomes: Outcomes, dtype: str) -> dict[Verdict, int]:
    """How many pairs of each verdict there are in a dtype."""
    verdicts = [by_dtype[dtype].verdict for by_dtype in outcomes.values()]
    return {verdict: verdicts.count(verdict) for verdict in Verdict}


def read_cells(page: str) -> dict[tuple[str, Task], str]:
    """The cells of a page's table that are not empty, by model type and task."""
    cells: dict[tuple[str, Task], str] = {}
    for line in page.partition(_MARK)[2].splitlines():
        model_type, *row = (cell.strip() for cell in line.strip("|").split("|"))
        if len(row) == len(TASKS) and model_type.startswith("`"):
            cells |= {(model_type.strip("`"), task): cell for task, cell in zip(TASKS, row, strict=True) if cell}
    return cells


def write(outcomes: Outcomes) -> None:
    head = PAGE.read_text(encoding="utf-8").partition(_MARK)[0]
    PAGE.write_text(f"{head}{_MARK}\n{render(outcomes)}", encoding="utf-8")


def _render_counts(outcomes: Outcomes) -> list[str]:
    lines = ["| dtype | pairs | stock `transformers` refuses | right | wrong | refused |", "|---|--:|--:|--:|--:|--:|"]
    for dtype in DTYPES:
        counts = count(outcomes, dtype)
        numbers = [len(outcomes), *(counts[each] for each in (Verdict.STOCK_REFUSES, Verdict.RIGHT, Verdict.WRONG))]
        lines.append(f"| {dtype} | " + " | ".join(map(str, [*numbers, counts[Verdict.REFUSED]])) + " |")
    return lines


def _render_pairs(outcomes: Outcomes) -> list[str]:
    lines = ["| model type | " + " | ".join(TASKS.values()) + " |", "|---" * (len(TASKS) + 1) + "|"]
    for model_type in sorted({pair.model_type for pair in outcomes}):
        cells = [_render_cell(Pair(model_type, task), outcomes) for task in TASKS]
        lines.append(f"| `{model_type}` | " + " | ".join(cells) + " |")
    return lines


def _render_cell(pair: Pair, outcomes: Outcomes) -> str:
    if pair not in outcomes:
        return ""
    full, brain, half = (_render_outcome(pair, dtype, outcomes[pair][dtype]) for dtype in DTYPES)
    if full == brain == half:
        return full
    if brain == half:
        return f"{full}; 16 bit: {brain}"
    others = (f"; {name}: {cell}" for name, cell in (("bfloat16", brain), ("float16", half)) if cell != full)
    return full + "".join(others)


def _render_outcome(pair: Pair, dtype: str, outcome: Outcome) -> str:
    if outcome.verdict is Verdict.RIGHT:
        return outcome.mode
    if outcome.verdict is Verdict.WRONG:
        return f"wrong ({outcome.mode})"
    known = stock_refusal(pair, dtype)
    return f"{outcome.verdict}: {outcome.reason if known is None else known.reason}".replace("|", "/")


if __name__ == "__main__":
    write(sweep(registered_pairs()))
