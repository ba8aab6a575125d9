#!/usr/bin/env python
"""KServe's command line for this server: `huggingface-runtime --model_name=... --model_id=... [--http_port=8080]`.

It chooses folders that can be written, checks what can be known to be wrong in a second, and runs `bentoml serve` of
the Bento, the source folder or the installed package that contains this file. It passes the arguments in the
environment, which a built Bento reads too and other users cannot see.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from runners.hosting.life.signals import STOP_SIGNALS

if os.getpid() == 1:
    # The kernel drops signals to the first process of a container that have no handler: they wait until there is one.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

import yaml

from runners.core.argument_groups import LaunchArguments, PredictArguments
from runners.core.argument_sources import (
    LAUNCH_VARIABLE,
    read_configuration,
    read_launch_arguments,
    read_predict_arguments,
)
from runners.core.command_line import create_parser, parse_command_line, separate_words
from runners.core.declarations import Configuration
from runners.core.errors import RunnerError
from runners.core.log_lines import render_end
from runners.core.log_settings import peek_log_settings
from runners.core.version import VERSION
from runners.hosting.ports import check_port
from runners.hosting.start_checks import check_models, check_server
from runners.hosting.working_folder import LAUNCH_FOLDER
from runners.hosting.writable_folders import NoWritableFolderError, choose_folders

_HERE = Path(__file__).resolve().parent
_SERVICE = "service:Runtime"
_SERVE, _DOCTOR, _CHECK, _PREDICT = "serve", "doctor", "--check", "predict"
_MODEL_NAME = "--model_name="
_USAGE = """\
python launch.py [serve | doctor | predict] [--argument=value | --argument value | --flag] ...

  python launch.py --model_dir=/mnt/models --model_name=ner --return_probabilities
  python launch.py --model_id=HuggingFaceTB/SmolLM2-135M-Instruct --max_model_len=2048 -tp 2
  python launch.py predict --model_dir=/mnt/models "a text" "another"

An installed package has the command huggingface-runtime instead of python launch.py. --version prints the version.
doctor, or --check, starts no server: it loads the models, tries a text with each, and says what would be served where.
predict starts no server either: it answers texts of the command line, the standard input or a file, as V1's :predict
does; predict --help lists its own arguments first.
serve, which SageMaker writes, may stand before the arguments.
- and _ are the same in names. All but the first group can also be set in the environment, as RUNTIME_MODEL_ID=... or,
as a whole command line, in RUNTIME_ARGS. The command line wins over RUNTIME_MODEL_ID, which wins over RUNTIME_ARGS."""

_PREDICT_USAGE = """\
python launch.py predict [--argument=value | --argument value | --flag] ... [TEXT] ...

  python launch.py predict --model_dir=/mnt/models "a text" "another"
  python launch.py predict --model_dir=/mnt/models < texts.txt
  python launch.py predict --model_dir=/mnt/models --input=texts.csv --output=answers.parquet --text_column=review

It answers as V1's :predict does, with JSON lines on the standard output unless --output names a file. A row that cannot
be answered has an error, and the exit code is 1 then. The same command goes on where a break has ended it.
The arguments of the model are the server's. Texts that begin with - stand after --."""


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


def plan_launch(
    words: Sequence[str], folder: Path = _HERE, variables: Mapping[str, str] = MappingProxyType({})
) -> Launch:
    """Translate KServe's command line to BentoML's.

    Args:
        words: the words after the program's name; the first one may be `serve`, with which clouds start containers.
        folder: the folder of service.py: a source folder, `src` of a Bento, or that of installed packages.
        variables: those of the environment; a cloud's may name the port.

    Raises:
        ArgumentsError: an argument is unknown or has no value, or the address is wrong.
    """
    arguments = parse_command_line(words[1:] if words[:1] == [_SERVE] else words)
    launched = {name: arguments.pop(name) for name in LaunchArguments.model_fields if name in arguments}
    server = read_launch_arguments(launched, variables)
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


def read_launched(launch: Launch, localize: Callable[[str], Path | None], folder: Path = _HERE) -> Configuration:
    """What the service will read.

    Args:
        localize: returns the path of a models file or model repository; None if it is not on this machine.

    Raises:
        ArgumentsError: an argument, or a file that one names, is wrong.
    """
    environment = {**os.environ, **launch.environment}
    return read_configuration({}, environment, _read_bento_arguments(folder), localize)


def _read_bento_arguments(folder: Path) -> Mapping[str, Any]:
    """The arguments in the Bento's manifest, or in the source folder's bentofile."""
    for path in (folder.parent / "bento.yaml", folder / "bentofile.yaml"):
        if path.is_file():
            return yaml.safe_load(path.read_text(encoding="utf-8")).get("args") or {}
    return {}


def _find_declarations(location: str) -> Path | None:
    """The path of a models file or a model repository; None if it is at a URI, which BentoML's parent downloads."""
    scheme, separator, rest = location.partition("://")
    if separator and scheme != "file":
        return None
    return Path(rest if separator else location)


def _check(launch: Launch) -> None:
    """
    Raises:
        RunnerError: the server could not start, or not serve its models.
    """
    server = launch.server
    check_port(server.http_port, "http_port", server.host)
    configuration = read_launched(launch, _find_declarations)
    check_server(configuration.arguments, server.http_port)
    check_models(configuration)


def _examine(words: Sequence[str]) -> int:
    """Report what a server with these arguments would serve; returns the exit code."""
    from doctor import examine

    # Nothing else handles them where this is the first process of a container.
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    launch = plan_launch(words, variables=os.environ)
    _enter_bento()
    return examine(launch.server, partial(read_launched, launch))


def _predict(words: Sequence[str]) -> NoReturn:
    """Answer texts in this process, and end it."""
    from predict import predict
    from runners.hosting.life.command import end_process

    separated = separate_words(words, PredictArguments)
    # `--model_name` chooses one of several models; with one model it is ignored.
    names = [word for word in separated.server_words if word.startswith(_MODEL_NAME)]
    launch = plan_launch([word for word in separated.server_words if word not in names], variables=os.environ)
    arguments = read_predict_arguments(separated.command_values)
    _enter_bento()
    name = names[-1].removeprefix(_MODEL_NAME) if names else None
    end_process(predict(arguments, separated.texts, name, partial(read_launched, launch)))


def _enter_bento() -> None:
    """Find the Bento's models in its own store from here on, if this is a Bento."""
    if (_HERE.parent / "bento.yaml").is_file():
        import bentoml

        bentoml.load(str(_HERE.parent))


def main() -> None:
    words = sys.argv[1:]
    # After -- there are texts of predict.
    options = words[: words.index("--")] if "--" in words else words
    predicts = words[:1] == [_PREDICT]
    if {"-h", "--help"} & {*options}:
        parser = create_parser([PredictArguments] if predicts else [])
        parser.usage = _PREDICT_USAGE if predicts else _USAGE
        parser.print_help()
        return
    if "--version" in options:
        sys.stdout.write(f"huggingface-runtime {VERSION}\n")
        return
    try:
        os.environ.update(choose_folders(os.environ))
        if predicts:
            _predict(words[1:])
        if words[:1] == [_DOCTOR] or _CHECK in words:
            arguments = words[1:] if words[:1] == [_DOCTOR] else words
            raise SystemExit(_examine([word for word in arguments if word != _CHECK]))
        launch = plan_launch(words, variables=os.environ)
        # The service warns of the same arguments again.
        logging.disable(logging.CRITICAL)
        _check(launch)
    except (NoWritableFolderError, RunnerError) as error:
        is_json = peek_log_settings(os.environ, words).is_json
        sys.stderr.write(render_end(str(error), is_json))
        raise SystemExit(1) from None
    os.execve(launch.command[0], launch.command, os.environ | launch.environment)


if __name__ == "__main__":
    main()
