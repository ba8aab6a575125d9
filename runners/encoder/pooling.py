"""Token vectors to one text vector, by the model's own sentence-transformers files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from runners.arguments import Arguments
from runners.errors import ModelLoadError
from runners.loading import find_file, load_json

# sentence-transformers looks for the length and casing of its texts under all of these names.
_TRANSFORMER_FILES = tuple(
    f"sentence_{family}_config.json"
    for family in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_MODE_BY_OLD_KEY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


def _weighted_mean(hidden: Tensor) -> Tensor:
    weights = torch.arange(1, len(hidden) + 1, device=hidden.device, dtype=hidden.dtype)
    return weights @ hidden / weights.sum()


_POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "cls": lambda hidden: hidden[0],
    "lasttoken": lambda hidden: hidden[-1],
    "max": lambda hidden: hidden.max(dim=0).values,
    "mean": lambda hidden: hidden.mean(dim=0),
    "mean_sqrt_len_tokens": lambda hidden: hidden.sum(dim=0) / len(hidden) ** 0.5,
    "weightedmean": _weighted_mean,
}


class Pooling:
    """The modules that sentence-transformers runs after the transformer."""

    def __init__(self, modes: Sequence[str], layers: Sequence[nn.Module], normalize: bool) -> None:
        """
        Args:
            modes: names of poolings, their vectors concatenated.
            layers: what follows the pooling, in order.
            normalize: whether the vector gets length 1.
        """
        if unknown := [mode for mode in modes if mode not in _POOLINGS]:
            raise ModelLoadError(f"unknown pooling {unknown[0]!r}: there are {', '.join(_POOLINGS)}")
        self._poolings = [_POOLINGS[mode] for mode in modes]
        self._layers = list(layers)
        self.normalize = normalize

    def pool(self, hidden: Tensor) -> Tensor:
        """The vector of one text, float32 [dimensions], from its token vectors [tokens, hidden]."""
        hidden = hidden.float()
        vector = torch.cat([pooling(hidden) for pooling in self._poolings])
        for layer in self._layers:
            vector = layer(vector)
        return nn.functional.normalize(vector, dim=0) if self.normalize else vector


@dataclass(frozen=True, slots=True)
class SentenceTransformer:
    """What a model's sentence-transformers files say beyond the transformer itself.

    Attributes:
        max_length: longest text in tokens.
        lower_case: whether texts are lower-cased first.
        prompts: what can be put in front of every text, by name.
        default_prompt_name: the one that is where nobody names one.
        pools_prompts: whether the tokens of a prompt are pooled too.
    """

    pooling: Pooling
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    pools_prompts: bool = True


def load_sentence_transformer(arguments: Arguments, device: torch.device) -> SentenceTransformer:
    """Read modules.json and what it names; mean pooling to length 1 where a model has none.

    Raises:
        ModelLoadError: a module this server does not know, so that its vectors would be wrong.
    """
    modules = load_json(arguments, "modules.json")
    if modules is None:
        return SentenceTransformer(Pooling(["mean"], [], normalize=True))
    prompts, default_prompt_name = _read_prompts(arguments)
    pools_prompts = True
    modes: list[str] = []
    layers: list[nn.Module] = []
    normalize = False
    for module in modules:
        kind, folder = module["type"].rpartition(".")[2], module["path"]
        if normalize or (kind == "Pooling" and (modes or layers)) or (kind == "Dense" and not modes):
            raise ModelLoadError(f"modules.json has a {kind} in an unusual place, which this server does not run")
        match kind:
            case "Transformer" | "Dropout":
                pass
            case "Pooling":
                config = load_json(arguments, f"{folder}/config.json") or {}
                modes = _read_modes(config)
                pools_prompts = bool(config.get("include_prompt", True))
                if not pools_prompts and prompts.get(default_prompt_name or ""):
                    raise ModelLoadError(f"{folder} pools without the prompt, which this server does not do")
            case "Dense":
                layers.append(_load_dense(arguments, folder).to(device))
            case "Normalize":
                normalize = True
            case _:
                raise ModelLoadError(f"modules.json has a {kind}, which this server does not run")
    found = (load_json(arguments, filename) for filename in _TRANSFORMER_FILES)
    transformer: dict[str, Any] = next((config for config in found if config is not None), {})
    # What sentence-transformers 6 writes for a language model: where it says message, every text is made one.
    if "message" in transformer.get("modality_config", {}):
        raise ModelLoadError("its texts go through a chat template (modality_config), which this server does not do")
    return SentenceTransformer(
        Pooling(modes or ["mean"], layers, normalize),
        max_length=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case")),
        prompts=prompts,
        default_prompt_name=default_prompt_name,
        pools_prompts=pools_prompts,
    )


def _read_modes(config: dict[str, object]) -> list[str]:
    """sentence-transformers 6 writes `pooling_mode`; the releases before it wrote a boolean a mode."""
    match config.get("pooling_mode"):
        case str(mode):
            return [mode]
        case list(modes):
            return [str(mode) for mode in modes]
    return [mode for key, mode in _MODE_BY_OLD_KEY.items() if config.get(key)] or ["mean"]


def _read_prompts(arguments: Arguments) -> tuple[dict[str, str], str | None]:
    """The prompts by name, and the name of the default one, if there is one."""
    config = load_json(arguments, "config_sentence_transformers.json") or {}
    prompts = {str(name): str(prompt or "") for name, prompt in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ModelLoadError(f"default_prompt_name is {default!r}, which is none of the model's prompts")
    return prompts, default


def _load_dense(arguments: Arguments, folder: str) -> nn.Module:
    config = load_json(arguments, f"{folder}/config.json") or {}
    activation_name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = getattr(nn, activation_name.rpartition(".")[2], None)
    names = {config.get(f"module_{end}_name") or "sentence_embedding" for end in ("input", "output")}
    plain = names == {"sentence_embedding"}
    if not plain or not activation_name.startswith("torch.nn.") or activation is None or config.get("use_residual"):
        raise ModelLoadError(f"the Dense module in {folder} is of a form that this server does not run")
    linear = nn.Linear(config["in_features"], config["out_features"], bias=config.get("bias", True))
    weights = _load_weights(arguments, folder)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
    return nn.Sequential(linear, activation()).eval()


def _load_weights(arguments: Arguments, folder: str) -> dict[str, Tensor]:
    if (path := find_file(arguments, f"{folder}/model.safetensors")) is not None:
        return load_file(path)
    if (path := find_file(arguments, f"{folder}/pytorch_model.bin")) is None:
        raise ModelLoadError(f"the Dense module in {folder} has no weights")
    if not arguments.allow_pickle:
        raise ModelLoadError(f"the Dense module in {folder} has only .bin weights: --allow_pickle loads them")
    weights: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return weights
