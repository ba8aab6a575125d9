#!/usr/bin/env python
"""KServe's command line for this server: `huggingface-runtime --model_name=... --model_id=... [--http_port=8080]`.

It runs `bentoml serve` of the Bento, the source folder or the installed package that contains this file. It passes the
arguments in the environment, which a built Bento reads too and other users cannot see.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if os.getpid() == 1:
    # The kernel drops signals to the first process of a container that have no handler: they wait until there is one.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))

from runners.core.argument_groups import LaunchArguments
from runners.core.argument_sources import LAUNCH_VARIABLE, read_launch_arguments
from runners.core.command_line import create_parser, parse_command_line
from runners.core.errors import ArgumentsError
from runners.core.version import VERSION
from runners.hosting.ports import check_port
from runners.hosting.working_folder import LAUNCH_FOLDER

_HERE = Path(__file__).resolve().parent
_SERVICE = "service:Runtime"
_USAGE = """\
python launch.py [--argument=value | --argument value | --flag] ...

  python launch.py --model_dir=/mnt/models --model_name=ner --return_probabilities
  python launch.py --model_id=HuggingFaceTB/SmolLM2-135M-Instruct --max_model_len=2048 -tp 2

An installed package has the command huggingface-runtime instead of python launch.py. --version prints the version.
- and _ are the same in names. All but the first group can also be set in the environment, as RUNTIME_MODEL_ID=... or,
as a whole command line, in RUNTIME_ARGS. The command line wins over RUNTIME_MODEL_ID, which wins over RUNTIME_ARGS."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A parsed command line.

    Attributes:
        server: the address to listen on.
        command: the `bentoml serve` command.
        environment: variables that the command needs in addition to those of this process.
    """

    server: LaunchArguments
    command: tuple[str, ...]
    environment: dict[str, str]


def plan_launch(words: Sequence[str], folder: Path = _HERE) -> Launch:
    """Translate KServe's command line to BentoML's.

    Args:
        words: the words after the program's name.
        folder: the folder of service.py: a source folder, `src` of a Bento, or that of installed packages.

    Raises:
        ArgumentsError: an argument is unknown or has no value, or the address is wrong.
    """
    arguments = parse_command_line(words)
    server = read_launch_arguments(
        {name: arguments.pop(name) for name in LaunchArguments.model_fields if name in arguments}
    )
    environment = {LAUNCH_VARIABLE: json.dumps(arguments)}
    if (folder.parent / "bento.yaml").is_file():
        target = [str(folder.parent)]
    elif (folder / "bentofile.yaml").is_file():
        target = [str(folder)]
    else:
        # BentoML imports from the working folder, which must not be the user's: that may have a service.py of its own.
        target = [_SERVICE, f"--working-dir={folder}"]
        environment[LAUNCH_FOLDER] = str(Path.cwd())
    address = (f"--port={server.http_port}", f"--host={server.host}")
    return Launch(server, (sys.executable, "-m", "bentoml", "serve", *target, *address), environment)


def main() -> None:
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        parser = create_parser()
        parser.usage = _USAGE
        parser.print_help()
        return
    if "--version" in words:
        sys.stdout.write(f"huggingface-runtime {VERSION}\n")
        return
    try:
        launch = plan_launch(words)
        check_port(launch.server.http_port, "http_port", launch.server.host)
    except ArgumentsError as error:
        raise SystemExit(f"error: {error}") from None
    os.execve(launch.command[0], launch.command, os.environ | launch.environment)


if __name__ == "__main__":
    main()
