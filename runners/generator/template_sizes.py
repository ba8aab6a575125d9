"""Limits the size of what one template operation creates, since a running operation cannot be interrupted.

The size of a text or list is estimated before an operator, filter or method makes it. The sizes of a rendering are
added up, because a loop of operations could fill the memory.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import SandboxedEnvironment

from runners.core.errors import InputError

# Largest sizes in characters: of the result of a repetition, of any other operation, and of all of a rendering.
_MAX_REPEATED = 2**20
_MAX_MADE = 2**22
_MAX_TOTAL = 2**26
_MAX_BITS = 4096
# An item of a list takes the memory of this many characters.
_ITEM = 8
_PERCENT = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\d*)\.?(\d*)")
_BRACES = re.compile(r"\{[^{}:]*:[^}]*")
_DIGITS = re.compile(r"\d+")
_MAX_DIGITS = 9
# Filters whose results are small or lazy.
_SMALL_FILTERS = frozenset({
    "abs", "attr", "count", "d", "default", "first", "float", "int", "items", "last", "length", "map", "max", "min",
    "random", "reject", "rejectattr", "reverse", "select", "selectattr", "unique",
})  # fmt: skip
_LIST_FILTERS = frozenset({"dictsort", "groupby", "list", "sort"})
_SMALL_METHODS = ("count", "ends", "find", "index", "is", "rfind", "rindex", "starts")
# Methods and filters that insert their arguments at several places of a text; the function counts these places.
_AT_EACH_PLACE: Mapping[str, Callable[[str], int]] = {
    "expandtabs": lambda text: text.count("\t"),
    "indent": lambda text: len(text.splitlines()) + 1,
    "tojson": len,
    "translate": len,
    "urlize": len,
    "wordwrap": len,
}


class _Made(threading.local):
    """The size of all texts and lists that the template in this thread has made."""

    size = 0


_made = _Made()


def start_counting() -> None:
    """Begin to count the sizes of a rendering in this thread."""
    _made.size = 0


def bound_sizes(environment: SandboxedEnvironment) -> None:
    """Limit the sizes of texts and lists that the templates of an environment make.

    An operation beyond the limits raises an InputError.
    """
    environment.intercepted_binops = frozenset(("*", "**", "+", "%"))
    environment.binop_table.update({"*": _multiply, "**": _raise_to_power, "+": _add, "%": _take_modulo})
    environment.filters.update({name: _bound_filter(name, made) for name, made in environment.filters.items()})
    environment.code_generator_class = _BoundedGenerator
    environment.extend(join_bounded=_join, count_slice=_count_slice)
    environment.call = _bound_calls(environment.call)  # type: ignore[method-assign]
    environment.concat = _join  # type: ignore[method-assign]
    environment.finalize = _check_printed


class _BoundedGenerator(CodeGenerator):
    """Compiles `~` and slices to calls, since the sandbox does not intercept these."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.join_bounded((")
        for each in node.nodes:
            self.visit(each, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Frame) -> None:  # noqa: N802
        is_slice = isinstance(node.arg, nodes.Slice)
        self.write("environment.count_slice(" if is_slice else "")
        super().visit_Getitem(node, frame)
        self.write(")" if is_slice else "")


def _multiply(left: Any, right: Any) -> Any:
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | bytes | list | tuple) and isinstance(times, int):
            _count(_length(sequence) * max(0, times), _MAX_REPEATED)
    if isinstance(left, int) and isinstance(right, int):
        _check(left.bit_length() + right.bit_length(), _MAX_BITS)
    return left * right


def _raise_to_power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check(left.bit_length() * right, _MAX_BITS)
    return left**right


def _add(left: Any, right: Any) -> Any:
    _count(_length(left) + _length(right))
    return left + right


def _take_modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str | bytes):
        values = right.values() if isinstance(right, Mapping) else right if isinstance(right, tuple) else (right,)
        _count(_estimate_format(left, list(values)))
    return left % right


def _join(parts: Iterable[Any]) -> str:
    parts = list(parts)
    _count(sum(map(_weigh, parts)))
    return "".join(map(str, parts))


def _count_slice(made: Any) -> Any:
    _count(_length(made))
    return made


def _check_printed(value: Any) -> Any:
    if not isinstance(value, str):
        _count(_weigh(value))
    return value


def _bound_filter(name: str, made: Callable[..., Any]) -> Callable[..., Any]:
    if name in _SMALL_FILTERS:
        return made
    # Some filters take the context as their first argument.
    first = 0 if getattr(made, "jinja_pass_arg", None) is None else 1

    @wraps(made)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        before, subject, values = args[:first], args[first], args[first + 1 :]
        if name == "join" and not isinstance(subject, Sequence):
            subject = list(subject)
        _count(_estimate_filter(name, subject, values, kwargs))
        return made(*before, subject, *values, **kwargs)

    return bounded


def _bound_calls(call: Callable[..., Any]) -> Callable[..., Any]:
    def bounded(context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        # The sandbox wraps `str.format`.
        method = getattr(called, "__wrapped__", called)
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(called, type):
            _count(sum(map(_length, args)))
        elif isinstance(subject, str | bytes) and not name.startswith(_SMALL_METHODS):
            _count(_estimate(name, subject, args, kwargs))
        elif isinstance(subject, int):
            _check(_add_numbers([*args, *kwargs.values()]), _MAX_BITS)
        elif name == "copy":
            _count(_length(subject))
        return call(context, called, *args, **kwargs)

    return bounded


def _estimate_filter(name: str, subject: Any, values: Sequence[Any], named: Mapping[str, Any]) -> int:
    arguments = [*values, *named.values()]
    if name in _LIST_FILTERS:
        return _length(subject)
    if name == "sum" and any(isinstance(value, list | tuple) for value in arguments):
        # Each list is copied once for each list after it, which cannot be interrupted.
        raise InputError("the chat template adds up lists")
    if name == "round":
        _check(_add_numbers(arguments), _MAX_BITS)
    if name == "join":
        return _estimate_join(values[0] if values else named.get("d", ""), subject)
    return _estimate(name, subject, values, named)


def _estimate(name: str, subject: Any, values: Sequence[Any], named: Mapping[str, Any]) -> int:
    """An upper bound of the characters that a method of a text, or a filter, makes."""
    arguments = [*values, *named.values()]
    if name == "replace":
        texts = dict(zip(("old", "new"), values, strict=False)) | dict(named)
        old, new = (str(texts.get(each, "")) for each in ("old", "new"))
        return _weigh(subject) + _text(subject).count(old) * len(new)
    if name == "join":
        return _estimate_join(subject, arguments[0] if arguments else ())
    if name in ("format", "format_map"):
        return _estimate_format(subject, arguments)
    size, more = _weigh(subject), _add_numbers(arguments) + sum(map(_weigh, arguments))
    places = _AT_EACH_PLACE.get(name)
    if places is None:
        return size + more
    if name == "wordwrap":
        more = sum(len(argument) for argument in arguments if isinstance(argument, str))
    return size + more * (places(_text(subject)) if isinstance(subject, str | bytes) else size)


def _estimate_join(separator: Any, items: Any) -> int:
    count = len(items) if isinstance(items, Sequence) else 0
    return _weigh(items) + count * _weigh(separator)


def _estimate_format(template: str | bytes, values: Sequence[Any]) -> int:
    text = _text(template)
    widths = [digits for found in _PERCENT.findall(text) for digits in found if digits]
    widths += [digits for part in _BRACES.findall(text) for digits in _DIGITS.findall(part.partition(":")[2])]
    places = text.count("%") + text.count("{")
    longest = max(map(_weigh, values), default=0) + (_add_numbers(values) if "*" in text or "{" in text else 0)
    return len(text) + places * longest + sum(int(digits[:_MAX_DIGITS]) for digits in widths)


def _text(subject: Any) -> str:
    return subject if isinstance(subject, str) else subject.decode("latin-1") if isinstance(subject, bytes) else ""


def _add_numbers(values: Iterable[Any]) -> int:
    return sum(abs(value) for value in values if isinstance(value, int) and not isinstance(value, bool))


def _length(value: Any) -> int:
    """The size of a text or list, without the contents of its items."""
    if isinstance(value, str | bytes):
        return len(value)
    return _ITEM * len(value) if isinstance(value, list | tuple | dict | range) else 0


def _weigh(value: Any) -> int:
    """About the number of characters of a printed value; the count ends beyond the limit of one operation."""
    if isinstance(value, str | bytes):
        return len(value)
    size, remaining = 0, [value]
    while remaining and size <= _MAX_MADE:
        item = remaining.pop()
        size += len(item) if isinstance(item, str | bytes | list | tuple | dict) else 1
        if isinstance(item, dict):
            remaining += item.keys()
            remaining += item.values()
        elif isinstance(item, list | tuple):
            remaining += item
    return size


def _count(size: int, most: int = _MAX_MADE) -> None:
    _check(size, most)
    _made.size += size
    if _made.size > _MAX_TOTAL:
        raise InputError(f"the chat template makes texts and lists of more than {_MAX_TOTAL} characters together")


def _check(size: int, most: int) -> None:
    if size > most:
        raise InputError(f"the chat template makes something of size {size} by one operation; {most} is the most")
