from __future__ import annotations

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from protocol.http import json_structure
from protocol.http.json_structure import check_json_amounts, decode_in_pieces, find_structure
from runners.core.errors import LimitExceededError
from runners.core.request_limits import RequestLimits

LIMITS = RequestLimits()
TEXT = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(['"', "\\", '\\"', "[,]", "{:}", "\\u00e9"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXT, inner, max_size=6),
    max_leaves=30,
)
MANY = b" \t\r\n" * 50
# What no encoder writes.
WRONG = [
    b"", b" ", b"[", b"]", b"[1,]", b"[,1]", b"[1,,2]", b'{"a":1,}', b'{"a"}', b"{1:2}", b"[1}", b"[1][2]", b"[1]x", b'["a',
    b'"\\ud800"', b'"\\udc00x"', b'["\xff"]', b"NaN", b"[-Infinity]", b"[1e999]", b"9" * 5000, b"\xef\xbb\xbf1", b'"\\"', b'["\\',
    b"/**/1", b"01", b"[[[]", b'{"a":[1,2,{"b":}]}', b"{,}", b"[ , ]",
]  # fmt: skip
# White space around and in a text, longer than a piece.
WHITE = [
    MANY, MANY + b'[1,"a"]' + MANY, MANY + b'"a"' + MANY, b"[" + MANY + b"]", b"{" + MANY + b"}" + MANY, MANY + b"1 2",
    MANY + b"[1]" + MANY + b"x" + MANY, b"x" + MANY + b"[1]", b"[" + MANY + b"1" + MANY + b"," + MANY + b"{}" + MANY + b"]",
]  # fmt: skip


def decode(body: bytes) -> Any:
    """What msgspec makes of it at once, or that it refuses it."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "refused"


def decode_split(body: bytes) -> Any:
    try:
        return decode_in_pieces(body, LIMITS)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "refused"


@pytest.fixture(params=[1, 2, 7, 64], autouse=True)
def _pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_structure, "_PIECE", request.param)


@given(VALUES, st.sampled_from([b"", b" ", b"\n  "]))
def test_pieces_make_what_one_call_makes(value: Any, blank: bytes) -> None:
    # orjson writes no integers of more than 64 bits.
    body = blank + msgspec.json.format(msgspec.json.encode(value), indent=len(blank) - 1) + blank
    assert decode_split(body) == decode(body)


@given(VALUES, st.integers(0, 10**6), st.binary(max_size=2))
@example([[]], 1, b",")
def test_pieces_refuse_what_one_call_refuses(value: Any, place: int, change: bytes) -> None:
    body = msgspec.json.encode(value)
    place %= len(body) + 1
    changed = body[:place] + change + body[place + 1 :]
    assert decode_split(changed) == decode(changed)


@pytest.mark.parametrize(
    "body",
    [
        *WRONG,
        *WHITE,
        b"[   ]",
        b'{"a":1,"a":[1]}',
        b'{ "a" : [ 1 , 2 ] , "b" : { } }',
        b'"\\\\"',
        b'"\\\\\\""',
        b'["\\"]"]',
    ],
)
def test_what_no_encoder_writes(body: bytes) -> None:
    assert decode_split(body) == decode(body)


@given(VALUES)
def test_structure_counts_what_is_outside_of_strings(value: Any) -> None:
    structure = find_structure(msgspec.json.encode(value), LIMITS)
    characters = bytes(structure.characters)
    assert characters.count(b":") == count_members(value)
    assert characters.count(b"[") + characters.count(b"{") == count_containers(value)
    assert not len(characters) or structure.depths[-1] == 0


def count_members(value: Any) -> int:
    match value:
        case dict():
            return len(value) + sum(map(count_members, value.values()))
        case list():
            return sum(map(count_members, value))
    return 0


def count_containers(value: Any) -> int:
    match value:
        case dict():
            return 1 + sum(map(count_containers, value.values()))
        case list():
            return 1 + sum(map(count_containers, value))
    return 0


@pytest.mark.parametrize(
    ("limit", "allowed", "exceeding", "said"),
    [
        ({"max_json_values": 10}, [0] * 8, [0] * 10, "11 JSON values are more than the 10 that --max_json_values allows"),
        ({"max_json_values": 10}, [",,,,,,,,,,,,"], [""] * 10, "--max_json_values"),
        ({"max_json_containers": 8}, [[]] * 7, [[]] * 8, "9 lists, objects and members are more than the 8 that --max_json_containers"),
        ({"max_json_containers": 8}, {str(i): 0 for i in range(7)}, {str(i): 0 for i in range(8)}, "--max_json_containers"),
        ({"max_json_depth": 8}, [[["[[[[[[[[[["]]], orjson.loads(b"[" * 9 + b"]" * 9), "9 levels of nesting are more than the 8 that --max_json_depth"),
        ({"max_json_depth": 8}, [{"text": "a"}] * 20, orjson.loads(b'{"a":' * 9 + b"1" + b"}" * 9), "--max_json_depth"),
    ],
)  # fmt: skip
def test_limits(limit: dict[str, int], allowed: Any, exceeding: Any, said: str) -> None:
    limits = RequestLimits(**limit)
    check_json_amounts(orjson.dumps(allowed), limits)
    with pytest.raises(LimitExceededError, match=said):
        check_json_amounts(orjson.dumps(exceeding), limits)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b'{"a": "' + b"\\n" * 2**20 + b'"}', LimitExceededError, "2097152 bytes of a text are more than the 100 that"),
        (b'{"a": ' + b"1" * 2**21 + b"}", msgspec.DecodeError, "a number or a word is too long"),
        (b" " * 2**21 + b"1" * (2**20 + 1), msgspec.DecodeError, "a number or a word is too long"),
    ],
    ids=["text", "number of a member", "number alone"],
)  # fmt: skip
def test_a_scalar_that_is_too_long_is_not_decoded(
    body: bytes, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of a byte or two these bodies have millions.
    monkeypatch.setattr(json_structure, "_PIECE", 2**20)
    with pytest.raises(error, match=message):
        decode_in_pieces(body, RequestLimits(max_text_characters=100))
