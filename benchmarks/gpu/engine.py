"""The engine without a server: queue, device thread, worker and forward pass, fed with texts that are tokenized.

It needs torch and transformers alone: a task that answers with scores replaces the tasks, and plain objects replace
arguments, limits and metrics, which need other libraries.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from runners.core.device_thread import DeviceThread
from runners.encoder.forward import Forward, ModelInputs, TokenSelection
from runners.encoder.forward_selection import select_forward
from runners.encoder.graphs import GraphCapturer, capture_graphs
from runners.encoder.loaded_model import LoadedModel
from runners.encoder.probe import Probe
from runners.encoder.queue import MAX_BATCH_TEXTS, BatchQueue
from runners.encoder.sequences import EncodedText, TokenizedText
from runners.encoder.worker import ModelWorker

# Below it are special tokens.
FIRST_ORDINARY = 10
# No text here has a mask.
_NO_MASK = -1
_PROBE_LENGTHS = (7, 60, 21, 2)
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}
_ARGUMENTS = SimpleNamespace(model_name="model")
_NO_LIMIT = 2**62
_LIMITS = SimpleNamespace(
    max_concurrent_requests=_NO_LIMIT,
    max_queue_characters=_NO_LIMIT,
    max_queue_tokens=_NO_LIMIT,
    max_answer_numbers=_NO_LIMIT,
)


class _Uncounted:
    """Metrics that nobody reads."""

    model_name = "model"

    def __getattr__(self, name: str) -> Any:
        return self

    def __call__(self, *_: object) -> None:
        """Count nothing."""


class _ScoresTask:
    """Answers with a text's scores; of an embedder with the mean of its tokens' vectors."""

    arguments = _ARGUMENTS

    def __init__(self, means: bool, device: torch.device) -> None:
        self._means = means
        self._device = device

    def reduce_rows(self, rows: Tensor, counts: Sequence[int], _: object) -> Tensor:
        if not self._means:
            return rows.float()
        lengths = torch.tensor(counts, pin_memory=self._device.type == "cuda").to(self._device, non_blocking=True)
        # Without `unsafe` it reads the lengths on the host, and waits for the device.
        return torch.segment_reduce(rows.float(), "mean", lengths=lengths, unsafe=True)

    def split_scores(
        self, scores: NDArray[np.float32], counts: Sequence[int], _: object
    ) -> Sequence[NDArray[np.float32]]:
        return np.split(scores, len(counts) if self._means else np.cumsum(counts)[:-1])

    def condense(self, scores: NDArray[np.float32], *_: object) -> NDArray[np.float32]:
        return scores

    def predict(self, parts: Sequence[NDArray[np.float32]], *_: object) -> NDArray[np.float32]:
        return parts[0]

    def count_numbers(self, _: object) -> int:
        return 0


def make_texts(lengths: Sequence[int], vocabulary: int, seed: int = 0) -> list[TokenizedText]:
    """Texts of these lengths, of random tokens."""
    random = np.random.default_rng(seed)
    ids = [random.integers(FIRST_ORDINARY, vocabulary, length) for length in lengths]
    return [TokenizedText(each, np.zeros_like(each), None, False) for each in ids]


class Engine:
    """One model with its queue and its thread.

    Attributes:
        forward: the forward pass that was selected, and `reason`, why.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        is_embedder: bool,
        max_batch_tokens: int,
        use_graphs: bool = True,
        worker: type[ModelWorker] = ModelWorker,
    ) -> None:
        """
        Args:
            model: on its device.
            use_graphs: whether CUDA graphs are captured; on a CPU there are none.
            worker: runs the batches.
        """
        self.model = model
        self._is_embedder = is_embedder
        self._max_batch_tokens = max_batch_tokens
        self._use_graphs = use_graphs and model.device.type == "cuda"
        self.forward: Forward
        self.reason = ""
        self.device = DeviceThread()
        self.device.run(self._select).result()
        queue = BatchQueue(max_batch_tokens, cast(Any, _LIMITS), cast(Any, _Uncounted()), self.device.changed)
        anything = cast(Any, SimpleNamespace(close=lambda: None))
        self.loaded = LoadedModel(
            task=anything, model=model, encoder_task=cast(Any, _ScoresTask(is_embedder, model.device)),
            default_options=anything, supported_options=anything, tokenizer=anything, tokenizer_threads=anything,
            token_limits=anything, forward=self.forward, queue=queue, metrics=cast(Any, _Uncounted()),
            details=cast(Any, SimpleNamespace(device=str(model.device))),
        )  # fmt: skip
        self._worker = worker(self.loaded, lambda _: None)
        self.device.attach(self._worker)

    def _select(self) -> None:
        """As loader.py does; called in the device thread."""
        model = self.model
        vocabulary = int(model.config.vocab_size)
        names = frozenset({*inspect.signature(model.forward).parameters} & _INPUTS)
        selection = TokenSelection.ALL if self._is_embedder else TokenSelection.FIRST
        inputs = ModelInputs(model, names, selection, _NO_MASK, int(model.config.pad_token_id or 0))
        texts = make_texts(_PROBE_LENGTHS, vocabulary)
        probe = Probe(inputs, texts, np.arange(FIRST_ORDINARY, vocabulary), self._max_batch_tokens)
        self.forward, self.reason = select_forward(probe, "right")
        if self._use_graphs:
            longest = int(getattr(model.config, "max_position_embeddings", 512))
            self.forward, said = capture_graphs(
                self.forward, probe, GraphCapturer(model.device), self._max_batch_tokens, MAX_BATCH_TEXTS, longest
            )
            self.reason += f"; {said}"

    async def infer(self, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
        """The scores of each text, or an embedder's vectors: float32 [rows, classes] each."""
        queue = self.loaded.queue
        request = queue.admit(len(texts), 0)
        try:
            queue.put(request, 0, [EncodedText(text, [text]) for text in texts], cast(Any, None))
            return cast(list[NDArray[np.float32]], await request.result)
        finally:
            queue.release(request)

    def ask(self, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
        """As `infer`, without an event loop."""
        return asyncio.run(self.infer(texts))

    @torch.inference_mode()
    def run(self, texts: Sequence[TokenizedText]) -> None:
        """The forward pass of a batch, without the queue."""
        self.forward.run(texts)

    def close(self) -> None:
        """End the thread, and free the graphs."""
        self.device.detach(self._worker)
        self.device.close()
        self.forward.detach()
