"""A loaded encoder and everything that runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runners.core.metrics import BatchMetrics
    from runners.core.predictions import Options
    from runners.core.predictor import Predictor, PredictorWatch
    from runners.core.request_options import SupportedOptions
    from runners.core.runner import RunnerDetails
    from runners.core.task import Task
    from runners.encoder.forward import Forward
    from runners.encoder.queue import BatchQueue
    from runners.encoder.tasks import EncoderTask
    from runners.encoder.token_limits import TokenLimits
    from runners.encoder.tokenization import TextTokenizer
    from runners.encoder.tokenizer_threads import TokenizerThreads


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, its task and tokenizer, the forward pass that runs it, and the queue of waiting texts.

    Attributes:
        model: on the meta device if a predictor runs it.
        default_options: the options of a request that sets none.
        predictor: the connection to the predictor; None if the model runs in this process.
        watch: polls whether the predictor is ready; None unless its health check is enabled.
    """

    task: Task
    model: PreTrainedModel
    encoder_task: EncoderTask
    default_options: Options
    supported_options: SupportedOptions
    tokenizer: TextTokenizer
    tokenizer_threads: TokenizerThreads
    token_limits: TokenLimits
    forward: Forward
    queue: BatchQueue
    metrics: BatchMetrics
    details: RunnerDetails
    predictor: Predictor | None = None
    watch: PredictorWatch | None = None

    def close(self) -> None:
        """Fail the waiting requests; the batch that runs ends normally."""
        self.tokenizer_threads.close()
        self.queue.close()
