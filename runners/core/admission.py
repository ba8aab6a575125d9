"""Which requests a generator takes: as many as are under way, and as much as waits before the model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from runners.core.errors import OverloadedError
from runners.core.request_limits import RequestLimits

_RETRY_SECONDS = 1.0


class Admission:
    """Counts requests from before their prompts are tokenized until they are answered; of one event loop.

    Attributes:
        requests: how many are under way.
        characters: of prompts that are not tokenized yet.
        tokens: of prompts that wait for the model, once for each of their outputs.
        logprobs: log probabilities that requests under way have asked for.
    """

    def __init__(self, limits: RequestLimits) -> None:
        self.requests = 0
        self.characters = 0
        self.tokens = 0
        self.logprobs = 0
        self._limits = limits

    @contextlib.contextmanager
    def admit(self, characters: int = 0) -> Iterator[Admitted]:
        """Let a request in for as long as the context lasts.

        Args:
            characters: of its prompts.

        Raises:
            OverloadedError: too many requests are under way, or too much waits.
        """
        limits = self._limits
        if self.requests >= limits.max_concurrent_requests:
            raise OverloadedError(
                f"the server is busy with {self.requests} requests, which is the most it takes "
                "(max_concurrent_requests); try again later",
                _RETRY_SECONDS,
            )
        if self.characters and self.characters + characters > limits.max_queue_characters:
            raise _overloaded(self.characters, "characters", "max_queue_characters", limits.max_queue_characters)
        if self.tokens >= limits.max_queue_tokens:
            raise _overloaded(self.tokens, "tokens", "max_queue_tokens", limits.max_queue_tokens)
        admitted = Admitted(self, characters)
        self.requests += 1
        self.characters += characters
        try:
            yield admitted
        finally:
            self.requests -= 1
            admitted.leave()

    def check(self, tokens: int, logprobs: int) -> None:
        """
        Raises:
            LimitExceededError: a request has more tokens than may wait at all.
            OverloadedError: too many wait already, or so many log probabilities are too much memory.
        """
        most = self._limits.max_queue_tokens
        self._limits.check("max_queue_tokens", tokens, "tokens of prompts, each times its outputs,")
        if self.tokens + tokens > most:
            raise _overloaded(self.tokens, "tokens", "max_queue_tokens", most)
        most = self._limits.max_answer_numbers
        if logprobs and self.logprobs + logprobs > most:
            raise _overloaded(self.logprobs, "log probabilities", "max_answer_numbers", most)


class Admitted:
    """A request of a client that is under way; its outputs share the model's time with those of others.

    Attributes:
        on_queued: is called for each output that waits for the model from then on.
    """

    def __init__(self, admission: Admission, characters: int) -> None:
        self.on_queued: Callable[[], None] = _nothing
        self._admission = admission
        self._characters = characters
        self._tokens = 0
        self._logprobs = 0

    def queue(self, tokens: int, logprobs: int = 0) -> None:
        """The prompts are tokenized, and wait with so many tokens, each prompt's counted once for each output.

        Args:
            logprobs: how many log probabilities the request asks for.

        Raises:
            LimitExceededError, OverloadedError: as `Admission.check`.
        """
        self._forget_characters()
        self._admission.check(tokens, logprobs)
        self._admission.logprobs += logprobs
        self._logprobs += logprobs
        self._admission.tokens += tokens
        self._tokens += tokens

    def start(self, tokens: int) -> None:
        """So many of them wait no more: an output has begun."""
        tokens = min(tokens, self._tokens)
        self._admission.tokens -= tokens
        self._tokens -= tokens

    def leave(self) -> None:
        """Nothing of it waits any more, and its answer has been made."""
        self._forget_characters()
        self.start(self._tokens)
        self._admission.logprobs -= self._logprobs
        self._logprobs = 0

    def _forget_characters(self) -> None:
        self._admission.characters -= self._characters
        self._characters = 0


def _overloaded(count: int, what: str, argument: str, limit: int) -> OverloadedError:
    return OverloadedError(
        f"{count} {what} of other requests are under way, and --{argument} allows {limit}; try again later",
        _RETRY_SECONDS,
    )


def _nothing() -> None:
    """Nobody wants to know."""
