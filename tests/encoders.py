"""Runners of encoders, loaded without a server."""

from __future__ import annotations

from typing import Any

from anyio.from_thread import start_blocking_portal

from runners.core.arguments import Arguments
from runners.encoder.runner import EncoderRunner


def load(**arguments: Any) -> EncoderRunner:
    runner = EncoderRunner(Arguments.model_validate(arguments))
    # A loop of its own, as the caller may run in one.
    with start_blocking_portal() as portal:
        portal.call(runner.load)
    return runner
