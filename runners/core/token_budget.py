"""How many tokens a batch may have, which becomes less if memory runs out."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


class TokenBudget:
    """The most tokens of a batch.

    Attributes:
        tokens: the number now; any thread may read it.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._failed = 0

    def record_out_of_memory(self, tokens: int, device: str) -> None:
        """Record that memory ran out in a batch that could be smaller; from the second time on, halve the budget.

        Memory may run out once because another process took it for a while.

        Args:
            tokens: of the batch. One that was made before the budget was halved does not count.
            device: its name in the log.
        """
        self._failed += 1
        before = self.tokens
        if self._failed == 1 or before == 1 or tokens > before:
            return
        self.tokens = before // 2
        logger.warning(
            "memory of %s has run out again, in a batch of %d tokens: from now on batches have at most %d tokens, not "
            "%d; set --max_batch_tokens=%d to start so", device, tokens, self.tokens, before, self.tokens
        )  # fmt: skip
