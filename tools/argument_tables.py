"""Writes the tables of arguments in README.md and docs/limits.md: `python -m tools.argument_tables`."""

from __future__ import annotations

import re
from pathlib import Path

from runners.core.arguments import GROUPS, LimitArguments

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
LIMITS = ROOT / "docs" / "limits.md"
_HEADER = ["| argument | default | |", "|---|---|---|"]
_README_TABLE = re.compile(rf"{re.escape(_HEADER[0])}\n(\|.*\n)+")


def describe_arguments() -> str:
    """The table of all arguments but the limits, in groups; every line ends with a newline."""
    rows = list(_HEADER)
    for group in GROUPS:
        if group is LimitArguments:
            continue
        rows.append(f"| **{group.title}** | | |")
        for name, field in group.model_fields.items():
            default = "" if field.default is None or field.default is False else f"`{field.default}`"
            rows.append(f"| `{name}` | {default} | {field.description} |")
    return "".join(f"{row}\n" for row in rows)


def describe_limits(page: str) -> str:
    """The page of limits, whose last column is kept, with the current defaults and descriptions."""
    for name, field in LimitArguments.model_fields.items():
        row = f"| `{name}` | `{field.default}` | {field.description} |"
        page = re.sub(rf"^\| `{name}` \| [^|]* \| [^|]* \|", row.replace("\\", r"\\"), page, flags=re.MULTILINE)
    return page


def main() -> None:
    table = describe_arguments()
    README.write_text(_README_TABLE.sub(lambda _: table, README.read_text()))
    LIMITS.write_text(describe_limits(LIMITS.read_text()))


if __name__ == "__main__":
    main()
