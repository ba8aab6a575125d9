"""JSON in pieces is the JSON of one call, and no piece is of many values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.http.json_pieces import dump_json, encode_pieces

MANY = 100_000
PAYLOADS: dict[str, Any] = {
    "no items": [],
    "numbers": list(range(MANY)),
    "texts": ["a"] * MANY,
    "long texts": ['a"' * 2**19] * 8,
    "records": [{"label": "a", "score": 0.5}] * MANY,
    "records of a few texts": [[{"label": "a", "score": 0.5}] * 3_000] * 3,
    "rows of very different length": [[1], [1] * MANY, [], [2]],
    "an object of many": {str(index): index for index in range(MANY)},
    "an array": np.arange(MANY, dtype=np.float32),
    "rows": np.ones((40, MANY // 40)),
    "large rows": np.ones((2, MANY)),
    "columns of one": np.ones((MANY, 1, 1), dtype=np.int64),
    "every second number": {"vector": np.arange(2 * MANY)[::2]},
    "no rows": np.ones((0, 3)),
    "empty rows": np.ones((3, 0)),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_pieces_are_the_whole(name: str) -> None:
    pieces = list(encode_pieces(PAYLOADS[name]))
    plain = PAYLOADS[name]
    assert orjson.loads(b"".join(pieces)) == orjson.loads(orjson.dumps(_plain(plain)))
    longest = max(map(len, pieces))
    # A long text is one piece.
    assert longest <= 2**20 or name == "long texts"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return {key: _plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def test_iterators_are_lists_of_which_little_exists_at_a_time() -> None:
    made = 0

    def rows() -> Iterator[Iterator[int]]:
        nonlocal made
        for _ in range(4):
            made += 1
            yield iter(range(20_000))

    pieces = encode_pieces({"rows": rows(), "none": iter(())})
    # The braces, the name, the list's and the row's brackets come before the first numbers.
    while b"0,1,2" not in next(pieces):
        pass
    assert made == 1
    assert sum(piece.count(b"19999") for piece in pieces) == 4
    assert dump_json({"rows": iter([iter([1]), 2])}) == b'{"rows":[[1],2]}'


SCALARS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20)


@given(st.recursive(SCALARS, lambda some: st.lists(some) | st.dictionaries(st.text(max_size=5), some), max_leaves=50))
def test_anything(payload: Any) -> None:
    assert b"".join(encode_pieces(iter([payload, payload]))) == orjson.dumps([payload, payload])
