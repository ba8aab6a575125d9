"""Arguments of vLLM's engine: kept as text, which vLLM's own parser validates once vLLM runs."""

from __future__ import annotations

import contextlib
import json
import shlex
from dataclasses import dataclass

from runners.core.errors import ArgumentsError


@dataclass(frozen=True, slots=True)
class EngineArgument:
    """One argument for vLLM.

    Attributes:
        value: the text as the operator wrote it; several words are quoted as in a shell, and a flag is `true` or
            `false`.
        origin: the source of the argument, for messages: "the command line", the name of a variable or "the Bento".
    """

    value: str
    origin: str

    def parse_size(self, name: str) -> int:
        """Parse one of vLLM's parallel sizes.

        Raises:
            ArgumentsError: the value is not a positive integer.
        """
        if not self.value.isdecimal() or int(self.value) < 1:
            raise ArgumentsError(f"argument {name} (from {self.origin}) is {self.value!r}: it must be 1 or more")
        return int(self.value)


def split_words(value: str) -> list[str]:
    """The words of a list: `a b`, quoted as in a shell, or a JSON list; a JSON object is one word."""
    if value.startswith("{"):
        return [value]
    if value.startswith("["):
        with contextlib.suppress(ValueError):
            return [item if isinstance(item, str) else json.dumps(item) for item in json.loads(value)]
    return shlex.split(value)
