"""Every expression of the dashboard, the alarms and the autoscalers names metrics, labels and reasons that exist."""

from __future__ import annotations

import importlib
import re

import pytest

from protocol.http.errors import REFUSALS
from runners.core.metric_families import list_families
from runners.core.task import Task
from tests.observability.files import RUNBOOK, Expression, alarm_expressions, all_expressions, fill_in
from tests.observability.promql import find_names

for module in ("runners.core.metrics", "runners.core.generation_metrics", "runners.core.worker_metrics"):
    importlib.import_module(module)

# What Prometheus adds to each series: of every target, and in a cluster.
TARGET = frozenset({"job", "instance", "namespace", "pod"})
# Prometheus' own series.
PROMETHEUS = {"up": TARGET, "ALERTS": TARGET | {"alertname", "alertstate", "severity"}}


def exposed_series() -> dict[str, frozenset[str]]:
    """The labels of each series, by its name: a histogram is three of them."""
    found = {**PROMETHEUS}
    for family in list_families():
        labels = TARGET | {*family.labels}
        if family.kind == "histogram":
            found |= {f"{family.name}_sum": labels, f"{family.name}_count": labels}
            found[f"{family.name}_bucket"] = labels | {"le"}
        else:
            found[family.name] = labels
    return found


def find_problems(expression: Expression) -> list[str]:
    """What an expression names that is not there."""
    series = exposed_series()
    names = find_names(fill_in(expression.text))
    problems, known = [], set[str]()
    for metric, labels in names.metrics:
        if metric not in series:
            problems.append(f"no metric {metric}")
            continue
        known |= series[metric]
        problems += [f"{metric} has no label {label}" for label in sorted(labels - series[metric])]
    problems += [f"no metric has the label {label}" for label in sorted((names.kept | names.dropped) - known)]
    # What a group drops is in no legend.
    shown = names.kept if names.kept and not names.dropped else known
    return problems + [f"the legend's {label} is not there" for label in sorted(expression.legends - shown)]


@pytest.mark.parametrize("expression", all_expressions(), ids=lambda expression: expression.where)
def test_names_exist(expression: Expression) -> None:
    assert find_problems(expression) == []


WRONG = [
    ("sum(runtime_request)", "no metric runtime_request"),
    ("rate(runtime_requests[5m])", "no metric runtime_requests"),
    ("rate(runtime_queue_seconds[5m])", "no metric runtime_queue_seconds"),
    ('runtime_waiting_texts{route="a"}', "runtime_waiting_texts has no label route"),
    ("sum by (version) (runtime_waiting_texts)", "no metric has the label version"),
    ("sum by (job) (runtime_waiting_texts)", "the legend's model_name is not there"),
]


@pytest.mark.parametrize(("text", "problem"), WRONG)
def test_wrong_names_are_found(text: str, problem: str) -> None:
    assert problem in find_problems(Expression("wrong", text, frozenset({"model_name"})))


def test_the_runbook_says_what_each_metric_tells() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    assert [name for name in sorted(family.name for family in list_families()) if f"`{name}`" not in text] == []


def test_label_values_exist() -> None:
    """Reasons of refusals and tasks, which only matchers name."""
    text = " ".join(expression.text for expression in alarm_expressions())
    values = {
        label: {value for found in re.findall(rf'{label}=~"([^"]+)"', text) for value in found.split("|")}
        for label in ("reason", "task")
    }
    assert values["reason"]
    assert values["reason"] <= REFUSALS
    assert values["task"] == {Task.TEXT_GENERATION, Task.TEXT2TEXT_GENERATION}
