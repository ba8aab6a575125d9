"""A limit on the bytes of request bodies that all connections hold together."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import msgspec
import numpy as np
from starlette.types import Scope

from protocol.http.errors import BodiesTooLargeError

# The bytes of each body that are not counted, so that small requests pass while large bodies use up the budget.
FREE_BYTES = 16 * 2**10
_KEY = "runtime.body_share"
# The bytes of a reference in a list, a tuple or a dictionary.
_PLACE_BYTES = 8


class BodyBudget:
    """Counts the bytes of each body as they arrive, and then those of its decoded value, until the request ends.

    A request whose body does not fit gets a 503 when it reads the body.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.left = most
        # Bodies are decompressed in a thread.
        self._lock = threading.Lock()

    def open_share(self, scope: Scope) -> BodyShare:
        """The share of a request that begins, which must give it back."""
        share = scope[_KEY] = BodyShare(self)
        return share

    def hold(self, count: int) -> None:
        """Take bytes out of the budget.

        Raises:
            BodiesTooLargeError: it has too few bytes left.
        """
        with self._lock:
            self.check(count)
            self.left -= count

    def check(self, count: int) -> None:
        """Check whether the budget has these bytes left.

        Raises:
            BodiesTooLargeError: it has too few.
        """
        if count > self.left:
            raise BodiesTooLargeError(self.most)

    def release(self, count: int) -> None:
        """Return bytes to the budget."""
        with self._lock:
            self.left += count


class BodyShare:
    """The part of the budget that one request holds."""

    __slots__ = ("_budget", "_free", "_taken")

    def __init__(self, budget: BodyBudget) -> None:
        self._budget = budget
        self._free = FREE_BYTES
        self._taken = 0

    def take(self, count: int) -> None:
        """Hold more bytes.

        Raises:
            BodiesTooLargeError: the budget has too few bytes left.
        """
        if count <= self._free:
            self._free -= count
            return
        count -= self._free
        self._free = 0
        self._budget.hold(count)
        self._taken += count

    def check(self, count: int) -> None:
        """Check whether more bytes can be held now.

        Raises:
            BodiesTooLargeError: the budget has too few bytes left.
        """
        self._budget.check(count - self._free)

    @property
    def taken(self) -> int:
        """The held bytes that are counted."""
        return self._taken

    def give_back(self, kept: int = 0) -> None:
        """Return the held bytes to the budget, except `kept` bytes."""
        if self._taken > kept:
            self._budget.release(self._taken - kept)
            self._taken = kept


def has_free_body(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request has no body, or one that is free and stays so, because it is not compressed."""
    return (
        int(headers.get(b"content-length", 0)) <= FREE_BYTES
        and b"transfer-encoding" not in headers
        and b"content-encoding" not in headers
    )


def get_share(scope: Scope) -> BodyShare | None:
    """The share of a request; None if its body is not counted."""
    share: BodyShare | None = scope.get(_KEY)
    return share


def count_kept(value: object) -> int:
    """About how many bytes a decoded body holds in its texts, bytes and arrays, and in the references to them."""
    count = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (str, bytes)):
            count += len(item)
        elif isinstance(item, np.ndarray):
            count += item.nbytes
        elif isinstance(item, (list, tuple)):
            count += _PLACE_BYTES * len(item)
            waiting += item
        elif isinstance(item, Mapping):
            count += _PLACE_BYTES * len(item)
            waiting += item
            waiting += item.values()
        elif isinstance(item, msgspec.Struct):
            waiting += [getattr(item, name) for name in item.__struct_fields__]
        elif fields := getattr(type(item), "__dataclass_fields__", None):
            waiting += [getattr(item, name) for name in fields]
    return count
