"""Imports `torch` and `transformers` without the packages that only training and compiling need.

`transformers.modeling_utils` imports PyTorch's compiler with SymPy, its distributed tensors, and SciPy and scikit-learn
where they are installed. None of these runs in an encoder, and together they take half of the time of the import and
150 MB. A module that really uses one of them later imports it then.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from runners.core.errors import brief

logger = logging.getLogger(__name__)

_COMPILER = "torch._dynamo"
# For losses, for assisted generation, and for the questions that `accelerate` asks about AWS.
_UNUSED_PACKAGES = ("scipy", "sklearn", "boto3")
_MODULES = ("transformers.modeling_utils", "transformers.models.auto.auto_factory")


def load_torch_libraries() -> None:
    """Load the shared libraries of `torch` in a thread, which needs no GIL, while other modules are imported."""
    if "torch" not in sys.modules:
        threading.Thread(target=_load_libraries, name="torch-libraries", daemon=True).start()


def _load_libraries() -> None:
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin is not None:
        # If it cannot be loaded, the import of `torch` says why.
        with contextlib.suppress(OSError):
            ctypes.CDLL(str(Path(spec.origin).with_name("lib") / "libtorch_python.so"))


def import_transformers() -> None:
    """Import what every model needs of `transformers`; does nothing if it is imported already.

    If these modules do not import without the other packages, they are imported later with them.
    """
    if "transformers" in sys.modules:
        return
    import torch

    try:
        with contextlib.ExitStack() as replaced:
            for package in _UNUSED_PACKAGES:
                replaced.enter_context(_hide(package))
            replaced.enter_context(_leave_out_compiler(torch))
            # `transformers` remembers the answer for itself.
            replaced.enter_context(_replace(torch.distributed, "is_available", lambda: False))
            replaced.enter_context(_replace(importlib.metadata, "packages_distributions", _Distributions))
            importlib.import_module("transformers")
            replaced.enter_context(_list_models_once())
            for module in _MODULES:
                importlib.import_module(module)
    except Exception as error:
        logger.debug("transformers is imported with all that it can use: %s", brief(error))


class _Distributions(dict[str, list[str]]):
    """`importlib.metadata.packages_distributions()` that reads the files of all packages only if it must."""

    def __missing__(self, package: str) -> list[str]:
        try:
            self[package] = [importlib.metadata.distribution(package).metadata["Name"]]
        except importlib.metadata.PackageNotFoundError:
            self.update(_packages_distributions())
        return self.setdefault(package, [])

    def get(self, package: str, default: Any = None) -> Any:
        return self[package] or default


_packages_distributions = importlib.metadata.packages_distributions


class _Compiler(ModuleType):
    """Stands for `torch._dynamo`: its decorators return the function that they get, because nothing is compiled."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _decorate


def _decorate(function: Any = None, *_: Any, **__: Any) -> Any:
    return _decorate if function is None else function


@contextlib.contextmanager
def _hide(package: str) -> Iterator[None]:
    """Let a package look as if it were not installed, unless it is imported already."""
    if package in sys.modules:
        yield
        return
    # Python's mark of a module that must not be imported.
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]


@contextlib.contextmanager
def _leave_out_compiler(torch: ModuleType) -> Iterator[None]:
    if _COMPILER in sys.modules:
        yield
        return
    compiler = _Compiler(_COMPILER)
    # Its other modules are imported as usual.
    compiler.__path__ = [str(Path(torch.__path__[0]) / "_dynamo")]
    sys.modules[_COMPILER] = torch._dynamo = compiler  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del sys.modules[_COMPILER], torch._dynamo


@contextlib.contextmanager
def _list_models_once() -> Iterator[None]:
    """`transformers.models` reads the files of all models again, under another name of the same folder."""
    utilities = importlib.import_module("transformers.utils.import_utils")
    listed = utilities.create_import_structure_from_path

    def find(path: str | Path) -> Any:
        return listed(Path(path) if Path(path).is_dir() else Path(path).parent)

    with _replace(utilities, "create_import_structure_from_path", find):
        yield


@contextlib.contextmanager
def _replace(module: Any, name: str, replacement: object) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, replacement)
    try:
        yield
    finally:
        setattr(module, name, original)
