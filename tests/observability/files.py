"""What deploy/observability/ holds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import yaml

from tests.servers import ROOT

FOLDER = ROOT / "deploy/observability"
RULES = FOLDER / "rules.yaml"
DASHBOARD = FOLDER / "grafana/dashboards/huggingface-runtime.json"
RUNBOOK = ROOT / "docs/how-to/operations.md"


class Expression(NamedTuple):
    """An expression of PromQL.

    Attributes:
        where: what evaluates it, for messages.
        text: the expression.
        legends: the labels that its legend shows.
    """

    where: str
    text: str
    legends: frozenset[str] = frozenset()


@cache
def alarms() -> tuple[dict[str, Any], ...]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return tuple(rule for group in groups for rule in group["rules"])


@cache
def dashboard() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return content


def panels() -> list[dict[str, Any]]:
    """All that shows data; rows only have titles."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def alarm_expressions() -> list[Expression]:
    return [Expression(rule["alert"], rule["expr"]) for rule in alarms()]


def panel_expressions() -> list[Expression]:
    return [
        Expression(panel["title"], target["expr"], frozenset(re.findall(r"{{(\w+)}}", target["legendFormat"])))
        for panel in panels()
        for target in panel["targets"]
    ]


def dashboard_expressions() -> list[Expression]:
    """Those of panels, variables and annotations."""
    found = panel_expressions()
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            values = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"])
            assert values is not None
            found.append(Expression(f"${variable['name']}", values[1], frozenset({values[2]})))
    found += [Expression(each["name"], each["expr"]) for each in dashboard()["annotations"]["list"]]
    return found


def autoscaler_expressions() -> Iterator[Expression]:
    """KEDA's queries, and the adapter's, whose templates are filled in as it does."""
    for document in yaml.safe_load_all((FOLDER / "scaled-object.yaml").read_text()):
        for trigger in document["spec"]["triggers"]:
            yield Expression(f"{document['metadata']['name']}, {trigger['name']}", trigger["metadata"]["query"])
    adapter = yaml.safe_load((ROOT / "deploy/kubernetes/prometheus-adapter.yaml").read_text())
    for rule in adapter["rules"]["custom"]:
        series = rule["seriesQuery"]
        query = rule["metricsQuery"].replace("<<.Series>>{<<.LabelMatchers>>}", series).replace("<<.GroupBy>>", "pod")
        yield Expression(f"adapter, {rule['name']['as']}", query)


def all_expressions() -> list[Expression]:
    return [*alarm_expressions(), *dashboard_expressions(), *autoscaler_expressions()]


def fill_in(expression: str) -> str:
    """The expression as Grafana sends it, with its variables replaced by values that select all."""
    return re.sub(r"\$(job|instance|model)\b", ".*", expression.replace("$__rate_interval", "1m"))
