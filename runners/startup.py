"""How the service starts and, if its model cannot load, ends."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import traceback
from types import FrameType

import pynvml

from runners.arguments import Arguments
from runners.errors import RunnerError
from runners.inference import Runner

logger = logging.getLogger(__name__)

_EXIT_CODE = 1


def being_built() -> bool:
    """Whether BentoML imports this source to build a Bento of it: it says so nowhere but on the stack."""
    return any(
        frame.f_globals.get("__name__") == "bentoml._internal.bento.bento" for frame, _ in traceback.walk_stack(None)
    )


def resolve_resources(arguments: Arguments, in_bento: bool) -> dict[str, int | str]:
    """BentoML's `resources`: by default one GPU where there is one, and in every Bento.

    A Bento is built on one machine and runs on another, so that what is present at build says nothing.
    BentoML refuses `gpu: 0`: no GPU is no key.
    """
    gpus = arguments.gpu if arguments.gpu is not None else int(in_bento or _count_gpus() > 0)
    if not gpus:
        return {}
    return {"gpu": gpus} if arguments.gpu_type is None else {"gpu": gpus, "gpu_type": arguments.gpu_type}


def _count_gpus() -> int:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    return int(pynvml.nvmlDeviceGetCount())


def watch_for_failed_workers() -> None:
    """In BentoML's parent process: stop, with an exit code, when a worker says that its model cannot load.

    BentoML would start the worker again, for ever.
    """

    def stop(_: int, __: FrameType | None) -> None:
        atexit.register(os._exit, _EXIT_CODE)
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGUSR1, stop)


async def load_or_exit(runner: Runner) -> None:
    """In a worker: load the model; if that fails, say why in one line and stop the whole server."""
    try:
        await runner.load()
    except RunnerError as error:
        sys.stderr.write(f"error: cannot serve {runner.name}: {error}\n")
        sys.stderr.flush()
        os.kill(os.getppid(), signal.SIGUSR1)
        os._exit(_EXIT_CODE)
