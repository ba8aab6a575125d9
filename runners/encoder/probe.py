"""Texts that show how a model is to be run, and what the stock model says of each alone."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from runners.core.errors import ModelLoadError, brief
from runners.encoder.forward import ModelInputs
from runners.encoder.sequences import TokenizedText
from runners.modeling.attention import read_attention_windows
from runners.modeling.loading import count_positions

# Words of the texts that are tried; others are longer than what the model's attention reaches, up to a limit.
PROBE_WORDS = (1, 8, 24)
_MOST_PROBE_WORDS = 1100
_INPUTS_BESIDE_TEXT = ("bbox", "image", "pixel_values", "visual_embeds", "visual_feats")


def count_probe_words(config: PretrainedConfig) -> tuple[int, ...]:
    """The lengths, in words, of texts that show how a model of this config is to be run."""
    reach = max(read_attention_windows(config.get_text_config()))
    if not reach:
        return PROBE_WORDS
    # One that is read whole, and one that is not.
    return (*PROBE_WORDS, min(reach // 2, _MOST_PROBE_WORDS), min(reach + PROBE_WORDS[-1], _MOST_PROBE_WORDS))


class Probe:
    """Texts of unequal lengths that the stock model runs, and others to put in their places.

    Attributes:
        texts: those up to the length above which positions depend on the longest text of a batch.
        expected: what the stock model says of each: [rows, classes].
        long_texts: one above that length, if there is one, and another one as long.
        long_expected: the same of these.
        copies: how many of the texts make a batch of more tokens than the model has positions for a text; 1 where no
            batch is so large.
        refused: why the stock model does not run some of the texts that it was given; empty if it runs all.
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
            max_batch_tokens: budget of the batches that are served.
            texts: as the model's own tokenizer makes them; those that the stock model refuses are left out.
            ordinary_ids: token ids that texts are made of, which the model has embeddings for: int64 [ids].

        Raises:
            ModelLoadError: the stock model refuses all of them.
            torch.OutOfMemoryError: there is no memory to run one.
        """
        self.inputs = inputs
        self._ordinary_ids = ordinary_ids
        limit = inputs.rope.limit or np.inf
        self.refused = ""
        self.texts, self.expected = self._run_all([text for text in texts if len(text.input_ids) <= limit])
        long = [text for text in texts if len(text.input_ids) > limit][:1]
        self.long_texts, self.long_expected = self._run_all([*long, *map(self.replace, long)])
        if not self.texts:
            dtype, others = name_dtype(inputs), _name_other_inputs(inputs)
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
        """What the stock model says of each text alone: [rows, classes]."""
        return [self.inputs.run_alone(text) for text in texts]

    def replace(self, text: TokenizedText) -> TokenizedText:
        """Another text of the same length, with the same special tokens and masks."""
        return self._replace(text, ~np.isin(text.input_ids, self._ordinary_ids))

    def replace_all(self, text: TokenizedText) -> TokenizedText:
        """Another text of the same length, with the same masks, and no special tokens if the stock model runs such."""
        return self._replace_all(text) if self._runs_without_specials else self.replace(text)

    def _replace_all(self, text: TokenizedText) -> TokenizedText:
        return self._replace(text, text.input_ids == self.inputs.mask_token_id)

    def _replace(self, text: TokenizedText, kept: NDArray[np.bool_]) -> TokenizedText:
        # Drawn by the text, so that what replaces a replacement is another one.
        ids = np.random.default_rng(text.input_ids).choice(self._ordinary_ids, len(text.input_ids))
        ids[kept] = text.input_ids[kept]
        return replace(text, input_ids=ids)

    def _try_without_specials(self) -> bool:
        """Some classifiers want an end of text, for example."""
        try:
            self.run_alone([self._replace_all(self.texts[0])])
        except Exception:
            return False
        return True

    def _run_all(self, texts: Sequence[TokenizedText]) -> tuple[list[TokenizedText], list[Tensor]]:
        """The texts that the stock model runs, and what it says of them."""
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


def name_dtype(inputs: ModelInputs) -> str:
    """As `--dtype` has it."""
    return str(inputs.dtype).removeprefix("torch.")


def _name_other_inputs(inputs: ModelInputs) -> str:
    """What the model takes beside text, which may be what it lacks."""
    taken = inspect.signature(inputs.model.forward).parameters
    others = [name for name in _INPUTS_BESIDE_TEXT if name in taken]
    return f", it takes {' and '.join(others)} beside it" if others else ""
