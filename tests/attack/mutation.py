"""Requests that are wrong in some way, made of right ones by a random generator that a seed or hypothesis drives."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any


def _nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


# What parsers, tokenizers and models stumble over.
STRANGE: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2, 511, 513, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 2**64,
    10**30, 10**400, -(10**400), 0.5, -0.0, 1e-320, 1e38, 1e308, math.nan, math.inf, -math.inf,
    "", " ", "\0", "\ud800", "a\udfff", "\u202e", "a" * 5000, "漢" * 700, "\u0301" * 300, "[MASK]" * 5, "<mask>", "[CLS][SEP]",
    "</s><s>", "{}", "{0}", "%s", "{{ x }}", "null", "NaN", "1", "-1", "true", "\U0001f469\u200d\U0001f467", "\n" * 50,
    [], {}, [[]], [{}], [None], [""], {"": None}, {"a": {"a": []}}, [1, "a", None], [True], [[1], ["a"]], ["a", ["b"]],
    _nested(70), _nested(300), list(range(300)), ["a"] * 300, {str(key): key for key in range(300)},
)  # fmt: skip
_MOST_REPEATED = 40


def mutate(random: Random, body: Any, options: Sequence[tuple[str, Any]]) -> Any:
    """A copy of a JSON value with one to four changes.

    Args:
        options: names and right values of what may be given, which are added to objects.
    """
    root = [copy.deepcopy(body)]
    for _ in range(random.choice((1, 1, 1, 2, 3, 4))):
        places = _places(root)
        container, key = random.choice(places)
        if isinstance(container, list) and not key < len(container):
            continue
        random.choice(_CHANGES)(random, container, key, options)
    return root[0]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key or an index of it."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        container = waiting.pop()
        # Of a long list the first few are enough.
        keys = (
            [*container][:_MOST_REPEATED] if isinstance(container, dict) else range(min(len(container), _MOST_REPEATED))
        )
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                waiting.append(container[key])
    return found


def _replace(random: Random, container: Any, key: Any, _: Sequence[tuple[str, Any]]) -> None:
    container[key] = copy.deepcopy(random.choice(STRANGE))


def _delete(_: Random, container: Any, key: Any, __: Sequence[tuple[str, Any]]) -> None:
    if isinstance(container, dict) or len(container) > 1:
        del container[key]


def _wrap(random: Random, container: Any, key: Any, _: Sequence[tuple[str, Any]]) -> None:
    container[key] = random.choice(([container[key]], {"a": container[key]}, [container[key]] * 2, str(container[key])))


def _unwrap(random: Random, container: Any, key: Any, _: Sequence[tuple[str, Any]]) -> None:
    value = container[key]
    if isinstance(value, dict | list) and value:
        container[key] = random.choice([*(value.values() if isinstance(value, dict) else value)])


def _repeat(random: Random, container: Any, key: Any, _: Sequence[tuple[str, Any]]) -> None:
    if isinstance(container[key], list | str) and len(container[key]) < 1000:
        container[key] = container[key] * random.randrange(2, _MOST_REPEATED)
    elif isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] = random.choice((-1, 2, 1000, 10**10, 0)) * container[key]


def _nudge(random: Random, container: Any, key: Any, _: Sequence[tuple[str, Any]]) -> None:
    if isinstance(container[key], int | float):
        container[key] += random.choice((-1, 1))


def _add_option(random: Random, container: Any, key: Any, options: Sequence[tuple[str, Any]]) -> None:
    """To the object, or to the `parameters` that it has."""
    target = container[key] if isinstance(container[key], dict) else container
    if isinstance(target, dict) and options:
        name, value = random.choice(options)
        target[name] = copy.deepcopy(value if random.random() < 0.5 else random.choice(STRANGE))


def _add_unknown(random: Random, container: Any, _: Any, __: Sequence[tuple[str, Any]]) -> None:
    if isinstance(container, dict):
        name = random.choice(("", "unknown", "\ud800", "a" * 300, "__class__", "0"))
        container[name] = copy.deepcopy(random.choice(STRANGE))


def _rename(random: Random, container: Any, key: Any, _: Sequence[tuple[str, Any]]) -> None:
    if isinstance(container, dict):
        container[random.choice((key.upper(), key + "s", "", *container))] = container.pop(key)


_CHANGES: tuple[Callable[[Random, Any, Any, Sequence[tuple[str, Any]]], None], ...] = (
    _replace, _replace, _replace, _delete, _wrap, _unwrap, _repeat, _nudge, _add_option, _add_option, _add_unknown, _rename,
)  # fmt: skip


def to_json(body: Any) -> bytes:
    """As a careless client writes it: with NaN and halves of surrogate pairs, which are no JSON or no Unicode."""
    return json.dumps(body).encode()


def mutate_bytes(random: Random, data: bytes, changes: int = 3) -> bytes:
    """Bytes with some of them changed, taken out, put in or repeated."""
    changed = bytearray(data)
    for _ in range(random.randint(1, changes)):
        place = random.randrange(len(changed) + 1)
        end = min(len(changed), place + random.choice((1, 1, 2, 4, 16, 64)))
        match random.randrange(5):
            case 0 if place < len(changed):
                changed[place] ^= 1 << random.randrange(8)
            case 1:
                del changed[place:end]
            case 2:
                changed[place:place] = random.randbytes(random.choice((1, 2, 8)))
            case 3:
                changed[place:place] = changed[place:end] * random.choice((1, 2, 20))
            case 4:
                changed[place:end] = bytes(end - place) if random.random() < 0.5 else b"\xff" * (end - place)
    return bytes(changed)
