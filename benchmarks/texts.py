"""Real English without a download: the standard library's docstrings."""

from __future__ import annotations

import functools
import importlib
import inspect
import random
from collections.abc import Callable

_MODULES = (
    "argparse", "ast", "asyncio", "bisect", "calendar", "codecs", "collections", "configparser", "contextlib", "csv",
    "datetime", "decimal", "difflib", "email.message", "enum", "fractions", "functools", "gettext", "heapq",
    "http.client", "inspect", "io", "ipaddress", "itertools", "json", "locale", "logging", "mailbox", "os", "pathlib",
    "pickle", "random", "re", "shutil", "socket", "statistics", "string", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "traceback", "types", "typing", "unittest", "urllib.request", "uuid", "zipfile",
)  # fmt: skip


@functools.cache
def docstrings() -> tuple[str, ...]:
    """Paragraphs of the docstrings of modules, classes, functions and methods, in a fixed order, each once."""
    texts: dict[str, None] = {}
    for name in _MODULES:
        for documented in _members(importlib.import_module(name)):
            for paragraph in (inspect.getdoc(documented) or "").split("\n\n"):
                if len(paragraph) > 20:
                    texts[" ".join(paragraph.split())] = None
    return tuple(texts)


def _members(module: object) -> list[object]:
    found = [module]
    for _, member in inspect.getmembers(module, callable):
        found.append(member)
        if inspect.isclass(member):
            found += [method for _, method in inspect.getmembers(member, inspect.isfunction)]
    return found


def sample_texts(count: int, count_tokens: Callable[[str], int], seed: int = 0) -> list[str]:
    """`count` texts of 8 to 256 tokens, about 40 on average: paragraphs, some of them joined to longer ones."""
    source = random.Random(seed)
    paragraphs = list(docstrings())
    source.shuffle(paragraphs)
    texts: list[str] = []
    while len(texts) < count:
        # One text in twelve is several paragraphs long, as real traffic has its long tail.
        text = " ".join(source.choices(paragraphs, k=source.randint(3, 6) if source.random() < 1 / 12 else 1))
        if 8 <= count_tokens(text) <= 256:
            texts.append(text)
    return texts
