"""Paths behind a proxy, which workers and their parent process must read alike."""

from __future__ import annotations


def strip_prefix(path: str, root_path: str) -> str:
    """The path without the prefix of --root_path, if a proxy has left it there, and without one slash at its end.

    Args:
        root_path: such as /models/ner; empty for none.
    """
    if root_path and (path == root_path or path.startswith(f"{root_path}/")):
        path = path[len(root_path) :] or "/"
    return path[:-1] if path[-1:] == "/" and len(path) > 1 else path
