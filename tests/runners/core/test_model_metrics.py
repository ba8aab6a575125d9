"""Which models have metrics, and the writing of all metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.testclient import TestClient

from protocol.metrics_route import metrics_route
from runners.core.declarations import ModelDeclaration
from runners.core.models import Models
from runners.hosting.failures import load_or_exit
from tests.instant_models import InstantRunner, declare


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
