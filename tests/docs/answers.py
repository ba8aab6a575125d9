"""Compares an answer with what a page says."""

from __future__ import annotations

from typing import Any

import pytest


def assert_alike(found: Any, expected: Any) -> None:
    """Equal but for the last digits of floats, which are the machine's, and what a page leaves out of long lists.

    `"..."` stands for any value, such as an id; a list may end with `"... 384 numbers"`, and an object with
    `"...": "and more"` where engines add fields of their own.
    """
    match expected:
        case "...":
            pass
        case {"...": "and more", **some}:
            assert_alike({key: found[key] for key in some}, some)
        case dict():
            assert list(found) == list(expected)
            for key, value in expected.items():
                assert_alike(found[key], value)
        case [*beginning, str(rest)] if rest.startswith("... "):
            assert len(found) == int(rest.split()[1])
            assert_alike(found[: len(beginning)], beginning)
        case list():
            assert len(found) == len(expected)
            for one, wanted in zip(found, expected, strict=True):
                assert_alike(one, wanted)
        case float():
            assert found == pytest.approx(expected, abs=0.02 if 0 <= expected == round(expected, 4) else 1e-5)
        case _:
            assert found == expected
