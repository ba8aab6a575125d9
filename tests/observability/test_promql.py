from __future__ import annotations

import pytest

from tests.observability.promql import Names, find_names

# (expression, metrics with the labels that select them, labels that are kept, labels that are dropped)
CASES = [
    ("up", {"up": set()}, set(), set()),
    ('up{job=~"$job", instance!="a}b"}', {"up": {"job", "instance"}}, set(), set()),
    ("absent(up)", {"up": set()}, set(), set()),
    ("sum by (job, le) (rate(a_bucket{x='1'}[$__rate_interval]))", {"a_bucket": {"x"}}, {"job", "le"}, set()),
    ("sum(rate(a[5m])) by (job)", {"a": set()}, {"job"}, set()),
    ("max without (b) (resets(vllm:c_total[1h])) > 2", {"vllm:c_total": set()}, set(), {"b"}),
    ("a == bool 0 and on (x) last_over_time(b[1h])", {"a": set(), "b": set()}, {"x"}, set()),
    ("a / ignoring (y) group_left (z) b offset 5m or vector(0)", {"a": set(), "b": set()}, {"z"}, {"y"}),
    ("histogram_quantile(0.99, a) > 1e3 unless b", {"a": set(), "b": set()}, set(), set()),
]


@pytest.mark.parametrize(("expression", "metrics", "kept", "dropped"), CASES)
def test_names(expression: str, metrics: dict[str, set[str]], kept: set[str], dropped: set[str]) -> None:
    expected = Names(
        tuple((name, frozenset(labels)) for name, labels in metrics.items()), frozenset(kept), frozenset(dropped)
    )
    assert find_names(expression) == expected
