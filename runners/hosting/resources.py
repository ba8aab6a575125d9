"""The GPUs that the service requests from BentoML, and the number of its workers."""

from __future__ import annotations

import os
from typing import get_args

import pynvml
from _bentoml_sdk.service.config import GpuLiteralType

from runners.core.arguments import Arguments
from runners.core.declarations import Configuration
from runners.core.errors import ArgumentsError
from runners.hosting.operator_settings import OperatorSettings


def request_gpus(configuration: Configuration, gpus: int) -> dict[str, int | str]:
    """BentoML's `resources` of a service class.

    Args:
        gpus: the number of GPUs that the class runs on; `--gpu` takes precedence.

    Returns:
        `gpu` and `gpu_type`; nothing without GPUs, because BentoML refuses `gpu: 0`.

    Raises:
        ArgumentsError: BentoML does not know the GPU type; BentoML itself would accept any text.
    """
    arguments, models = configuration.arguments, configuration.models
    if arguments.gpu is not None:
        gpus = arguments.gpu
    elif models and all(model.arguments.predictor_host is not None for model in models):
        # The predictors' servers run the models.
        gpus = 0
    if not gpus:
        return {}
    if arguments.gpu_type is None:
        return {"gpu": gpus}
    if arguments.gpu_type not in (gpu_types := get_args(GpuLiteralType)):
        raise ArgumentsError(f"argument gpu_type is {arguments.gpu_type!r}; BentoML knows {', '.join(gpu_types)}")
    return {"gpu": gpus, "gpu_type": arguments.gpu_type}


def is_without_gpus(arguments: Arguments) -> bool:
    """Whether the operator requests no GPU explicitly and this machine has none."""
    return arguments.gpu is None and arguments.gpu_type is None and _count_gpus() == 0


def _count_gpus() -> int:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    return int(pynvml.nvmlDeviceGetCount())


def resolve_workers(arguments: Arguments, settings: OperatorSettings) -> Arguments:
    """The arguments with the number of workers that BentoML starts: its own setting takes precedence."""
    configured = settings.values.get("workers", arguments.workers)
    workers = (os.cpu_count() or 1) if configured == "cpu_count" else int(configured)
    return arguments.model_copy(update={"workers": workers})
