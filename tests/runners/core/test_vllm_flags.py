"""The names of vLLM's arguments that this server has without vLLM are those of vLLM's own parser."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from typing import Any

from runners.core import vllm_flags as flags
from runners.generator.vllm.installation import name_distribution
from tests.servers import ROOT


def flags_source() -> str:
    """runners/core/vllm_flags.py, as vLLM's own parser has it."""
    name_distribution()
    from vllm import __version__
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser: Any = make_arg_parser(FlexibleArgumentParser())
    options: set[str] = set()
    short: set[str] = set()
    for action in parser._actions:
        for option in action.option_strings:
            (options if option.startswith("--") else short).add(option.lstrip("-").replace("-", "_"))
    switches = {name for name in options if f"no_{name}" in options}
    options -= switches | {f"no_{name}" for name in switches} | {"help"}
    release = ".".join(re.findall(r"\d+", __version__)[:2])
    return "\n".join(
        [
            f'"""The names of vLLM {release}\'s arguments, without the seconds that it takes to import vLLM."""',
            "",
            "from __future__ import annotations",
            "",
            *_constant("Written after one dash.", "SHORT", short - {"h"}),
            *_constant("Each has an opposite, no_....", "SWITCHES", switches),
            *_constant("All others.", "OPTIONS", options),
        ]
    )


def _constant(comment: str, name: str, values: Iterable[str]) -> list[str]:
    lines = textwrap.wrap(" ".join(sorted(values)), 118)
    return [f"# {comment}", f'_{name} = """', *lines, '"""', f"{name} = frozenset(_{name}.split())"]


def test_the_names_are_those_of_vllm() -> None:
    written = (ROOT / "runners" / "core" / "vllm_flags.py").read_text()
    assert written.rstrip("\n") == flags_source(), f"it should be:\n{flags_source()}"
    assert "tensor_parallel_size" in flags.OPTIONS
