"""`huggingface-runtime predict`: predictions without a server, for a few texts or for files of millions.

It loads the model in this process as a worker does, and keeps its batches full. Models, options and answers are those
of V1's `:predict`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count as count_from
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeAlias

import uvloop

from protocol.bulk.formats import open_source
from protocol.bulk.job import STREAM, Job, PartWorker, run_parts
from protocol.bulk.outputs import JsonOutput, count_errors
from protocol.bulk.parts import GENERATED_ROWS, PART_ROWS, Part, PartSummary
from protocol.bulk.predictor import Answer, Predictor
from protocol.bulk.progress import Progress
from protocol.bulk.rows import NO_ROWS, Rows, check_text_column, list_written
from protocol.bulk.streams import answer_rows, give_texts, read_parts, read_stream
from runners.core.argument_groups import AnswerArguments, ModelArguments, PredictArguments
from runners.core.arguments import Arguments
from runners.core.declarations import Configuration, ModelDeclaration
from runners.core.errors import ArgumentsError, InputError, list_names
from runners.core.log_lines import make_json_renderer, make_text_renderer
from runners.core.model_index import version_key
from runners.core.redaction import redact
from runners.core.version import VERSION
from runners.hosting.idle_memory import configure_heaps, release_memory
from runners.hosting.kernel_caches import limit_kernel_caches
from runners.hosting.life.signals import STOP_SIGNALS
from runners.hosting.log_output import LogHandler
from runners.hosting.selection import expects_generator
from runners.hosting.start_checks import check_model
from runners.hosting.storage.declarations import localize_declarations

if TYPE_CHECKING:
    from runners.core.runner import Runner

logger = logging.getLogger("predict")

_BROKEN_PIPE = 128 + signal.SIGPIPE
_ADVICE = "the same command goes on where it has ended"
_KEYS = ("api_key", "api_key_file", "admin_api_key", "admin_api_key_file")
# A model that is stopped gets this long: its batch ends first.
_CLOSE_SECONDS = 5.0
# The arguments that decide the answers, beside those of a model and of its answers; names decide nothing.
_DECIDING = ("predictor_host", "matmul_precision", "max_text_characters", "max_whole_text_characters")
_NAMES = frozenset({"model_name", "model_dir", "model_id"})

Work: TypeAlias = Callable[[Predictor, Progress], Coroutine[Any, Any, None]]


def predict(
    own: PredictArguments,
    texts: Sequence[str],
    model_name: str | None,
    read: Callable[[Callable[[str], Path | None]], Configuration],
) -> int:
    """Answer the texts of the command line, of a stream or of a file.

    Args:
        texts: those of the command line.
        model_name: the name of one of several models.
        read: reads the configuration, with a function that finds the file or folder of the models.

    Returns:
        The exit code: 0 if all texts have a prediction, else 1; that of a signal which has ended the work.

    Raises:
        RunnerError: an argument, the model or the input is wrong, or the model has died.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    configure_predictions()
    answers = _keep_output()
    _check_ray(own, texts)
    if own.input is not None and texts:
        raise ArgumentsError("texts on the command line and --input exclude each other")
    if own.input is None and not texts and sys.stdin.isatty():
        raise ArgumentsError(
            'there are no texts: predict --model_id=... "a text", or --input=FILE, or write them to the standard input'
        )
    configuration = choose_model(read(partial(localize_declarations, fetches=True)), model_name)
    log = configure_log(configuration.arguments)
    try:
        check_model(configuration.models[0].arguments, asks_hub=True)
        return _predict(own, texts, configuration, answers)
    except OSError as error:
        raise InputError(f"{error.filename or 'a file'}: {error.strerror or error}") from error
    finally:
        log.flush()


def _predict(own: PredictArguments, texts: Sequence[str], configuration: Configuration, answers: int) -> int:
    check_text_column(own.text_column, list_written())
    source = STREAM if own.input is None else own.input
    if own.output == STREAM:
        if source != STREAM:
            open_source(Path(source), own.text_column, list_written()).check_start()
        return _Process(own.parameters, partial(_answer_stream, own, texts, answers)).run(configuration)
    job = Job(Path(source), Path(own.output), own.text_column, own.parameters)
    job.check()
    part_rows = choose_part_rows(configuration)
    with job.open(part_rows, describe_model(configuration.models[0])):
        if job.is_stream:
            return _Process(own.parameters, partial(_fill_file, own, texts, job)).run(configuration)
        if own.ray:
            return _run_on_ray(own, job, part_rows, configuration)
        return _Process(own.parameters, partial(_run_job, job, part_rows), _ADVICE).run(configuration)


def _check_ray(own: PredictArguments, texts: Sequence[str]) -> None:
    if own.ray and (texts or own.input in (None, STREAM) or own.output == STREAM):
        raise ArgumentsError("--ray needs files: --input=FILE and --output=FILE")
    if own.workers is not None and not own.ray:
        raise ArgumentsError(f"--workers={own.workers} is a number of Ray's workers: it needs --ray")


def configure_predictions() -> None:
    """Set what a worker of the server sets, before torch is loaded."""
    # Of a server that runs in the same container: its metrics are not to be mixed with those of these texts.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    configure_heaps()
    limit_kernel_caches(os.environ)


def configure_log(arguments: Arguments) -> LogHandler:
    """Send the log to the standard error: warnings, and what this command itself says."""
    is_json = arguments.log_format == "json"
    render = make_json_renderer({"pid": os.getpid()}) if is_json else make_text_renderer(lambda: "predict")
    handler = LogHandler(render, 2)
    root = logging.getLogger()
    root.handlers = [handler]
    level = arguments.log_level or "warning"
    for name in ("runners", "protocol"):
        logging.getLogger(name).setLevel(level.upper())
    for name in ("predict", "protocol.bulk"):
        logging.getLogger(name).setLevel(logging.INFO if arguments.log_level is None else level.upper())
    return handler


def choose_model(configuration: Configuration, name: str | None) -> Configuration:
    """The configuration with one model alone, all cores and no repository.

    Args:
        name: one of several models; None for the only one.

    Raises:
        ArgumentsError: there are several, and none has that name.
    """
    declared = configuration.models
    names = list(dict.fromkeys(model.name for model in declared))
    if not names:
        raise ArgumentsError("no model is declared")
    several = configuration.arguments.models_file or configuration.arguments.model_repository
    chosen = [model for model in declared if name is None or not several or name in model.arguments.names]
    if len({model.name for model in chosen}) != 1:
        found = "there are several models" if name is None else f"there is no model {name}"
        raise ArgumentsError(f"{found}: set --model_name to one of {list_names(names)}")
    model = replace(max(chosen, key=lambda model: version_key(model.version)), load=True)
    alone = Configuration(configuration.arguments, (model,))
    return alone.replace_server_arguments(configuration.arguments.model_copy(update={"workers": 1}))


def choose_part_rows(configuration: Configuration) -> int:
    """Most rows of a part: what is computed again after a break."""
    return GENERATED_ROWS if expects_generator(configuration) else PART_ROWS


def describe_model(model: ModelDeclaration) -> dict[str, Any]:
    """What decides the answers to a text: the model and its arguments, of which nothing is secret."""
    arguments = model.arguments
    names = {*ModelArguments.model_fields, *AnswerArguments.model_fields, *_DECIDING} - _NAMES
    files = sorted((path, state and state[2:]) for path, state in model.describe_files())
    engine = {name: argument.value for name, argument in sorted(arguments.engine.items())}
    return {
        "version": VERSION,
        "model": redact(arguments.model),
        "model_version": model.version,
        "model_files": _digest(files),
        **arguments.model_dump(mode="json", include=names),
        "vllm_arguments": _digest(engine),
    }


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


@asynccontextmanager
async def open_model(configuration: Configuration) -> AsyncIterator[Runner]:
    """Load the only model of a configuration, as a worker of the server does.

    Raises:
        RunnerError: the model cannot be loaded.
    """
    # Torch and transformers are imported from here on.
    from protocol.open_inference.predictor.client import connect_predictor
    from runners.core.device_thread import DeviceThread
    from runners.hosting.selection import create_models

    device = DeviceThread()
    models = create_models(configuration, connect_predictor, device)
    releasing = asyncio.create_task(release_memory(lambda: models.loaded, lambda: models.busy))
    try:
        [model] = models
        await models.load_at_start(model)
        assert model.runner is not None
        yield model.runner
    finally:
        releasing.cancel()
        await asyncio.to_thread(models.close)
        await asyncio.to_thread(device.close)


@dataclass(slots=True)
class _Process:
    """Runs the work of this process to its end, or to a signal.

    Attributes:
        parameters: those of a request of V1.
        work: answers texts.
        advice: what the message of a signal says beside its name.
    """

    parameters: Mapping[str, Any]
    work: Work
    advice: str = ""
    _progress: Progress = field(default_factory=Progress)
    _signal: signal.Signals | None = None

    def run(self, configuration: Configuration) -> int:
        """
        Returns:
            The exit code.

        Raises:
            RunnerError: the model cannot be loaded or has died, or the input or a parameter is wrong.
            OSError: a file cannot be read or written.
        """
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._run(configuration))
        except (Exception, asyncio.CancelledError) as error:
            if self._signal is not None:
                return 128 + self._signal
            cause = _find_cause(error)
            if isinstance(cause, BrokenPipeError):
                # Who reads the answers wants no more of them.
                return _BROKEN_PIPE
            raise cause from None
        finally:
            self._progress.close()
        return 1 if self._progress.errors else 0

    async def _run(self, configuration: Configuration) -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number, task)
        async with open_model(configuration) as runner:
            await self.work(Predictor(runner, self.parameters, configuration.arguments), self._progress)
        self._progress.conclude()

    def _stop(self, number: signal.Signals, task: asyncio.Task[None]) -> None:
        if self._signal is not None:
            os._exit(128 + number)
        self._signal = number
        self._progress.close()
        logger.warning("%s has ended the work%s", number.name, self.advice and f"; {self.advice}")
        task.cancel()
        # A load, or a reader of the standard output, may take longer.
        timer = threading.Timer(_CLOSE_SECONDS, os._exit, [128 + number])
        timer.daemon = True
        timer.start()


async def _run_job(job: Job, part_rows: int, predictor: Predictor, progress: Progress) -> None:
    """Do the parts of a job that are not done, and join all of them."""
    parts, count = await asyncio.to_thread(_begin_job, job, part_rows, progress, predictor.extra_names)

    def note(summary: PartSummary) -> None:
        progress.add(summary.rows, summary.errors)

    with PartWorker(job, predictor) as worker:
        await run_parts(parts, worker, note)
    await asyncio.to_thread(job.finish, count)


def _begin_job(job: Job, part_rows: int, progress: Progress, extra_names: Sequence[str] = ()) -> tuple[list[Part], int]:
    """The parts of a job that are not done, and how many there are in all."""
    parts = job.plan(part_rows, extra_names)
    done = job.find_done()
    rows = sum(part.rows for part in parts if part.number in done)
    progress.start(sum(part.rows for part in parts), rows, sum(part.errors for part in done.values()))
    return [part for part in parts if part.number not in done], len(parts)


def _run_on_ray(own: PredictArguments, job: Job, part_rows: int, configuration: Configuration) -> int:
    """Let Ray's workers do the parts of a job that are not done, and join all of them; returns the exit code."""
    from protocol.bulk.ray_job import RayWorkers, connect_ray
    from runners.hosting.resources import request_gpus

    # A worker has another working folder.
    job = replace(job, input=job.input.absolute(), output=job.output.absolute())
    open_worker = partial(open_part_worker, job, _make_portable(configuration))
    gpus = int(request_gpus(configuration, max(1, configuration.parallel_size)).get("gpu", 0))
    workers = RayWorkers(job, open_worker, own.workers, gpus)
    progress = Progress()
    try:
        with connect_ray() as ray:
            # Ray has set a handler of its own.
            for number in STOP_SIGNALS:
                signal.signal(number, _stop_ray)
            parts, count = _begin_job(job, part_rows, progress)
            for summary in workers.run(ray, parts):
                progress.add(summary.rows, summary.errors)
            job.finish(count)
    except _StoppedError as stopped:
        progress.close()
        logger.warning("%s has ended the work; %s", stopped.number.name, _ADVICE)
        return 128 + stopped.number
    finally:
        progress.close()
    progress.conclude()
    return 1 if progress.errors else 0


class _StoppedError(KeyboardInterrupt):
    """A signal has ended the work."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number


def _stop_ray(number: int, _: FrameType | None) -> None:
    for each in STOP_SIGNALS:
        signal.signal(each, _end)
    raise _StoppedError(signal.Signals(number))


def _make_portable(configuration: Configuration) -> Configuration:
    """The configuration for other machines: without keys, and with the whole path of the model's folder."""
    [model] = configuration.models
    arguments = model.arguments.model_copy(update=dict.fromkeys(_KEYS))
    for name in ("model_dir", "model_id"):
        value = getattr(arguments, name)
        if value is not None and Path(value).is_dir():
            arguments = arguments.model_copy(update={name: str(Path(value).absolute())})
    server = configuration.arguments.model_copy(update=dict.fromkeys(_KEYS))
    return Configuration(server, (replace(model, arguments=arguments),))


@asynccontextmanager
async def open_part_worker(job: Job, configuration: Configuration, processes: int) -> AsyncIterator[PartWorker]:
    """Load the model in a process of its own.

    Args:
        processes: how many share the cores of this machine.

    Raises:
        RunnerError: the model cannot be loaded, or a parameter of the job is wrong.
    """
    configure_predictions()
    server = configuration.arguments.model_copy(update={"workers": processes})
    configure_log(server)
    async with open_model(configuration.replace_server_arguments(server)) as runner:
        with PartWorker(job, Predictor(runner, job.parameters, server)) as worker:
            yield worker


async def _fill_file(
    own: PredictArguments, texts: Sequence[str], job: Job, predictor: Predictor, progress: Progress
) -> None:
    """Write the answers to a stream, or to the texts of the command line, to a file."""
    progress.start()
    numbers = count_from()
    with PartWorker(job, predictor) as worker:

        async def write(rows: Rows, answers: Sequence[Answer]) -> None:
            summary = await worker.write(next(numbers), rows, answers)
            progress.add(summary.rows, summary.errors)

        await answer_rows(_read_groups(own, texts, predictor.extra_names), predictor, write)
        if not progress.rows:
            await worker.write(next(numbers), NO_ROWS, ())
    await asyncio.to_thread(job.finish, next(numbers))


async def _answer_stream(
    own: PredictArguments, texts: Sequence[str], descriptor: int, predictor: Predictor, progress: Progress
) -> None:
    """Write the answers to the standard output.

    Args:
        descriptor: that of the standard output.
    """
    progress.start(shows_bar=not os.isatty(descriptor))
    output = JsonOutput(predictor.extra_names)

    async def write(rows: Rows, answers: Sequence[Answer]) -> None:
        await asyncio.to_thread(_write_all, descriptor, output.render(rows, answers))
        progress.add(len(rows), count_errors(answers))

    await answer_rows(_read_groups(own, texts, predictor.extra_names), predictor, write)


def _read_groups(own: PredictArguments, texts: Sequence[str], extra_names: Sequence[str]) -> AsyncIterator[Rows]:
    """The rows of the command line, of a stream or of a file."""
    written = list_written(extra_names)
    check_text_column(own.text_column, written)
    if texts:
        return give_texts(texts, own.text_column)
    if own.input is None or own.input == STREAM:
        return read_stream(0, own.text_column, written)
    return read_parts(open_source(Path(own.input), own.text_column, written), PART_ROWS)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _keep_output() -> int:
    """The descriptor of the standard output, for answers only: what libraries print goes to the standard error."""
    descriptor = os.dup(1)
    os.dup2(2, 1)
    return descriptor


def _find_cause(error: BaseException) -> BaseException:
    """The first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _end(number: int, _: FrameType | None) -> None:
    """End at once: nothing has been written yet."""
    os._exit(128 + number)
