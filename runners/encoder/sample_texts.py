"""Texts of ordinary words, with which a model is probed and warmed when it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from runners.core.device_thread import give_way
from runners.core.errors import InputError, ModelLoadError, brief
from runners.core.predictions import Options, TextInput
from runners.encoder.batch_mode import BatchMode
from runners.encoder.batch_trial import fill_batch, find_batch_tokens
from runners.encoder.forward import Forward, ModelInputs
from runners.encoder.forward_selection import select_forward
from runners.encoder.packing import ROW_MULTIPLE
from runners.encoder.probe import Probe, count_probe_words
from runners.encoder.sequences import EncodedText
from runners.encoder.tasks import EncoderTask
from runners.encoder.token_limits import TokenLimits, count_token_ids
from runners.encoder.tokenization import TextTokenizer
from runners.modeling.packed_linear import warm_linears

logger = logging.getLogger(__name__)

_WORDS = "the quick brown fox jumps over a lazy dog and runs away from it into the old forest"
# Tokens of the largest batch whose kernels are built when the model is loaded.
_WARM_ROWS = 64
_WARM_WORDS = (30,)


class SampleTexts:
    """Texts of ordinary words, as the model's tokenizer encodes them."""

    def __init__(
        self, encoder_task: EncoderTask, tokenizer: TextTokenizer, limits: TokenLimits, options: Options
    ) -> None:
        """
        Args:
            options: the texts are tokenized and answered with these.
        """
        self._task = encoder_task
        self._tokenizer = tokenizer
        self._limits = limits
        self._options = options

    def make_probe(self, inputs: ModelInputs, max_batch_tokens: int) -> Probe:
        """Run the stock model on texts.

        Raises:
            ModelLoadError: the model does not run.
        """
        task = self._task
        texts = [encoded.sequences[0] for encoded in self._encode(count_probe_words(task.config))]
        probe = Probe(inputs, texts, _find_ordinary_ids(task, inputs.model), max_batch_tokens)
        task.set_width(probe.expected[0].shape[-1])
        return probe

    def select_forward(self, probe: Probe) -> Forward:
        """Probe the forward passes, and log which one is selected and why.

        Raises:
            ModelLoadError: its scores are not finite.
        """
        forward, reason = select_forward(probe, self._task.tokenizer.padding_side)
        is_slow = forward.mode in (BatchMode.EQUAL_LENGTH, BatchMode.ONE_BY_ONE)
        logger.log(logging.WARNING if is_slow else logging.INFO, "%s", reason)
        return forward

    def find_batch_tokens(self, forward: Forward, max_batch_tokens: int, device: torch.device) -> int:
        """The most tokens of a batch that there is memory for; see `batch_trial.find_batch_tokens`.

        Raises:
            ModelLoadError: there is no memory for a small batch either.
        """
        [encoded] = self._encode([min(self._limits.max_length, max_batch_tokens)])
        text = encoded.sequences[0]

        @torch.inference_mode()
        def run(tokens: int) -> None:
            texts = fill_batch(text, tokens, forward.mode)
            self._task.compute_scores(*forward.run(texts), [self._options] * len(texts))

        return find_batch_tokens(run, max_batch_tokens, self._task.arguments.model_name, device)

    @torch.inference_mode()
    def warm_up(self, model: PreTrainedModel, forward: Forward) -> None:
        """Build the kernels of small batches now; otherwise the first requests would wait for them.

        Batches are multiples of `ROW_MULTIPLE` tokens. In a larger batch the time to build a kernel does not matter,
        and kernels that are never used cost memory and time.
        """
        warm_linears(model, range(ROW_MULTIPLE, _WARM_ROWS + 1, ROW_MULTIPLE))
        for encoded in self._encode(_WARM_WORDS):
            give_way()
            try:
                options = [self._options] * len(encoded.sequences)
                scores = self._task.compute_scores(*forward.run(encoded.sequences), options)
            except Exception as error:
                # The stock model may refuse it too, as Funnel refuses a text of two tokens.
                logger.debug("the model refuses a text to warm up with: %s", brief(error))
            else:
                pairs = zip(scores, encoded.sequences, strict=True)
                parts = [self._task.condense(rows, sequence, self._options) for rows, sequence in pairs]
                self._task.predict(parts, encoded, self._options)

    def _encode(self, lengths: Sequence[int]) -> list[EncodedText]:
        """Texts of these numbers of words: with a mask if the tokenizer has one, and as pairs if the task needs pairs.

        Texts with tokens that the model has no embedding for are left out: they would destroy a GPU's context.

        Raises:
            ModelLoadError: there is no text that the model can read.
        """
        task = self._task
        mask = "" if task.tokenizer.mask_token_id in self._limits.unreadable else task.tokenizer.mask_token or ""
        texts = []
        for words in lengths:
            text = " ".join([mask, *islice(cycle(_WORDS.split()), words)])
            texts.append(TextInput("where" if task.needs_pairs else text, text if task.needs_pairs else None))
        readable, refusal = [], None
        for encoded in self._tokenize(texts):
            try:
                self._limits.check(encoded)
            except InputError as error:
                refusal = error
            else:
                readable.append(encoded)
        if not readable:
            raise ModelLoadError(f"the tokenizer does not fit the model: in a text of ordinary words {refusal}")
        return readable

    def _tokenize(self, texts: Sequence[TextInput]) -> Sequence[EncodedText]:
        tokenize = partial(self._task.tokenize, self._tokenizer, texts, self._options)
        if not self._tokenizer.keeps_words:
            return tokenize()
        # This thread outlives the model, and would keep the words of each model that is loaded again.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(tokenize).result()


def _find_ordinary_ids(task: EncoderTask, model: PreTrainedModel) -> NDArray[np.int64]:
    """The token ids of ordinary texts, without special tokens: int64 [ids]."""
    tokenizer, rows = task.tokenizer, count_token_ids(model)
    vocabulary = {token for token in tokenizer.get_vocab().values() if rows is None or token < rows}
    # If the vocabulary has special tokens only, take these.
    return np.array(sorted(vocabulary - {*tokenizer.all_special_ids} or vocabulary), dtype=np.int64)
