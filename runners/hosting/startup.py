"""How the service starts and, if its model cannot load, ends."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import signal
import ssl
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn, Protocol, get_args

import pynvml
from _bentoml_sdk.service.config import GpuLiteralType, SSLSchema
from bentoml import server_context
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.images import Image

from runners.core.api_keys import check_key_file
from runners.core.argument_sources import forget_keys, read_arguments
from runners.core.arguments import Arguments
from runners.core.certificates import CIPHERS, create_ssl_context
from runners.core.draining import DRAIN_SECONDS
from runners.core.errors import ArgumentsError, RunnerError, one_line
from runners.core.models import Models
from runners.hosting.ports import check_port

_EXIT_CODE = 1
_WATCH_SECONDS = 1.0


def configure_logging() -> None:
    """Let the server's own log lines go where BentoML's go, and look like them."""
    bentoml_logger = logging.getLogger("bentoml")
    for package in ("runners", "protocol"):
        package_logger = logging.getLogger(package)
        package_logger.handlers = bentoml_logger.handlers
        package_logger.setLevel(bentoml_logger.getEffectiveLevel())
        package_logger.propagate = False
    # BentoML's parent and every worker read the arguments; what is odd about them is said by the first worker alone.
    if server_context.worker_index != 1:
        logging.getLogger(read_arguments.__module__).setLevel(logging.ERROR)


def being_built() -> bool:
    """Whether BentoML imports this source to build a Bento of it: it says so nowhere but on the stack."""
    return any(
        frame.f_globals.get("__name__") == "bentoml._internal.bento.bento" for frame, _ in traceback.walk_stack(None)
    )


def create_image() -> Image:
    """What an image of any flavour does before it installs the packages that its bentofile names."""
    return (
        Image(python_version="3.11")
        # KServe's command line, as a container's `command`.
        .run("ln -s $BENTO_PATH/src/launch.py /usr/local/bin/huggingface-runtime")
        # These are locked; what is left out of a lock must not come back as a dependency.
        .run("mkdir -p /etc/uv && echo 'pip.no-deps = true' > /etc/uv/uv.toml")
    )


def resolve_resources(arguments: Arguments, in_bento: bool) -> dict[str, int | str]:
    """BentoML's `resources`: by default as many GPUs as vLLM's parallel sizes make, one without, where there is a GPU
    and in every Bento.

    A Bento is built on one machine and runs on another, so that what is present at build says nothing.
    BentoML refuses `gpu: 0`: no GPU is no key.

    Raises:
        ArgumentsError: BentoML does not know the GPU type; it would take any without a word.
    """
    gpus = arguments.gpu
    if gpus is None:
        # With a predictor the model runs elsewhere.
        wanted = arguments.predictor_host is None and (in_bento or arguments.gpu_type is not None or _count_gpus() > 0)
        gpus = arguments.parallel_size if wanted else 0
    if not gpus:
        return {}
    if arguments.gpu_type is None:
        return {"gpu": gpus}
    if arguments.gpu_type not in (known := get_args(GpuLiteralType)):
        raise ArgumentsError(f"argument gpu_type is {arguments.gpu_type!r}; BentoML knows {', '.join(known)}")
    return {"gpu": gpus, "gpu_type": arguments.gpu_type}


def _count_gpus() -> int:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    return int(pynvml.nvmlDeviceGetCount())


def resolve_ssl(arguments: Arguments) -> SSLSchema:
    """BentoML's `ssl`.

    Raises:
        ArgumentsError: a file is not there or wrong; BentoML's workers would fail at it again and again.
    """
    certfile, keyfile, ca_certs = arguments.ssl_certfile, arguments.ssl_keyfile, arguments.ssl_ca_certs
    if certfile is None or keyfile is None:
        # BentoML's own --ssl-certfile is stronger; its default of ciphers is none of today's.
        return {"enabled": False, "ciphers": CIPHERS}
    # A Bento is built where they are not.
    if not being_built():
        for name, path in (("ssl_certfile", certfile), ("ssl_keyfile", keyfile), ("ssl_ca_certs", ca_certs)):
            if path is not None and not Path(path).is_file():
                raise ArgumentsError(f"{name} is {path}, and there is no such file")
        try:
            create_ssl_context(certfile, keyfile, ca_certs)
        except OSError as error:
            raise ArgumentsError(f"{certfile} and {keyfile} cannot be used for TLS: {one_line(error)}") from error
    schema: SSLSchema = {"enabled": True, "certfile": certfile, "keyfile": keyfile, "ciphers": CIPHERS}
    if ca_certs is not None:
        schema |= {"ca_certs": ca_certs, "cert_reqs": ssl.CERT_REQUIRED}
    return schema


def secure_keys(arguments: Arguments) -> None:
    """In BentoML's parent process check the files of keys; in a worker forget what its environment says of keys.

    The parent's environment keeps it for the workers that it starts again.

    Raises:
        ArgumentsError: a file of keys is not there, or holds none. A worker whose file is gone lets nobody in.
    """
    if server_context.worker_index is not None:
        forget_keys(os.environ)
    elif not being_built():
        check_key_file("api_key_file", arguments.api_key_file)
        check_key_file("admin_api_key_file", arguments.admin_api_key_file)


def exit_unless_free(port: int, argument: str) -> None:
    """In BentoML's parent process: `check_port`, and an end of one line."""
    try:
        check_port(port, argument)
    except ArgumentsError as error:
        raise SystemExit(f"error: {error}") from None


def resolve_workers(arguments: Arguments, service: str) -> Arguments:
    """The arguments with the workers that BentoML will start: the operator's BENTOML_CONFIG_OPTIONS are stronger."""
    configured = BentoMLContainer.config.get().get("services", {}).get(service, {}).get("workers") or arguments.workers
    workers = (os.cpu_count() or 1) if configured == "cpu_count" else int(configured)
    return arguments.model_copy(update={"workers": workers})


def watch_for_failed_workers() -> None:
    """In BentoML's parent process: stop, with an exit code, when a worker says that its model cannot load.

    BentoML would start the worker again, for ever.
    """

    def stop(_: int, __: FrameType | None) -> None:
        atexit.register(os._exit, _EXIT_CODE)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGUSR1, stop)


async def run_or_exit(models: Models) -> None:
    """In a worker: load the model; if that fails, or it dies later, say why in one line and stop the whole server."""
    runner = models.first
    try:
        await models.load(runner.name)
    except RunnerError as error:
        _exit(f"cannot serve {runner.name}: {error}")
    # A dead engine tells nobody.
    while not runner.failed:  # noqa: ASYNC110
        await asyncio.sleep(_WATCH_SECONDS)
    # Those who wait are told first.
    await asyncio.sleep(_WATCH_SECONDS)
    _exit(f"the engine that ran {runner.name} has died")


class Listener(Protocol):
    """A server beside BentoML's."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


async def start_or_exit(listener: Listener) -> None:
    """In a worker: start a server; if it cannot, say why in one line and stop the whole server."""
    try:
        await listener.start()
    except (ArgumentsError, OSError, RuntimeError) as error:
        _exit(f"gRPC cannot be served: {' '.join(str(error).split())}")


def bound_shutdown(stop: Callable[[], None], listener: Listener | None) -> None:
    """In a worker: once it is told to end, let the listener take no more calls, and call `stop` if requests still run
    after a while.

    The server waits for the last answer, however long that takes; Kubernetes kills it after 30 s.
    """
    handler = signal.getsignal(signal.SIGTERM)
    loop = asyncio.get_running_loop()

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(loop.call_later, DRAIN_SECONDS, lambda: loop.run_in_executor(None, stop))
        if listener is not None:
            asyncio.run_coroutine_threadsafe(listener.stop(), loop)
        if callable(handler):
            handler(number, frame)

    signal.signal(signal.SIGTERM, handle)


def _exit(reason: str) -> NoReturn:
    if _first_to_fail():
        sys.stderr.write(f"error: {reason}\n")
        sys.stderr.flush()
    os.kill(os.getppid(), signal.SIGUSR1)
    os._exit(_EXIT_CODE)


def _first_to_fail() -> bool:
    """Whether no other worker of this server has failed before: they mostly fail alike."""
    # The one folder of all workers, which BentoML empties at every start.
    mark = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]) / f"failed-{os.getppid()}"
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
