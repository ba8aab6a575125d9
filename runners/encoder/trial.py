"""Texts that a model is tried and warmed with when it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from runners.core.errors import InputError, ModelLoadError, brief
from runners.core.predictions import Options, TextInput
from runners.encoder.forward import Forward, ModelInputs
from runners.encoder.forward_choice import choose_forward
from runners.encoder.packing import ROW_MULTIPLE
from runners.encoder.probe import Probe, count_probe_words
from runners.encoder.queue import BatchMode
from runners.encoder.sequences import Reading
from runners.encoder.tasks import Head
from runners.encoder.token_limits import TokenLimits, count_token_ids
from runners.encoder.tokenization import TextTokenizer
from runners.modeling.packed_linear import warm_linears

logger = logging.getLogger(__name__)

_WORDS = "the quick brown fox jumps over a lazy dog and runs away from it into the old forest"
# Tokens of the largest batch whose kernels are built when the model is loaded.
_WARM_ROWS = 128
_WARM_WORDS = (1, 30, 100)


class Trial:
    """Texts of ordinary words for one model, as its own tokenizer makes them."""

    def __init__(self, head: Head, tokenizer: TextTokenizer, limits: TokenLimits, options: Options) -> None:
        """
        Args:
            options: what the texts are read and answered with.
        """
        self._head = head
        self._tokenizer = tokenizer
        self._limits = limits
        self._options = options

    def choose_forward(self, inputs: ModelInputs, max_batch_tokens: int) -> Forward:
        """Try the forward passes, and log which one the model gets and why.

        Raises:
            ModelLoadError: the model does not run, or its scores are not finite.
        """
        head = self._head
        texts = [reading.sequences[0] for reading in self._read(count_probe_words(head.config))]
        probe = Probe(inputs, texts, _find_ordinary_ids(head, inputs.model), max_batch_tokens)
        head.learn_width(probe.expected[0].shape[-1])
        forward, reason = choose_forward(probe, head.tokenizer.padding_side)
        slow = forward.mode in (BatchMode.EQUAL_LENGTH, BatchMode.ONE_BY_ONE)
        logger.log(logging.WARNING if slow else logging.INFO, "%s", reason)
        return forward

    @torch.inference_mode()
    def warm_up(self, model: PreTrainedModel, forward: Forward) -> None:
        """Let kernels be built that the first requests would wait for.

        Tokens come in multiples. A larger batch takes so long that its kernels' first use is not noticed, and kernels
        that are never used are memory and time.
        """
        warm_linears(model, range(ROW_MULTIPLE, _WARM_ROWS + 1, ROW_MULTIPLE))
        for reading in self._read(_WARM_WORDS):
            try:
                scores = self._head.read(*forward.run(reading.sequences))
            except Exception as error:
                # The stock model may refuse it too, as Funnel refuses a text of two tokens.
                logger.debug("a text to warm up with was refused: %s", brief(error))
            else:
                pairs = zip(scores, reading.sequences, strict=True)
                parts = [self._head.condense(rows, sequence, self._options) for rows, sequence in pairs]
                self._head.predict(parts, reading, self._options)

    def _read(self, lengths: Sequence[int]) -> list[Reading]:
        """Texts of so many words, the second ones of pairs where the task needs pairs, with a mask if there is one.

        Only those that the model has embeddings for: others would end a GPU's context.

        Raises:
            ModelLoadError: it has none for any of them.
        """
        head = self._head
        mask = "" if head.tokenizer.mask_token_id in self._limits.unreadable else head.tokenizer.mask_token or ""
        texts = []
        for words in lengths:
            text = " ".join([mask, *islice(cycle(_WORDS.split()), words)])
            texts.append(TextInput("where" if head.needs_pairs else text, text if head.needs_pairs else None))
        readable, refusal = [], None
        for reading in head.tokenize(self._tokenizer, texts, self._options):
            try:
                self._limits.check(reading)
            except InputError as error:
                refusal = error
            else:
                readable.append(reading)
        if not readable:
            raise ModelLoadError(f"the tokenizer does not fit the model: in a text of ordinary words {refusal}")
        return readable


def _find_ordinary_ids(head: Head, model: PreTrainedModel) -> NDArray[np.int64]:
    """The token ids that texts are made of, without special ones: int64 [ids]."""
    tokenizer, rows = head.tokenizer, count_token_ids(model)
    vocabulary = {token for token in tokenizer.get_vocab().values() if rows is None or token < rows}
    # A vocabulary of special tokens alone has no others.
    return np.array(sorted(vocabulary - {*tokenizer.all_special_ids} or vocabulary), dtype=np.int64)
