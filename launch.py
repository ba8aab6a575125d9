#!/usr/bin/env python
"""KServe's command line for this bundle: `python launch.py --model_name=... --model_id=... [--http_port=8080]`.

It becomes `bentoml serve` of the folder that this file is in; every other argument goes to the service.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from runners.arguments import parse_command_line
from runners.errors import ArgumentsError
from runners.startup import check_port

_HERE = Path(__file__).resolve().parent


def bentoml_command(words: list[str]) -> list[str]:
    """The `bentoml serve` command line that a KServe command line stands for.

    Raises:
        ArgumentsError: an argument is unknown or lacks its value, or the port is taken.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--http_port", "--http-port", type=int, default=8080)
    try:
        own, rest = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise ArgumentsError(f"the command line is wrong: {error}") from error
    check_port(own.http_port, "http_port")
    arguments = [f"--arg={name}={value}" for name, value in parse_command_line(rest).items()]
    return [sys.executable, "-m", "bentoml", "serve", str(_HERE), f"--port={own.http_port}", *arguments]


if __name__ == "__main__":
    try:
        command = bentoml_command(sys.argv[1:])
    except ArgumentsError as error:
        raise SystemExit(f"error: {error}") from None
    os.execv(command[0], command)
