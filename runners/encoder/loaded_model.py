"""Everything that exists once an encoder is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from runners.core.predictions import Options
from runners.core.predictor import Predictor, PredictorWatch
from runners.core.request_options import SupportedOptions
from runners.core.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from runners.encoder.forward import Forward
    from runners.encoder.intake import TokenizerLanes
    from runners.encoder.queue import BatchQueue
    from runners.encoder.tasks import Head
    from runners.encoder.token_limits import TokenLimits
    from runners.encoder.tokenization import TextTokenizer


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model, what runs it, and what waits for it."""

    task: Task
    model: PreTrainedModel
    head: Head
    default_options: Options
    supported_options: SupportedOptions
    tokenizer: TextTokenizer
    lanes: TokenizerLanes
    token_limits: TokenLimits
    forward: Forward
    queue: BatchQueue
    predictor: Predictor | None = None
    watch: PredictorWatch | None = None

    def close(self) -> None:
        """Fail what waits; what runs ends by itself."""
        self.lanes.close()
        self.queue.close()
