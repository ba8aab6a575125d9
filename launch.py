#!/usr/bin/env python
"""KServe's command line for this bundle: `python launch.py --model_name=... --model_id=... [--http_port=8080]`.

It becomes `bentoml serve` of the folder, or of the Bento, that this file is in. The arguments go by the environment,
which a built Bento heeds too, and which others cannot see.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runners.core.argument_sources import HANDED_OVER, read_launch_arguments
from runners.core.arguments import LaunchArguments
from runners.core.command_line import create_parser, parse_command_line
from runners.core.errors import ArgumentsError
from runners.hosting.ports import check_port

_HERE = Path(__file__).resolve().parent
_USAGE = """\
python launch.py [--argument=value | --argument value | --flag] ...

  python launch.py --model_dir=/mnt/models --model_name=ner --return_probabilities
  python launch.py --model_id=HuggingFaceTB/SmolLM2-135M-Instruct --max_model_len=2048 -tp 2

- and _ are the same in names. All but the first group can also be set in the environment, as RUNTIME_MODEL_ID=... or,
as a whole command line, in RUNTIME_ARGS; the command line wins over RUNTIME_MODEL_ID, that over RUNTIME_ARGS."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What a command line stands for.

    Attributes:
        server: where to listen.
        command: the `bentoml serve` command.
        environment: what that command's environment has on top.
    """

    server: LaunchArguments
    command: tuple[str, ...]
    environment: dict[str, str]


def plan_launch(words: Sequence[str], folder: Path = _HERE) -> Launch:
    """Turn the words of KServe's command line into BentoML's.

    Args:
        folder: where the source is; in a Bento beside its bento.yaml.

    Raises:
        ArgumentsError: an argument is unknown or lacks its value, or one of the server's own is wrong.
    """
    given = parse_command_line(words)
    server = read_launch_arguments({name: given.pop(name) for name in LaunchArguments.model_fields if name in given})
    target = folder.parent if (folder.parent / "bento.yaml").is_file() else folder
    command = (
        *(sys.executable, "-m", "bentoml", "serve", str(target)),
        *(f"--port={server.http_port}", f"--host={server.host}"),
    )
    return Launch(server, command, {HANDED_OVER: json.dumps(given)})


def main() -> None:
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        parser = create_parser()
        parser.usage = _USAGE
        parser.print_help()
        return
    try:
        launch = plan_launch(words)
        check_port(launch.server.http_port, "http_port", launch.server.host)
    except ArgumentsError as error:
        raise SystemExit(f"error: {error}") from None
    os.execve(launch.command[0], launch.command, os.environ | launch.environment)


if __name__ == "__main__":
    main()
