"""Pooling token vectors to one text vector, by the model's sentence-transformers files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn

from runners.core.answer_options import AnswerOptions
from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError
from runners.encoder.segments import Segments
from runners.encoder.tasks.prompts import Prompts
from runners.modeling.config_checks import check_inside
from runners.modeling.model_files import find_file, load_json

_MODE_BY_OLD_KEY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _mean_by_root(segments: Segments, hidden: Tensor) -> Tensor:
    """The sum over the tokens, divided by the square root of their number."""
    return segments.sum(hidden) / segments.offsets.diff().sqrt()[:, None]


def _weighted_mean(segments: Segments, hidden: Tensor) -> Tensor:
    """The mean of tokens that weigh 1, 2, 3 and so on."""
    weights = segments.number(hidden).float()
    lengths = segments.offsets.diff().float()
    return segments.sum(hidden, weights) / (lengths * (lengths + 1) / 2)[:, None]


_POOLINGS: dict[str, Callable[[Segments, Tensor], Tensor]] = {
    "cls": Segments.first,
    "lasttoken": Segments.last,
    "max": Segments.max,
    "mean": Segments.mean,
    "mean_sqrt_len_tokens": _mean_by_root,
    "weightedmean": _weighted_mean,
}


class Pooling:
    """The modules that sentence-transformers runs after the transformer."""

    def __init__(self, modes: Sequence[str], layers: Sequence[nn.Module], normalize: bool) -> None:
        """
        Args:
            modes: names of poolings; their vectors are concatenated.
            layers: the modules after the pooling, in order.
            normalize: whether the vector is scaled to length 1.

        Raises:
            ModelLoadError: a mode is unknown.
        """
        if unknown := [mode for mode in modes if mode not in _POOLINGS]:
            raise ModelLoadError(f"unknown pooling {unknown[0]!r}: there are {', '.join(_POOLINGS)}")
        self.name = ",".join(modes)
        self._poolings = [_POOLINGS[mode] for mode in modes]
        self._layers = list(layers)
        self.normalize = normalize

    def pool(self, hidden: Tensor, segments: Segments) -> Tensor:
        """The vector of each text, float32 [texts, dimensions], of the token vectors, [tokens, hidden]."""
        pooled = [pooling(segments, hidden).float() for pooling in self._poolings]
        vectors = torch.cat(pooled, dim=1) if len(pooled) > 1 else pooled[0]
        for layer in self._layers:
            vectors = _run_layer(layer, vectors)
        return nn.functional.normalize(vectors, dim=1) if self.normalize else vectors


def _run_layer(layer: nn.Module, vectors: Tensor) -> Tensor:
    """A module's output for each text: [texts, outputs], of [texts, inputs]."""
    if vectors.device.type == "cpu":
        # There a vector's bits would depend on how many there are.
        return torch.stack([layer(vector) for vector in vectors])
    outputs: Tensor = layer(vectors)
    return outputs


@dataclass(frozen=True, slots=True)
class SentenceTransformer:
    """The pooling and the prompts of a model's sentence-transformers files.

    Attributes:
        truncate_dim: vectors are cut to this many dimensions after all modules, and not normalized again.
        pools_prompts: whether the tokens of a prompt are pooled too.
    """

    pooling: Pooling
    truncate_dim: int | None = None
    prompts: Prompts = field(default_factory=Prompts)
    pools_prompts: bool = True


def load_sentence_transformer(arguments: Arguments, device: torch.device) -> SentenceTransformer:
    """Read modules.json and the files that it names; without it, normalized mean pooling.

    Raises:
        ModelLoadError: a module or setting is not supported, so that vectors would be wrong.
    """
    modules = load_json(arguments, "modules.json")
    if modules is None:
        return SentenceTransformer(Pooling(["mean"], [], normalize=True))
    _check_modules(modules)
    settings = load_json(arguments, "config_sentence_transformers.json") or {}
    prompts = Prompts.read(settings)
    pools_prompts = True
    modes: list[str] = []
    layers: list[nn.Module] = []
    normalize = False
    for module in modules:
        kind, folder = module["type"].rpartition(".")[2], module["path"]
        if normalize or (kind == "Pooling" and (modes or layers)) or (kind == "Dense" and not modes):
            raise ModelLoadError(f"modules.json has a {kind} in an unusual place, which this server does not run")
        match kind:
            case "Transformer" if folder:
                raise ModelLoadError(
                    f"modules.json has its Transformer in {folder}, and this server only supports the model's folder"
                )
            case "Transformer" | "Dropout":
                pass
            case "Pooling":
                config = load_json(arguments, f"{folder}/config.json") or {}
                modes = _read_modes(config)
                pools_prompts = bool(config.get("include_prompt", True))
                if not pools_prompts and prompts.find(AnswerOptions()):
                    raise ModelLoadError(f"{folder} pools without the prompt, which this server does not support")
            case "Dense":
                layers.append(_load_dense(arguments, folder).to(device))
            case "Normalize":
                _check_names(load_json(arguments, f"{folder}/config.json") or {}, folder)
                normalize = True
            case _:
                raise ModelLoadError(f"modules.json has a {kind}, which this server does not run")
    return SentenceTransformer(
        Pooling(modes or ["mean"], layers, normalize),
        truncate_dim=_read_truncate_dim(settings),
        prompts=prompts,
        pools_prompts=pools_prompts,
    )


def _check_modules(modules: Any) -> None:
    """Refuse a modules.json that is malformed or has modules from outside sentence-transformers."""
    if not isinstance(modules, list) or not all(
        isinstance(module, dict) and isinstance(module.get("type"), str) and isinstance(module.get("path"), str)
        for module in modules
    ):
        raise ModelLoadError("modules.json must be a list of modules with a type and a path each")
    for module in modules:
        if not module["type"].startswith("sentence_transformers."):
            raise ModelLoadError(f"modules.json has {module['type']}, whose code this server does not run")
        check_inside(module["path"], "modules.json")


def _check_names(config: Mapping[str, Any], folder: str) -> None:
    """Refuse a module whose input or output is not `sentence_embedding`."""
    names = {config.get(f"module_{end}_name") or "sentence_embedding" for end in ("input", "output")}
    if other := names - {"sentence_embedding"}:
        raise ModelLoadError(
            f"the module in {folder} reads or writes {other.pop()}; only sentence_embedding is supported"
        )


def _read_truncate_dim(settings: Mapping[str, Any]) -> int | None:
    dimensions = settings.get("truncate_dim")
    if dimensions is not None and (not isinstance(dimensions, int) or isinstance(dimensions, bool) or dimensions < 1):
        raise ModelLoadError(
            f"truncate_dim in config_sentence_transformers.json is {dimensions!r}, not a number of dimensions"
        )
    return dimensions


def _read_modes(config: dict[str, object]) -> list[str]:
    """sentence-transformers 6 writes `pooling_mode`; earlier releases wrote one boolean per mode."""
    match config.get("pooling_mode"):
        case str(mode):
            return [mode]
        case list(modes):
            return [str(mode) for mode in modes]
    return [mode for key, mode in _MODE_BY_OLD_KEY.items() if config.get(key)] or ["mean"]


def _load_dense(arguments: Arguments, folder: str) -> nn.Module:
    config = load_json(arguments, f"{folder}/config.json") or {}
    activation_name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = getattr(nn, activation_name.rpartition(".")[2], None)
    _check_names(config, folder)
    if not activation_name.startswith("torch.nn.") or activation is None or config.get("use_residual"):
        raise ModelLoadError(f"the Dense module in {folder} is of a form that this server does not run")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    weights = _load_weights(arguments, folder)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    if not all(torch.isfinite(weight).all() for weight in linear.parameters()):
        raise ModelLoadError(f"the weights of the Dense module in {folder} hold NaN or infinity")
    return nn.Sequential(linear, activation()).eval()


def _load_weights(arguments: Arguments, folder: str) -> dict[str, Tensor]:
    if (path := find_file(arguments, f"{folder}/model.safetensors")) is not None:
        # Not memory-mapped, since the file may change while the server runs.
        return load(path.read_bytes())
    if (path := find_file(arguments, f"{folder}/pytorch_model.bin")) is None:
        raise ModelLoadError(f"the Dense module in {folder} has no weights")
    if not arguments.allow_pickle:
        raise ModelLoadError(f"the Dense module in {folder} has only .bin weights: --allow_pickle loads them")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
