"""Pooling the scores of tokens to one number for each entry of the vocabulary, by the files of a SparseEncoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError
from runners.encoder.segments import Segments
from runners.encoder.tasks.prompts import Prompts
from runners.modeling.config_checks import check_inside
from runners.modeling.model_files import load_json

_STRATEGIES = ("max", "sum")
# How often log(1 + x) is applied.
_LOGARITHMS = {"relu": 1, "log1p_relu": 2}
_TRANSFORMERS = ("Transformer", "MLMTransformer")


@dataclass(frozen=True, slots=True)
class SparsePooling:
    """SPLADE's pooling: log(1 + relu(score)) of each token, and the maximum or the sum over the tokens.

    Attributes:
        sums: whether the tokens are summed.
        logarithms: how often log(1 + x) is applied.
    """

    sums: bool = False
    logarithms: int = 1

    def start(self, texts: int, scores: Tensor) -> Tensor:
        """See `TokenPooling.start`."""
        shape = (texts, scores.shape[-1])
        if self.sums:
            return scores.new_zeros(shape, dtype=torch.float32)
        return scores.new_full(shape, -torch.inf)

    def add(self, pooled: Tensor, scores: Tensor, segments: Segments) -> None:
        """See `TokenPooling.add`."""
        if self.sums:
            pooled += segments.sum(self._activate(scores.float()))
        else:
            # The activation grows with the score, so that it is applied to the maximum alone.
            torch.maximum(pooled, segments.max(scores), out=pooled)

    def finish(self, pooled: Tensor) -> Tensor:
        """float32 [texts, vocabulary]."""
        return pooled if self.sums else self._activate(pooled.float())

    def _activate(self, scores: Tensor) -> Tensor:
        """In place: the scores may take a gigabyte."""
        for _ in range(self.logarithms):
            scores.relu_().log1p_()
        return scores


@dataclass(frozen=True, slots=True)
class SparseEncoderFiles:
    """What a model's sentence-transformers files say.

    Attributes:
        max_active_dims: most numbers of a text that are not 0; None for all.
    """

    pooling: SparsePooling = SparsePooling()
    prompts: Prompts = field(default_factory=Prompts)
    max_active_dims: int | None = None


def load_sparse_encoder(arguments: Arguments) -> SparseEncoderFiles:
    """Read modules.json and the files that it names; without it, the maximum, as sentence-transformers has it.

    Raises:
        ModelLoadError: a module or setting is not supported, so that numbers would be wrong.
    """
    modules = load_json(arguments, "modules.json")
    if modules is None:
        return SparseEncoderFiles()
    match modules:
        case [
            {"type": str(transformer), "path": ""},
            {"type": str(pooling), "path": str(folder)},
        ] if _kind(transformer) in _TRANSFORMERS and _kind(pooling) == "SpladePooling":
            check_inside(folder, "modules.json")
        case _:
            kinds = ", ".join(_kind(module.get("type")) for module in modules if isinstance(module, Mapping))
            raise ModelLoadError(
                f"modules.json has {kinds or 'no modules'}; sparse_embedding runs a Transformer in the model's folder "
                "and a SpladePooling"
            )
    settings = load_json(arguments, "config_sentence_transformers.json") or {}
    most = settings.get("max_active_dims")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ModelLoadError(
            f"max_active_dims in config_sentence_transformers.json is {most!r}, not a number of dimensions"
        )
    config = load_json(arguments, f"{folder}/config.json") or {}
    return SparseEncoderFiles(_read_pooling(config, folder), Prompts.read(settings), most)


def _kind(module_type: object) -> str:
    """The last part of the name of a module's class."""
    return str(module_type).rpartition(".")[2]


def _read_pooling(config: Mapping[str, Any], folder: str) -> SparsePooling:
    strategy = config.get("pooling_strategy", "max")
    activation = config.get("activation_function", "relu")
    if strategy not in _STRATEGIES or activation not in _LOGARITHMS:
        raise ModelLoadError(
            f"{folder}/config.json has pooling_strategy {strategy!r} and activation_function {activation!r}; there are "
            f"{' and '.join(_STRATEGIES)}, and {' and '.join(_LOGARITHMS)}"
        )
    return SparsePooling(strategy == "sum", _LOGARITHMS[activation])
