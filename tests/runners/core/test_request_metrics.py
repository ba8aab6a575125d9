"""What the metrics make of records."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from prometheus_client import REGISTRY

from runners.core.metric_families import BORROWED_NAMES, flush
from runners.core.request_metrics import count_request, update_requests_in_progress
from runners.core.request_record import RequestRecord, begin_record, end_record

ROUTE = "/v1/models/{name}:predict"
READ, QUEUE, COMPUTE, RENDER = 0.5, 1.0, 2.0, 4.0
PHASES = {"queued": 0.5, "computing": 1.5, "computed": 3.5, "rendering": 4.0, "ended": 8.0}


def make_record(model: str, **fields: Any) -> RequestRecord:
    record = RequestRecord("kserve_v1", ROUTE, "POST")
    record.model_name, record.status, record.texts, record.tokens = model, "200", 2, 9
    record.started = 100.0
    for name, value in fields.items():
        setattr(record, name, 100.0 + value if name in PHASES else value)
    return record


def read(name: str, **labels: str) -> float | None:
    flush()
    return (BORROWED_NAMES if name.startswith("request_") else REGISTRY).get_sample_value(name, labels)


def test_the_phases_of_an_answer() -> None:
    count_request(make_record("phases", **PHASES))
    seconds = {"read": READ, "queue": QUEUE, "compute": COMPUTE, "render": RENDER}
    for phase, expected in seconds.items():
        assert read(f"runtime_{phase}_seconds_sum", model_name="phases") == expected
    for phase, expected in {"preprocess": READ, "predict": QUEUE + COMPUTE, "postprocess": RENDER}.items():
        assert read(f"request_{phase}_seconds_sum", model_name="phases") == expected
    labels = {"protocol": "kserve_v1", "route": ROUTE, "model_name": "phases"}
    assert read("runtime_request_seconds_sum", **labels) == 8
    assert read("runtime_requests_total", **labels, status="200") == 1
    assert read("runtime_texts_total", model_name="phases") == 2
    assert read("runtime_tokens_total", model_name="phases") == 9


@pytest.mark.parametrize(
    ("fields", "counts"),
    [
        # Refused before it was tokenized, while it waited, after it was computed; and a client that left.
        ({"refusal": "input", "status": "400"}, (0, 0, 0, 0)),
        ({"refusal": "not_ready", "status": "503", "queued": 1.0}, (1, 0, 0, 0)),
        ({"refusal": "non_finite", "status": "500", **PHASES}, (1, 1, 1, 0)),
        ({"cancelled": True, "status": "499", "queued": 1.0, "computing": 2.0}, (1, 1, 0, 0)),
        ({"queued": 1.0, "computing": 2.0, "computed": 3.0}, (1, 1, 1, 0)),
    ],
)
def test_a_request_counts_in_the_phases_that_it_has_ended(
    request: pytest.FixtureRequest, fields: dict[str, Any], counts: tuple[int, ...]
) -> None:
    model = request.node.name
    count_request(make_record(model, **{"ended": 9.0, **fields}))
    names = [f"runtime_{phase}_seconds_count" for phase in ("read", "queue", "compute", "render")]
    assert tuple(read(name, model_name=model) for name in names) == counts
    is_answered = not fields.keys() & {"refusal", "cancelled"}
    assert read("runtime_texts_total", model_name=model) == (2 if is_answered else 0)
    refusal = {"protocol": "kserve_v1", "model_name": model, "reason": fields.get("refusal", "")}
    assert read("runtime_refusals_total", **refusal) == (1 if "refusal" in fields else None)
    cancelled = read("runtime_cancelled_requests_total", protocol="kserve_v1", model_name=model)
    assert cancelled == (1 if "cancelled" in fields else None)


def test_requests_in_progress() -> None:
    def count() -> float:
        update_requests_in_progress()
        return read("runtime_requests_in_progress", protocol="tei") or 0

    before = count()
    record = begin_record("tei", "/embed", "POST", lambda _: None)
    assert count() == before + 1
    end_record(record)
    assert count() == before


def test_libraries_with_the_same_names_can_be_imported() -> None:
    """KServe's and vLLM's packages register their metrics when they are imported, before this server's or after."""
    for first, second in (("kserve.metrics", "runners.core.metrics"), ("runners.core.metrics", "kserve.metrics")):
        subprocess.run([sys.executable, "-c", f"import {first}, {second}"], check=True)
