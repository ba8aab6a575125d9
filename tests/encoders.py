"""Runners of encoders, loaded without a server."""

from __future__ import annotations

import asyncio
from typing import Any

from runners.core.arguments import Arguments
from runners.encoder.runner import EncoderRunner


def load(**arguments: Any) -> EncoderRunner:
    runner = EncoderRunner(Arguments.model_validate(arguments))
    asyncio.run(runner.load())
    return runner
