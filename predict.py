"""`huggingface-runtime predict`: predictions without a server, for a few texts or for files of millions.

It loads the model in this process as a worker does, and keeps its batches full. Models, options and answers are those
of V1's `:predict`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, TypeAlias

from protocol.bulk.formats import open_source
from protocol.bulk.job import STREAM, Job
from protocol.bulk.model_description import describe_job_model
from protocol.bulk.modes import answer_stream, begin_job, fill_file, run_job
from protocol.bulk.part_worker import PartWorker
from protocol.bulk.parts import GENERATED_ROWS, PART_ROWS
from protocol.bulk.progress import Progress
from protocol.bulk.rows import claim_columns
from protocol.bulk.text_answerer import TextAnswerer
from runners.core.argument_groups import PredictArguments
from runners.core.declarations import Configuration
from runners.core.errors import ArgumentsError, InputError, describe_os_error
from runners.hosting.command_log import configure_log
from runners.hosting.hub_revision import pin_revision
from runners.hosting.idle_memory import configure_heaps, release_memory
from runners.hosting.kernel_caches import limit_kernel_caches
from runners.hosting.life.command import StoppedError, end_on_signals, raise_on_signal, run_work
from runners.hosting.selection import choose_model, create_models, expects_generator
from runners.hosting.standard_streams import keep_output, open_closed_streams
from runners.hosting.start_checks import check_model
from runners.hosting.storage.declarations import localize_declarations

if TYPE_CHECKING:
    from runners.core.arguments import Arguments
    from runners.core.runner import Runner

logger = logging.getLogger("predict")

Work: TypeAlias = Callable[[TextAnswerer, Progress], Coroutine[Any, Any, None]]


def predict(
    arguments: PredictArguments,
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
    end_on_signals()
    closed = open_closed_streams()
    configure_predictions()
    answers = keep_output()
    _check_ray(arguments, texts)
    if arguments.output == STREAM and 1 in closed:
        raise ArgumentsError("the standard output is closed: leave it open, or set --output=FILE")
    if arguments.input is not None and texts:
        raise ArgumentsError("texts on the command line and --input exclude each other")
    if arguments.input is None and not texts and os.isatty(0):
        raise ArgumentsError(
            'there are no texts: predict --model_id=... "a text", or --input=FILE, or write them to the standard input'
        )
    configuration = choose_model(read(partial(localize_declarations, fetches=True)), model_name)
    log = configure_log(configuration.arguments)
    try:
        [model] = configuration.models
        check_model(model.arguments, asks_hub=True)
        model = replace(model, arguments=pin_revision(model.arguments))
        return _predict(arguments, texts, replace(configuration, models=(model,)), answers)
    except OSError as error:
        raise InputError(describe_os_error(error)) from error
    finally:
        log.flush()


def _predict(arguments: PredictArguments, texts: Sequence[str], configuration: Configuration, answers: int) -> int:
    answer_columns = claim_columns(arguments.text_column)
    source = STREAM if arguments.input is None else arguments.input
    part_rows = GENERATED_ROWS if expects_generator(configuration) else PART_ROWS
    if arguments.output == STREAM:
        if source != STREAM:
            open_source(Path(source), arguments.text_column, answer_columns).check_start()
        return _run(arguments, configuration, partial(answer_stream, arguments, texts, answers, part_rows))
    job = Job(Path(source), Path(arguments.output), arguments.text_column, arguments.parameters)
    job.check()
    with job.open(part_rows, describe_job_model(configuration.models[0])):
        if job.is_stream:
            return _run(arguments, configuration, partial(fill_file, arguments, texts, job), job)
        if arguments.ray:
            return _run_on_ray(arguments, job, part_rows, configuration)
        return _run(arguments, configuration, partial(run_job, job, part_rows), job)


def _check_ray(arguments: PredictArguments, texts: Sequence[str]) -> None:
    if arguments.ray and (texts or arguments.input in (None, STREAM) or arguments.output == STREAM):
        raise ArgumentsError("--ray needs files: --input=FILE and --output=FILE")
    if arguments.workers is not None and not arguments.ray:
        raise ArgumentsError(f"--workers={arguments.workers} is a number of Ray's workers: it needs --ray")


def configure_predictions() -> None:
    """Set what a worker of the server sets, before torch is loaded."""
    # A server in the same container has this variable set; its metrics must not include these texts.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
    configure_heaps()
    limit_kernel_caches(os.environ)


@asynccontextmanager
async def open_model(configuration: Configuration) -> AsyncIterator[Runner]:
    """Load the only model of a configuration, as a worker of the server does.

    Raises:
        RunnerError: the model cannot be loaded.
    """
    # Torch and transformers are imported from here on.
    from protocol.open_inference.predictor.client import connect_predictor
    from runners.core.device_thread import DeviceThread

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


async def open_answerer(runner: Runner, parameters: Mapping[str, Any], server: Arguments) -> TextAnswerer:
    """
    Raises:
        RunnerError: a parameter is wrong, or the model has died.
    """
    answerer = TextAnswerer(runner, parameters, server)
    await answerer.check()
    return answerer


def _run(arguments: PredictArguments, configuration: Configuration, work: Work, job: Job | None = None) -> int:
    """Do the work with the model in this process; returns the exit code."""
    progress = Progress()

    async def run() -> None:
        async with open_model(configuration) as runner:
            await work(await open_answerer(runner, arguments.parameters, configuration.arguments), progress)

    try:
        code = run_work(run, partial(_report_signal, progress, job))
    finally:
        progress.close()
    if code is None:
        progress.conclude()
        code = 1 if progress.errors else 0
    return code


def _run_on_ray(arguments: PredictArguments, job: Job, part_rows: int, configuration: Configuration) -> int:
    """Let Ray's workers do the parts of a job that are not done, and join all of them; returns the exit code."""
    from protocol.bulk.ray_job import RayWorkers, connect_ray
    from runners.hosting.resources import request_gpus

    # A worker has another working folder.
    job = replace(job, input=job.input.absolute(), output=job.output.absolute())
    open_worker = partial(open_part_worker, job, make_portable(configuration))
    gpus = int(request_gpus(configuration, max(1, configuration.parallel_size)).get("gpu", 0))
    workers = RayWorkers(job, open_worker, arguments.workers, gpus)
    progress = Progress()
    try:
        # Ray sets handlers of its own, which are replaced.
        with connect_ray() as ray, raise_on_signal(partial(_report_signal, progress, job)):
            parts, total = begin_job(job, part_rows, progress)
            for summary in workers.run(ray, parts):
                progress.add(summary.rows, summary.errors)
            job.finish(total)
    except StoppedError as stopped:
        return 128 + stopped.number
    finally:
        progress.close()
    progress.conclude()
    return 1 if progress.errors else 0


def _report_signal(progress: Progress, job: Job | None, number: Signals) -> None:
    progress.close()
    is_kept = job is not None and job.folder.exists() and job.find_done()
    advice = "; the same command goes on where it has ended" if is_kept else ""
    logger.warning("%s has ended the work%s", number.name, advice)


def make_portable(configuration: Configuration) -> Configuration:
    """The configuration for other machines: without keys, and with the whole path of the model's folder."""
    [model] = configuration.models
    arguments = model.arguments.without_keys()
    for name in ("model_dir", "model_id"):
        value = getattr(arguments, name)
        if value is not None and Path(value).is_dir():
            arguments = arguments.model_copy(update={name: str(Path(value).absolute())})
    server = configuration.arguments.without_keys()
    return Configuration(server, (replace(model, arguments=arguments),))


@asynccontextmanager
async def open_part_worker(job: Job, configuration: Configuration, processes: int) -> AsyncIterator[PartWorker]:
    """Load the model in a process of its arguments.

    Args:
        processes: how many share the cores of this machine.

    Raises:
        RunnerError: the model cannot be loaded, or a parameter of the job is wrong.
    """
    configure_predictions()
    server = configuration.arguments.model_copy(update={"workers": processes})
    configure_log(server)
    async with open_model(configuration.replace_server_arguments(server)) as runner:
        with PartWorker(job, await open_answerer(runner, job.parameters, server)) as worker:
            yield worker
