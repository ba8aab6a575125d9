"""The dashboard's structure: what Grafana would show wrongly without a word."""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from tests.observability.files import RUNBOOK, dashboard, fill_in, panel_expressions, panels
from tests.observability.promql import find_names

WIDTH = 24
# Grafana's names of the units of what the panels show.
UNITS = {"none", "reqps", "cps", "s", "percentunit"}
KINDS = {"row", "stat", "timeseries", "heatmap", "table"}
ROWS = [
    "Now", "Traffic", "Latency by phase", "Batches and padding", "Queue", "Refusals, truncation and clients that leave",
    "Generation", "Models and processes", "Workers",
]  # fmt: skip


def test_rows() -> None:
    assert [panel["title"] for panel in dashboard()["panels"] if panel["type"] == "row"] == ROWS


def test_ids_and_titles_are_unique() -> None:
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    titles = [panel["title"] for panel in panels()]
    rows = [row_of(panel) for panel in panels()]
    assert len({*zip(rows, titles, strict=True)}) == len(titles)


def row_of(panel: dict[str, Any]) -> str:
    """The title of the row that a panel stands in."""
    above = [
        other
        for other in dashboard()["panels"]
        if other["type"] == "row" and other["gridPos"]["y"] < panel["gridPos"]["y"]
    ]
    return str(max(above, key=lambda other: other["gridPos"]["y"])["title"])


def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
    place = panel["gridPos"]
    columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
    return {*itertools.product(columns, rows)}


def test_panels_fill_the_grid_without_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        assert not taken & cells(panel), panel["title"]
        taken |= cells(panel)
    assert {column for column, _ in taken} == {*range(WIDTH)}
    height = 1 + max(row for _, row in taken)
    assert len(taken) == WIDTH * height


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_panels(panel: dict[str, Any]) -> None:
    assert panel["type"] in KINDS
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    options = panel["options"]
    unit = options["yAxis"]["unit"] if panel["type"] == "heatmap" else panel["fieldConfig"]["defaults"]["unit"]
    assert unit in UNITS
    references = [target["refId"] for target in panel["targets"]]
    assert len({*references}) == len(references) > 0
    for target in panel["targets"]:
        assert target["datasource"] == panel["datasource"]
        # Several series of one panel are told apart.
        assert target["legendFormat"] or panel["type"] in ("stat", "table")
        unit_of_query = expected_unit(target["expr"])
        assert unit == unit_of_query or panel["type"] in ("table", "heatmap"), f"{unit}, not {unit_of_query}"


def expected_unit(expression: str) -> str:
    """The unit of an expression's value by the names of its metrics: times, shares, and numbers a second."""
    names = [name for name, _ in find_names(expression).metrics]
    seconds = any(name.endswith(("_seconds_bucket", "_seconds_sum")) for name in names)
    if seconds:
        return "s"
    rates = re.findall(r"\brate\((\S+?)\{", expression)
    if not rates or "histogram_quantile" in expression or any(name.endswith("_sum") for name in rates):
        return "none"
    if "/" in re.sub(r'"[^"]*"', "", expression):
        return "percentunit"
    requests = ("runtime_requests_total", "runtime_refusals_total", "runtime_cancelled_requests_total")
    return "reqps" if rates[0] in (*requests, "vllm:request_success_total") else "cps"


def test_variables() -> None:
    variables = {each["name"]: each for each in dashboard()["templating"]["list"]}
    assert [*variables] == ["datasource", "job", "instance", "model"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("job", "instance", "model"):
        assert variables[name]["definition"] == variables[name]["query"]["query"]
        # Series without a model, such as refusals before one was chosen, are a part of all.
        assert variables[name]["allValue"] == ".*"


def test_every_panel_follows_the_variables() -> None:
    """Each selector selects by job and server, and by model where the metric has one."""
    for expression in panel_expressions():
        for metric, labels in find_names(fill_in(expression.text)).metrics:
            assert {"job", "instance"} <= labels, f"{expression.where}: {metric}"


def test_the_runbook_names_the_rows() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    assert [row for row in ROWS if f"| {row} |" not in text] == []
