"""Tokenizes the texts of a request in slices and queues them, a few batches ahead of the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from runners.core.errors import with_text_position
from runners.core.predictions import (
    LOGITS,
    PROBABILITIES,
    TOKEN_EMBEDDINGS,
    AnswerForm,
    Options,
    TextInput,
    TokenInput,
)
from runners.core.request_limits import RequestLimits
from runners.encoder.tokenizer_threads import SLICE_TEXTS, SliceWork

if TYPE_CHECKING:
    from runners.encoder.loaded_model import LoadedModel
    from runners.encoder.queue_entries import PendingRequest
    from runners.encoder.sequences import EncodedText
    from runners.encoder.tokenization import TextTokenizer

_SCORES = frozenset({LOGITS, PROBABILITIES, TOKEN_EMBEDDINGS})


class RequestTokenizer:
    """Tokenizes the texts of one request and puts them into the queue.

    The tokenizer threads also check and queue what they have tokenized, so that the event loop has no work per text. It
    does that itself for a few hundred characters in each of its iterations.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        request: PendingRequest,
        options: Options,
        limits: RequestLimits,
        on_queue: Callable[[Sequence[EncodedText]], None],
    ) -> None:
        """
        Args:
            limits: they bound the sequences of a request, and the numbers of its answer.
            on_queue: called with all texts that are queued, from any thread.
        """
        self._loaded = loaded
        self._request = request
        self._options = options
        self._sequences_per_text = loaded.encoder_task.count_sequences(options)
        self._limits = limits
        self._on_queue = on_queue
        self._lock = threading.Lock()
        self._sequences = 0
        self._numbers = 0

    async def run(self, texts: Sequence[TextInput | TokenInput]) -> None:
        """Return when all texts are queued, or the request is over.

        Args:
            texts: either all texts or all tokenized texts.

        Raises:
            InputError: a text cannot be served; the message names its position.
        """
        if isinstance(texts[0], TokenInput):
            await self._queue_token_inputs([text for text in texts if isinstance(text, TokenInput)])
            return
        items = [text for text in texts if isinstance(text, TextInput)]
        work = SliceWork(self._tokenize, self._put, lambda: self._request.abandoned, self._options)
        await self._loaded.tokenizer_threads.run(items, work, self._wait, self._sequences_per_text)

    async def _wait(self) -> bool:
        """Wait for room in the queue; whether the request goes on."""
        await self._loaded.queue.wait_for_room(self._request)
        return not self._request.abandoned

    def _tokenize(self, tokenizer: TextTokenizer, texts: Sequence[TextInput], first_position: int) -> list[EncodedText]:
        """Tokenize texts of requests with these options; called in a tokenizer thread, or in its place."""
        return self._loaded.encoder_task.tokenize(tokenizer, texts, self._options, first_position)

    async def _queue_token_inputs(self, texts: Sequence[TokenInput]) -> None:
        for start in range(0, len(texts), SLICE_TEXTS):
            if not await self._wait():
                return
            encoded_texts = []
            for position, text in enumerate(texts[start : start + SLICE_TEXTS], start):
                with with_text_position(position):
                    encoded_texts.append(self._loaded.token_limits.encode(text))
            self._put(start, encoded_texts)
            if start + SLICE_TEXTS < len(texts):
                await asyncio.sleep(0)

    def _put(self, start: int, encoded_texts: Sequence[EncodedText]) -> None:
        """Check texts, reserve memory for their answers, and queue them."""
        loaded, options = self._loaded, self._options
        for position, encoded in enumerate(encoded_texts, start):
            with with_text_position(position):
                loaded.encoder_task.check(encoded, options.answer)
                loaded.token_limits.check(encoded)
        numbers = sum(map(self._count_numbers, encoded_texts))
        self._count(sum(len(encoded.sequences) for encoded in encoded_texts), numbers)
        if numbers:
            loaded.queue.reserve(self._request, numbers)
        self._on_queue(encoded_texts)
        loaded.queue.put(self._request, start, encoded_texts, options)

    def _count_numbers(self, encoded: EncodedText) -> int:
        """How many numbers are kept for a text until it is answered."""
        task, options = self._loaded.encoder_task, self._options
        answers_scores = options.form is not AnswerForm.LABELS or options.outputs & _SCORES
        # The scores of windows are kept until the last window's are there.
        scores = task.count_scores(encoded.text) if answers_scores or encoded.kept_tokens else 0
        return scores + task.count_records(encoded.text, options)

    def _count(self, sequences: int, numbers: int) -> None:
        """
        Raises:
            LimitExceededError: the request has too many sequences or numbers.
        """
        with self._lock:
            self._sequences += sequences
            self._numbers += numbers
        what = "sequences of the model, which texts, labels and windows make"
        self._limits.check("max_request_sequences", self._sequences, what)
        what = "numbers of the answer, or scores of the vocabulary that it is made of,"
        self._limits.check("max_answer_numbers", self._numbers, what)
