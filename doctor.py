"""`huggingface-runtime doctor ARGUMENTS`: what a server with these arguments would serve where, and whether it can.

It checks what a start checks, loads each model in this process as a worker does, and lets it answer one text through
the whole application. It opens no port, and keys are neither needed nor shown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from runners.core.argument_groups import LaunchArguments
from runners.core.arguments import KEY_ARGUMENTS, Arguments
from runners.core.declarations import Configuration
from runners.core.errors import RunnerError, one_line
from runners.core.machine import format_size
from runners.core.redaction import hide_users, redact
from runners.hosting.machine_report import (
    describe_folders,
    describe_machine,
    describe_packages,
    list_missing_packages,
)
from runners.hosting.ports import check_port
from runners.hosting.start_checks import check_model, check_server
from runners.hosting.storage.declarations import localize_declarations
from runners.hosting.writable_folders import CHOSEN_VARIABLE

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from runners.core.models import Models
    from runners.core.served_model import ServedModel

_ENGINES = {"encoder": "this server's engine for encoders", "vllm": "vLLM"}
_ROOT = "http://doctor"
_ANSWER_SECONDS = 600
# The memory that a model takes and what is free is said at this level.
_MEMORY_LOGGER = "runners.modeling.memory"


@dataclass(slots=True)
class _Report:
    """Writes what is found, line by line, and keeps the reasons why a server could not serve."""

    problems: list[str] = field(default_factory=list)

    def title(self, text: str) -> None:
        sys.stdout.write(f"\n{text}\n")

    def line(self, text: str) -> None:
        sys.stdout.write(f"  {hide_users(text)}\n")
        sys.stdout.flush()

    def lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    def problem(self, text: str, subject: str = "") -> None:
        self.problems.append(f"{subject}: {text}" if subject else text)
        self.line(f"PROBLEM: {text}")

    def check(self, check: Callable[[], object], subject: str = "") -> bool:
        """Whether a check finds nothing wrong."""
        try:
            check()
        except RunnerError as error:
            self.problem(str(error), subject)
            return False
        return True


class _Notes(logging.Handler):
    """Keeps the server's log lines, which say why a model runs as it does."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.INFO or record.name == _MEMORY_LOGGER:
            mark = "WARNING: " if record.levelno >= logging.WARNING else ""
            self.texts.append(f"{mark}{record.getMessage()}")

    def take(self) -> list[str]:
        texts, self.texts = list(dict.fromkeys(self.texts)), []
        return texts


def examine(server: LaunchArguments, read: Callable[[Callable[[str], Path | None]], Configuration]) -> int:
    """Write the report to the standard output.

    Args:
        read: reads the configuration, with a function that finds the file or folder of the models.

    Returns:
        The exit code: 0 if the server would serve all its models, else 1.
    """
    # Of a server that runs in the same container: its metrics are not to be mixed with those of these texts.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    report = _Report()
    with _keep_notes() as notes:
        try:
            configuration = read(partial(localize_declarations, fetches=True))
        except RunnerError as error:
            report.title("Arguments")
            report.problem(str(error))
            return _conclude(report, 0)
        _examine_server(report, server, configuration.arguments, notes)
        report.title("Machine")
        report.lines(describe_machine(configuration.arguments.workers))
        report.title("Packages")
        report.lines(describe_packages())
        for name in list_missing_packages():
            report.problem(f"the package {name} is not installed")
        report.title("Folders and networks")
        if (chosen := os.environ.get(CHOSEN_VARIABLE)) is not None:
            report.line(f"WARNING: {chosen}")
        report.lines(describe_folders(os.environ))
        served = asyncio.run(_examine_models(report, configuration, notes))
    return _conclude(report, served)


@contextmanager
def _keep_notes() -> Iterator[_Notes]:
    notes = _Notes()
    loggers = [logging.getLogger(name) for name in ("runners", "protocol")]
    for each in loggers:
        each.addHandler(notes)
        each.setLevel(logging.INFO)
        each.propagate = False
    logging.getLogger(_MEMORY_LOGGER).setLevel(logging.DEBUG)
    try:
        yield notes
    finally:
        for each in loggers:
            each.removeHandler(notes)


def _examine_server(report: _Report, server: LaunchArguments, arguments: Arguments, notes: _Notes) -> None:
    report.title("Server")
    scheme = "http" if arguments.ssl_certfile is None else "https"
    prefix = f", behind {arguments.root_path}" if arguments.root_path else ""
    report.line(f"{scheme}://{server.host}:{server.http_port}{prefix}, workers: {arguments.workers}")
    report.line(f"gRPC on port {arguments.grpc_port}" if arguments.enable_grpc else "no gRPC")
    asks = [name for name in KEY_ARGUMENTS if getattr(arguments, name) is not None]
    report.line(f"keys are asked for, by {', '.join(asks)}" if asks else "no key is asked for")
    report.check(lambda: check_port(server.http_port, "http_port", server.host))
    report.check(lambda: check_server(arguments, server.http_port))
    report.lines(notes.take())


async def _examine_models(report: _Report, configuration: Configuration, notes: _Notes) -> int:
    """Load each model, and let it answer.

    Returns:
        How many models answer.
    """
    report.title("Models")
    declared = configuration.models
    if not declared:
        report.line("none is declared")
        return 0
    # Torch and transformers are imported from here on.
    from protocol.open_inference.predictor.client import connect_predictor
    from runners.core.device_thread import DeviceThread
    from runners.hosting.selection import create_models

    device = DeviceThread()
    try:
        models = create_models(configuration, connect_predictor, device)
    except RunnerError as error:
        report.problem(str(error), declared[0].name)
        return 0
    try:
        application = _create_application(models, configuration.arguments)
        return sum([await _examine_model(report, models, model, application, notes) for model in models])
    finally:
        await asyncio.to_thread(models.close)
        await asyncio.to_thread(device.close)


def _create_application(models: Models, arguments: Arguments) -> ASGIApp:
    """The application without keys, which are not known in plain text."""
    from protocol.application import create_application

    return create_application(models, arguments.without_keys())


async def _examine_model(
    report: _Report, models: Models, model: ServedModel, application: ASGIApp, notes: _Notes
) -> bool:
    """Whether the model answers; one that is not loaded at start is not tried."""
    arguments, name = model.declaration.arguments, model.name
    report.line(f"{name}, version {model.version}, from {redact(arguments.model)} ({model.declaration.origin})")
    if not model.is_wanted:
        report.line("  it is not loaded at start")
        return False
    if not report.check(lambda: check_model(arguments, asks_hub=True), name):
        return False
    started, before = time.monotonic(), _read_memory()
    try:
        await models.load_at_start(model)
    except RunnerError as error:
        report.lines(f"  {text}" for text in notes.take())
        report.problem(str(error), name)
        return False
    seconds = time.monotonic() - started
    report.lines(f"  {text}" for text in _describe_model(model))
    report.lines(f"  {text}" for text in notes.take() if f"{name} is ready" not in text)
    report.line(
        f"  loaded in {seconds:.1f} s with {format_size(max(_read_memory() - before, 0))} more memory in this process"
        + (f", which {arguments.workers} processes take each" if arguments.workers > 1 else "")
    )
    return await _try_text(report, model, application)


def _describe_model(model: ServedModel) -> Iterator[str]:
    """Where the model runs, and how."""
    arguments, runner = model.declaration.arguments, model.runner
    assert runner is not None
    if arguments.predictor_host is not None:
        yield f"task {runner.task}, run by the predictor at {arguments.predictor_host} ({arguments.predictor_protocol})"
        return
    details = runner.details
    kernels = f"linear kernels: {details.linear_kernels}" if details.linear_kernels else ""
    yield f"task {runner.task}, on {_ENGINES.get(details.engine, details.engine)}, {details.device}, {details.dtype}"
    yield ", ".join(part for part in (f"batches: {details.batching}", kernels) if part)


async def _try_text(report: _Report, model: ServedModel, application: ASGIApp) -> bool:
    """Send the first example of the OpenAPI document."""
    import httpx

    found = _find_example(model)
    if found is None:
        report.problem("no text is known that its task answers", model.name)
        return False
    path, request = found
    started = time.perf_counter()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url=_ROOT) as client:
        try:
            answer = await client.post(path, json=request, timeout=_ANSWER_SECONDS)
        # Whatever is wrong with the model is to be said.
        except Exception as error:
            report.problem(f"{path} fails: {type(error).__name__}: {one_line(error)}", model.name)
            return False
    milliseconds = (time.perf_counter() - started) * 1000
    if answer.status_code != 200:
        report.problem(f"{path} answers {answer.status_code}: {answer.text[:500]}", model.name)
        return False
    report.line(f"  answers {path} in {milliseconds:.0f} ms")
    return True


def _find_example(model: ServedModel) -> tuple[str, Any] | None:
    """The path and the body of the first example; a model that embeds on vLLM has OpenAI's calls only."""
    from protocol.open_inference.examples import infer_examples
    from protocol.openai.examples import call_examples
    from protocol.openai_paths import OPENAI_PATHS, list_client_paths
    from protocol.openapi.document import describe_example_model

    runner = model.runner
    assert runner is not None
    described = describe_example_model(runner)
    if runner.generator is None or runner.generator.generates:
        path = f"/v2/models/{quote(model.name, safe='')}/versions/{quote(model.version)}/infer"
        found = [(path, infer_examples(described))]
    else:
        calls = call_examples(described)
        found = [(path, calls.get(OPENAI_PATHS[path].call, {})) for path in list_client_paths(runner)]
    return next(((path, example.request) for path, examples in found for example in examples.values()), None)


def _read_memory() -> int:
    """The bytes of memory that are in use by this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _conclude(report: _Report, served: int) -> int:
    report.title("Result")
    if report.problems:
        report.line(f"{len(report.problems)} problems:" if len(report.problems) > 1 else "a problem:")
        report.lines(f"- {problem}" for problem in report.problems)
        return 1
    report.line(f"all is well: {served} models answer" if served != 1 else "all is well: the model answers")
    return 0
