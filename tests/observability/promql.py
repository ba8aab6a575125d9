"""What a PromQL expression names. That it parses is promtool's to say."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TOKEN = re.compile(
    r"""(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    |(?P<range>\[[^\]]*\])
    |(?P<number>\d[\w.]*)
    |(?P<name>[A-Za-z_:][\w:]*)
    |(?P<mark>\S)""",
    re.VERBOSE,
)
_GROUPING = frozenset({"by", "without", "on", "ignoring", "group_left", "group_right"})
_OPERATORS = frozenset({"and", "or", "unless", "bool", "offset", "inf", "nan"})


@dataclass(frozen=True)
class Names:
    """The names in an expression.

    Attributes:
        metrics: each metric and the labels by which it is selected.
        kept: the labels by which it groups or matches (`by`, `on`).
        dropped: the labels that groups leave out (`without`, `ignoring`).
    """

    metrics: tuple[tuple[str, frozenset[str]], ...]
    kept: frozenset[str]
    dropped: frozenset[str]


def find_names(expression: str) -> Names:
    """The metrics and labels that an expression names, with Grafana's variables in it or not."""
    tokens = [(match.lastgroup, match[0]) for match in _TOKEN.finditer(expression.replace("$__", ""))]
    metrics: list[tuple[str, frozenset[str]]] = []
    groups: dict[str, set[str]] = {"kept": set(), "dropped": set()}
    position = 0
    while position < len(tokens):
        kind, text = tokens[position]
        following = tokens[position + 1][1] if position + 1 < len(tokens) else ""
        position += 1
        if kind != "name" or text in _OPERATORS:
            continue
        if text in _GROUPING:
            if following == "(":
                labels, position = _read_labels(tokens, position, ")")
                groups["dropped" if text in ("without", "ignoring") else "kept"] |= labels
        elif following == "{":
            labels, position = _read_labels(tokens, position, "}")
            metrics.append((text, frozenset(labels)))
        elif not _is_function(tokens, position):
            metrics.append((text, frozenset()))
    return Names(tuple(metrics), frozenset(groups["kept"]), frozenset(groups["dropped"]))


def _read_labels(tokens: list[tuple[str | None, str]], start: int, end: str) -> tuple[set[str], int]:
    """The names between brackets, and the position behind them."""
    stop = next(index for index in range(start, len(tokens)) if tokens[index][1] == end)
    return {text for kind, text in tokens[start:stop] if kind == "name"}, stop + 1


def _is_function(tokens: list[tuple[str | None, str]], position: int) -> bool:
    """Whether the name before stands before arguments, or before `by (...)`, as aggregations may."""
    return position < len(tokens) and tokens[position][1] in ("(", "by", "without")
