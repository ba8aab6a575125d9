"""Figures, one line of JSON each, printed as soon as they are known."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch


class Figures:
    """Prints figures, and keeps the time of a part of the run."""

    def __init__(self, device: torch.device) -> None:
        self._facts = {
            "card": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "torch": torch.__version__,
        }
        self._deadline = 0.0

    def start(self, seconds: float) -> None:
        """Begin a part that may take so long."""
        self._deadline = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the part should end."""
        return self._deadline - time.monotonic()

    def show(self, figure: str, value: float, unit: str, **details: Any) -> None:
        """Print a figure."""
        self._print({"figure": figure, "value": round(value, 4), "unit": unit, **details, **self._facts})

    def skip(self, figure: str, reason: str, **details: Any) -> None:
        """Print why a figure is missing."""
        self._print({"figure": figure, "skipped": reason, **details})

    def _print(self, facts: dict[str, Any]) -> None:
        sys.stdout.write(f"{json.dumps(facts)}\n")
        sys.stdout.flush()
