"""The repeated layers of a packed model, compiled by `torch.compile`, which fuses additions, norms and activations.

Attention is not compiled: it reads where the texts of a batch are from outside of the model's arguments, which the
compiler would take for constants. So each layer is compiled in two parts, before and after attention, and all layers
of a kind share them. Numbers of rows are symbolic. What would have to be compiled after the load runs uncompiled.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from runners.core.device_thread import give_way
from runners.core.errors import brief
from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import Forward
from runners.encoder.forward_selection import check_forward
from runners.encoder.packed_attention import PACKED_ATTENTION, packed_attention
from runners.encoder.probe import Probe
from runners.encoder.sequences import TokenizedText
from runners.modeling.trial_cache import make_folder

logger = logging.getLogger(__name__)

_BACKEND = "inductor"
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
# Copies of the probe's texts in the batches that are run after the check.
_COPIES = (1, 4, 16)


class _ServedForward(Forward):
    """A forward pass whose check runs it as it is served, so that nothing is compiled for the check alone."""

    def __init__(self, forward: Forward) -> None:
        self.name, self.mode = forward.name, forward.mode
        self._forward = forward

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        return self._forward.run(texts)

    def attach(self) -> None:
        self._forward.attach()

    def detach(self) -> None:
        self._forward.detach()


@contextmanager
def compiled_layers(probe: Probe, forward: Forward) -> Iterator[None]:
    """Compile a model's repeated layers, if its scores stay right; nothing is compiled any more after the block.

    The block is the rest of the load, which may run batches of other forms, such as those of CUDA graphs.

    Args:
        forward: the forward pass that was selected.
    """
    torch.compiler.set_stance("default")
    try:
        is_compiled, reason = compile_layers(probe, forward)
        logger.log(logging.INFO if is_compiled else logging.WARNING, "%s", reason)
        yield
    finally:
        torch.compiler.set_stance("eager_on_recompile")


def compile_layers(probe: Probe, forward: Forward) -> tuple[bool, str]:
    """Compile a model's repeated layers in place, if its scores stay right.

    Returns:
        Whether they are compiled, and why, for the log.

    Raises:
        torch.AcceleratorError: the GPU has failed.
    """
    model = probe.inputs.model
    layers = list(_find_layers(model))
    if forward.mode is not BatchMode.PACKED or not layers:
        return False, "layers are not compiled: the model has none that are repeated, or its batches are not packed"
    if (folder := make_folder("inductor")) is not None:
        os.environ.setdefault(_CACHE_VARIABLE, str(folder))
    AttentionInterface.register(PACKED_ATTENTION, _exclude(packed_attention))
    for module in model.modules():
        # Attention that replaces the model's own (relative_attention.py).
        if (replaced := vars(module).get("forward")) is not None:
            module.forward = _exclude(replaced)
    for layer in layers:
        layer.compile(backend=_BACKEND, dynamic=True)
    try:
        difference = check_forward(probe, _ServedForward(forward), probe.expected)
        for copies in _COPIES:
            give_way()
            with torch.inference_mode():
                forward.run(list(probe.texts) * copies)
    except torch.AcceleratorError:
        raise
    except Exception as error:
        for layer in layers:
            layer._compiled_call_impl = None
        return False, f"layers are not compiled: {probe.name} does not run so ({brief(error)})"
    return True, f"{len(layers)} layers are compiled: {probe.name} gives the same ({difference:.0e})"


def _exclude(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which is called from compiled code without being compiled."""
    excluded: Callable[..., Any] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return excluded


def _find_layers(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of the outermost lists of layers."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (layer for layer in child if any(isinstance(each, nn.Linear) for each in layer.modules()))
        else:
            yield from _find_layers(child)
