"""Every model type that `transformers` registers for text generation, and what scales positions or limits attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.models.auto import modeling_auto

_CAUSAL = dict(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
_SEQ2SEQ = dict(modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
# Where rotary positions change: most texts of the comparison cross it.
ORIGINAL_POSITIONS = 40
_LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [4.0, 3.0, 2.0, 6.0],
    "original_max_position_embeddings": ORIGINAL_POSITIONS, "factor": 4.0,
}  # fmt: skip
_LLAMA3 = {
    "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": ORIGINAL_POSITIONS,
}  # fmt: skip
_SCALINGS: dict[str, dict[str, Any]] = {
    "dynamic": {"max_position_embeddings": ORIGINAL_POSITIONS, "rope": {"rope_type": "dynamic", "factor": 4.0}},
    "linear": {"max_position_embeddings": ORIGINAL_POSITIONS, "rope": {"rope_type": "linear", "factor": 4.0}},
    "llama3": {"rope": _LLAMA3},
    "longrope": {"rope": _LONGROPE},
    "yarn": {"rope": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL_POSITIONS}},
}
_PHI_MOE = {"short_mscale": 1.2, "long_mscale": 1.4}
_WINDOWED = {"use_sliding_window": True, "max_window_layers": 1}


@dataclass(frozen=True, slots=True, order=True)
class Family:
    """A model type, and what its config has beside what is tiny.

    Attributes:
        has_encoder: an encoder-decoder; a few types are registered as both.
        variant: of positions or windows; empty for the type's own.
    """

    model_type: str
    has_encoder: bool
    variant: str = ""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        parts = [self.model_type, "seq2seq" if self.has_encoder else "causal", self.variant]
        return "-".join(part for part in parts if part)

    @property
    def auto_class(self) -> Any:
        return AutoModelForSeq2SeqLM if self.has_encoder else AutoModelForCausalLM


def registered_families() -> list[Family]:
    """All registered types, and the variants of a few, in a fixed order."""
    families = [Family(model_type, False) for model_type in _CAUSAL]
    families += [Family(model_type, True) for model_type in _SEQ2SEQ]
    return sorted([*families, *_variants()])


def _variants() -> list[Family]:
    scaled = {
        "llama": tuple(_SCALINGS), "qwen2": ("dynamic", "yarn"), "phi3": ("longrope",), "phimoe": ("longrope",),
        "gpt_neox": ("dynamic", "linear"), "mistral": ("longrope", "dynamic"), "minicpm3": ("longrope",),
    }  # fmt: skip
    families = []
    for model_type, names in scaled.items():
        for name in names:
            settings = dict(_SCALINGS[name])
            rope = dict(settings.pop("rope"), **_PHI_MOE if model_type == "phimoe" else {})
            # Of the few dimensions of a tiny head all are turned.
            config = {**settings, "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 1.0, **rope}}
            if name == "longrope" and model_type in ("phi3", "phimoe"):
                config["original_max_position_embeddings"] = ORIGINAL_POSITIONS
            families.append(Family(model_type, False, name, config))
    families += [Family(model_type, False, "windows", _WINDOWED) for model_type in ("qwen2", "qwen3")]
    return families
