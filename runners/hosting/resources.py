"""The GPUs that the service requests from BentoML, and the number of its workers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, get_args

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


def fit_to_machine(resources: Mapping[str, Any], arguments: Arguments, in_bento: bool) -> dict[str, Any]:
    """The resources that a service requests on this machine, where BentoML lets all its workers see the same GPUs.

    The operator's own number stays. Otherwise each worker gets a GPU of its own, as far as there are some.

    Args:
        resources: those of the service's class, from `request_gpus`.
        in_bento: whether the service requests what its class declares even if this machine has no GPU.
    """
    if arguments.gpu is not None or arguments.gpu_type is not None or "gpu" not in resources:
        return {**resources}
    count = _count_gpus()
    if not count and not in_bento:
        return {}
    return {**resources, "gpu": max(resources["gpu"], min(arguments.workers, count))}


def _count_gpus() -> int:
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


def resolve_workers(arguments: Arguments, settings: OperatorSettings) -> Arguments:
    """The arguments with the number of workers that BentoML starts: its own setting takes precedence."""
    configured = settings.values.get("workers", arguments.workers)
    workers = (os.cpu_count() or 1) if configured == "cpu_count" else int(configured)
    return arguments.model_copy(update={"workers": workers})
