"""A worker process, in the process of the tests."""

from __future__ import annotations

from typing import Any

import pytest

from runners.core.arguments import Arguments
from runners.core.device_thread import DeviceThread
from runners.core.models import Models
from runners.hosting.worker import Worker
from tests.waiting import eventually


async def test_the_end_of_a_background_task_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nobody awaits it."""
    nothing: Any = None
    worker = Worker(Models([], nothing), DeviceThread(), Arguments(), nothing, nothing, nothing, None)

    async def report() -> None:
        raise OSError("too many open files")

    worker._begin(report())
    await eventually(lambda: bool(caplog.records))
    [record] = caplog.records
    assert record.getMessage().endswith("report has failed")
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "too many open files"
