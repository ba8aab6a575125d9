"""The types of the answers of BentoML's methods."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


class ClassScore(BaseModel):
    """A class and its score."""

    label: str
    score: float


class Entity(BaseModel):
    """A token, word or entity of a text; `start` and `end` are its characters in the text."""

    label: str
    score: float
    text: str
    start: int
    end: int


class MaskToken(BaseModel):
    """A token that fills a mask, and the text with it."""

    score: float
    token: int
    token_str: str
    sequence: str


class Answer(BaseModel):
    """A part of the context that answers the question; `start` and `end` are its characters in the context."""

    answer: str
    score: float
    start: int
    end: int


class RankedText(BaseModel):
    """A text by its position in the request, and its score."""

    index: int
    score: float


class SparseValue(BaseModel):
    """A value of a sparse vector that is not 0; `index` is a token id."""

    index: int
    value: float


class _VectorSchema:
    """BentoML's schema of an array, from which its clients make one of numpy; an import of this module imports none."""

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(_to_array, handler(Any))

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "tensor", "format": "numpy-array", "dtype": "float32"}


def _to_array(value: Any) -> Any:
    import numpy as np

    return np.asarray(value, dtype=np.float32)


# float32 [texts, dimensions]
Vectors = Annotated[Any, _VectorSchema()]
