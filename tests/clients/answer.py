"""What the clients of OpenAI's API ask for, bounded so that a model of 135 million parameters gives it too."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

QUESTION = "What is the capital of France?"


class City(BaseModel):
    """A city."""

    name: str = Field(max_length=12)
    country: Literal["France", "Italy"]
    million: int = Field(ge=0, le=40)
