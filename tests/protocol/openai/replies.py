"""What answers of OpenAI's API are read as."""

from __future__ import annotations

import json
from typing import Any

import pydantic


class Reply(pydantic.BaseModel):
    """Small, so that a model of random weights ends it."""

    sure: bool


def read_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, which ends with [DONE]."""
    *lines, done, end = text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(line.removeprefix("data: ")) for line in lines]
