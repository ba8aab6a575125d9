"""Which models have metrics, and the writing of all metrics."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from protocol.metrics_route import metrics_route
from runners.core import model_metrics
from runners.core.admission import Admission
from runners.core.arguments import Arguments
from runners.core.declarations import ModelDeclaration
from runners.core.metrics import update_waiting_tokens, watch_waiting_tokens
from runners.core.model_metrics import keep_writing
from runners.core.models import Models
from runners.hosting.failures import load_or_exit
from tests.instant_models import InstantRunner, declare
from tests.waiting import eventually


def make(*declarations: ModelDeclaration, **settings: Any) -> Models:
    create: Any = InstantRunner
    return Models(declarations, create, **settings)


def scrape(models: Models, metric: str) -> dict[str, float]:
    """The values of a metric by `name/version` of the model."""
    text = TestClient(Starlette(routes=[metrics_route(models)])).get("/metrics").text
    return {
        f"{sample.labels['model_name']}/{sample.labels['version']}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == metric
    }


async def test_models_that_nobody_loads_have_no_readiness() -> None:
    """An alarm fires for a model that is not ready for half an hour."""
    models = make(declare("a"), declare("b", load=False))
    assert scrape(models, "runtime_model_ready") == {"a/1": 0}
    await models.load("a")
    await models.load("b")
    assert scrape(models, "runtime_model_ready") == {"a/1": 1, "b/1": 1}
    assert scrape(models, "runtime_model_load_seconds").keys() == {"a/1", "b/1"}
    await models.unload("a")
    for metric in ("runtime_model_ready", "runtime_model_load_seconds"):
        assert scrape(models, metric).keys() == {"b/1"}
    await models.load("a")
    assert scrape(models, "runtime_model_ready") == {"a/1": 1, "b/1": 1}


async def test_a_replaced_version_has_no_readiness() -> None:
    found = [declare("a", "1")]
    models = make(*found, find_declarations=lambda _: found)
    await models.load("a")
    assert scrape(models, "runtime_model_ready") == {"a/1": 1}
    found[:] = [declare("a", "2")]
    await models.load("a")
    for metric in ("runtime_model_ready", "runtime_model_load_seconds"):
        assert scrape(models, metric).keys() == {"a/2"}


async def test_a_model_whose_load_has_failed_is_not_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server goes on without it, and nobody would miss it."""
    (tmp_path / "broken").touch()
    models = make(declare("a"), declare("b", folder=tmp_path))
    await load_or_exit(models, serves_others=True)
    assert "b is not served" in caplog.text
    assert scrape(models, "runtime_model_ready") == {"a/1": 1, "b/1": 0}


async def test_metrics_are_written_on_after_errors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has a line when they begin to fail, and not one a second."""
    outcomes: list[Exception | None] = [OSError("full"), OSError("full"), None, OSError("gone"), None]

    def write(_: Models) -> None:
        if outcomes and (error := outcomes.pop(0)) is not None:
            raise error

    monkeypatch.setattr(model_metrics, "write_metrics", write)
    monkeypatch.setattr(model_metrics, "FLUSH_SECONDS", 0.001)
    writing = asyncio.create_task(keep_writing(make()))
    await eventually(lambda: not outcomes)
    assert not writing.done()
    writing.cancel()
    assert [str(record.exc_info and record.exc_info[1]) for record in caplog.records] == ["full", "gone"]


def test_models_are_loaded_while_waiting_tokens_are_counted() -> None:
    admissions = [Admission(Arguments()) for _ in range(20_000)]
    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def load() -> None:
        for admission in admissions:
            watch_waiting_tokens("loaded", admission)

    try:
        loading = threading.Thread(target=load)
        loading.start()
        while loading.is_alive():
            update_waiting_tokens()
        loading.join()
    finally:
        sys.setswitchinterval(switch)
