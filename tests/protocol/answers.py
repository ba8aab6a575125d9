"""What the tests of answers share: random texts, tolerances, and one question over every wire."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from protocol.tensors import BYTES
from tests.served import ServedOverGrpc
from tests.wire import WIRES, Outcome

TOLERANCE = 1e-4
HYPOTHESIS = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
WORDS = st.sampled_from(["good", "film", "É", "e\u0301", "😀", "東京", "don't", "  ", "unbelievable", ".", "\u200b"])
RANDOM_TEXT = st.lists(WORDS | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=8).map(" ".join)


def ask(served: ServedOverGrpc, texts: list[str], parameters: dict[str, Any]) -> Outcome:
    """The answer that all four wires give."""
    tensor = {"name": "input-0", "shape": [len(texts)], "datatype": BYTES, "data": texts}
    request = {"inputs": [tensor], "parameters": parameters}
    outcomes = [wire(served.client, served.channel, "model", request) for wire in WIRES]
    assert outcomes == [outcomes[0]] * len(WIRES)
    return outcomes[0]
