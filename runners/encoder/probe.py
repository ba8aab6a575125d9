"""Probe texts, and the stock model's scores of each text alone."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from runners.core.device_thread import give_way
from runners.core.errors import ModelLoadError, brief
from runners.encoder.forward import ModelInputs
from runners.encoder.sequences import TokenizedText
from runners.modeling.attention import read_attention_windows, read_chunks
from runners.modeling.dtypes import name_dtype
from runners.modeling.max_length import count_positions

# Lengths of the probe texts in words. With a window or chunks, longer texts are added, up to a limit.
PROBE_WORDS = (1, 8, 24)
_MOST_PROBE_WORDS = 1100
_INPUTS_BESIDE_TEXT = ("bbox", "image", "pixel_values", "visual_embeds", "visual_feats")


def count_probe_words(config: PretrainedConfig) -> tuple[int, ...]:
    """The lengths of the probe texts for a model with this config, in words."""
    text_config = config.get_text_config()
    window = max([*read_attention_windows(text_config), *read_chunks(text_config)])
    if not window:
        return PROBE_WORDS
    # One text that fits into the window, and one that does not.
    return (*PROBE_WORDS, min(window // 2, _MOST_PROBE_WORDS), min(window + PROBE_WORDS[-1], _MOST_PROBE_WORDS))


class Probe:
    """Texts of different lengths that the stock model runs, and replacements for them.

    Attributes:
        texts: the texts up to the rotary limit, above which positions depend on the longest text of a batch.
        expected: the stock model's scores of each of these texts: [rows, classes] each.
        long_texts: one text above the rotary limit, if there is one, and its replacement.
        long_expected: the stock model's scores of the long texts: [rows, classes] each.
        copies: how often `texts` are repeated in a batch that has more tokens than the model has positions; 1 if no
            batch is so large.
        refused: why the stock model refuses some of the texts; empty if it runs all.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        texts: Sequence[TokenizedText],
        ordinary_ids: NDArray[np.int64],
        max_batch_tokens: int,
    ) -> None:
        """
        Args:
            texts: as the model's tokenizer encodes them; texts that the stock model refuses are left out.
            ordinary_ids: int64 [ids], ids of tokens that are not special and that the model has embeddings for.
            max_batch_tokens: the largest batch that is served, in tokens.

        Raises:
            ModelLoadError: the stock model refuses all texts.
            torch.OutOfMemoryError: there is not enough memory to run a text.
        """
        self.inputs = inputs
        self._ordinary_ids = ordinary_ids
        limit = inputs.rope.limit or np.inf
        self.refused = ""
        self.texts, self.expected = self._run_all([text for text in texts if len(text.input_ids) <= limit])
        long = [text for text in texts if len(text.input_ids) > limit][:1]
        self.long_texts, self.long_expected = self._run_all([*long, *map(self.replace, long)])
        if not self.texts:
            dtype, others = name_dtype(inputs.dtype), _name_other_inputs(inputs)
            raise ModelLoadError(f"{self.name} does not run with text alone in {dtype}{others}: {self.refused}")
        self._runs_without_specials = self._try_without_specials()
        positions = count_positions(inputs.model) or max_batch_tokens
        tokens = sum(len(text.input_ids) for text in self.texts)
        self.copies = 1 if positions >= max_batch_tokens else positions // tokens + 1

    @property
    def name(self) -> str:
        return type(self.inputs.model).__name__

    @torch.inference_mode()
    def run_alone(self, texts: Sequence[TokenizedText]) -> list[Tensor]:
        """The stock model's scores of each text alone: [rows, classes] each."""
        scores = []
        for text in texts:
            give_way()
            scores.append(self.inputs.run_alone(text))
        return scores

    def replace(self, text: TokenizedText) -> TokenizedText:
        """Another text of the same length, with the same special tokens and masks."""
        return self._replace(text, ~np.isin(text.input_ids, self._ordinary_ids))

    def replace_all(self, text: TokenizedText) -> TokenizedText:
        """Another text of the same length and masks, without special tokens if the stock model allows that."""
        return self._replace_all(text) if self._runs_without_specials else self.replace(text)

    def _replace_all(self, text: TokenizedText) -> TokenizedText:
        return self._replace(text, text.input_ids == self.inputs.mask_token_id)

    def _replace(self, text: TokenizedText, kept: NDArray[np.bool_]) -> TokenizedText:
        # Seeded by the text, so that the replacement of a replacement is another text.
        ids = np.random.default_rng(text.input_ids).choice(self._ordinary_ids, len(text.input_ids))
        ids[kept] = text.input_ids[kept]
        return replace(text, input_ids=ids)

    def _try_without_specials(self) -> bool:
        """Whether the stock model runs a text without special tokens; some classifiers need an end-of-text token."""
        try:
            self.run_alone([self._replace_all(self.texts[0])])
        except Exception:
            return False
        return True

    def _run_all(self, texts: Sequence[TokenizedText]) -> tuple[list[TokenizedText], list[Tensor]]:
        """The texts that the stock model runs, and their scores."""
        ran, scores = [], []
        for text in texts:
            try:
                scores += self.run_alone([text])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self.refused = self.refused or brief(error)
            else:
                ran.append(text)
        return ran, scores


def _name_other_inputs(inputs: ModelInputs) -> str:
    """The inputs other than text that the model takes: perhaps it needs one of them."""
    parameter_names = inspect.signature(inputs.model.forward).parameters
    others = [name for name in _INPUTS_BESIDE_TEXT if name in parameter_names]
    return f", it takes {' and '.join(others)} beside it" if others else ""
