"""The metrics of the models and the process, and the writing of all metrics."""

from __future__ import annotations

import asyncio
import logging
import platform
from functools import cache
from typing import TYPE_CHECKING

from runners.core.metric_families import Labels, counting, flush
from runners.core.metrics import (
    EXPLAIN_SECONDS,
    MODEL_INFO,
    MODEL_LOAD_SECONDS,
    MODEL_READY,
    NON_FINITE_TEXTS,
    PROCESS_INFO,
    SERVER_READY,
    TEXTS,
    TOKENS,
    TRUNCATED_TEXTS,
    update_waiting_tokens,
)
from runners.core.request_metrics import update_requests_in_progress
from runners.core.version import VERSION, find_version

if TYPE_CHECKING:
    from runners.core.models import Models

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
_LIBRARIES = ("torch", "transformers", "bentoml")
# Shown with 0 before the first request of a model, so that their rates are known from the start.
_FROM_THE_START = (TEXTS, TOKENS, TRUNCATED_TEXTS, NON_FINITE_TEXTS, EXPLAIN_SECONDS)


def write_metrics(models: Models) -> None:
    """Write all metrics of this process to the files that /metrics reads; on the event loop."""
    update_models(models)
    update_requests_in_progress()
    update_waiting_tokens()
    flush()


async def keep_writing(models: Models) -> None:
    """Write the metrics once a second, also after errors; the log has the first of several in a row."""
    fails = False
    while True:
        try:
            write_metrics(models)
            fails = False
        except Exception:
            if not fails:
                logger.exception("the metrics of this worker cannot be written")
            fails = True
        await asyncio.sleep(FLUSH_SECONDS)


def update_models(models: Models) -> None:
    """Set the gauges of the models and of the process."""
    SERVER_READY.set((), models.ready)
    PROCESS_INFO.set(_describe_process(), 1)
    expected: set[Labels] = set()
    shown = {*MODEL_INFO.list_labels()}
    for model in models:
        key: Labels = (model.name, model.version)
        if model.is_expected:
            expected.add(key)
            MODEL_READY.set(key, model.ready)
            if model.load_seconds is not None:
                MODEL_LOAD_SECONDS.set(key, model.load_seconds)
        runner = model.runner
        if runner is None or not runner.loaded:
            continue
        with counting:
            for family in _FROM_THE_START:
                family.series(model.name)
        labels: Labels = (*key, str(runner.task), *runner.details)
        shown.discard(labels)
        MODEL_INFO.set(labels, 1)
    for gauge in (MODEL_READY, MODEL_LOAD_SECONDS):
        for key in {*gauge.list_labels()} - expected:
            gauge.remove(key)
    for labels in shown:
        MODEL_INFO.set(labels, 0)


@cache
def _describe_process() -> tuple[str, ...]:
    return VERSION, platform.python_version(), *(find_version(library) or "" for library in _LIBRARIES)
