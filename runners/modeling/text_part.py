"""The part of a model that embeds texts: the whole model, or the encoder of an encoder-decoder."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from runners.core.errors import ModelLoadError, brief


def encoder_class(auto_class: type[Any], config: PretrainedConfig | None) -> type[Any]:
    """The class that loads the encoder alone, as in sentence-transformers; the auto class if there is none.

    A checkpoint of an encoder alone, as sentence-transformers saves it, names this class. T5 and similar models have
    such a class for whole checkpoints too.
    """
    if auto_class is not AutoModel or config is None or hasattr(config, "auto_map"):
        return auto_class
    names = list(config.architectures or [])
    names.append(MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(config.model_type, ""))
    names = [name for name in names if name.endswith(("EncoderModel", "Encoder"))]
    if not names:
        return auto_class
    # `transformers` does not export all of these classes.
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    bare_encoder: type[Any] | None = next((getattr(module, name) for name in names if hasattr(module, name)), None)
    if bare_encoder is None:
        return auto_class
    # T5Gemma's encoder class accepts no other value.
    config.is_encoder_decoder = False
    return bare_encoder


def take_encoder(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder of a model with one config each for encoder and decoder; else the model itself."""
    encoder: PreTrainedModel = model.get_encoder() if "encoder" in model.config.sub_configs else model
    return encoder


def take_text_part(model: PreTrainedModel) -> PreTrainedModel:
    """The encoder, if the model is an encoder-decoder that does not run from text alone; else the model.

    As in sentence-transformers. BART and similar models run from text alone: their vectors are those of the decoder.

    Raises:
        ModelLoadError: the encoder does not run from text alone either.
    """
    model = take_encoder(model)
    if not model.config.is_encoder_decoder or _fails_on_text(model) is None:
        return model
    encoder: PreTrainedModel = model.get_encoder()
    if (reason := _fails_on_text(encoder)) is not None:
        raise ModelLoadError(f"{type(model).__name__} does not run from text alone, nor does its encoder: {reason}")
    return encoder


def _fails_on_text(model: PreTrainedModel) -> str | None:
    """Why a model does not run with token ids alone; None if it does."""
    if "input_ids" not in inspect.signature(model.forward).parameters:
        return f"it takes {model.main_input_name}"
    try:
        with torch.inference_mode():
            model(input_ids=torch.tensor([[0, 1]]))
    except Exception as error:
        return brief(error)
    return None
