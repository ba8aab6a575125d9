"""Admission of requests: how many may be under way, and how much they may hold together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from runners.core.errors import OverloadedError

if TYPE_CHECKING:
    from runners.core.request_limits import RequestLimits

# Requests that are under way on a model that is unloaded get this long to end.
_UNLOAD_SECONDS = 20.0
_POLL_SECONDS = 0.02


class Budget:
    """An amount that all requests under way hold together, up to a limit; not thread-safe.

    Attributes:
        held: the amount that they hold now.
    """

    def __init__(self, limit: int, noun: str, argument: str) -> None:
        """
        Args:
            noun: what is counted, and `argument`, which sets the limit; both are for errors.
        """
        self.held = 0
        self.limit = limit
        self._noun = noun
        self._argument = argument

    def check(self, amount: int, retry_after: Callable[[], float], held_by_request: int = 0) -> None:
        """Refuse an amount beyond the limit. A request alone is not refused: the limits of one request bound it.

        Args:
            retry_after: seconds after which the client may try again.
            held_by_request: the part of `held` that the request itself holds.

        Raises:
            OverloadedError: the amount would exceed the limit, and other requests hold a part of it.
        """
        if self.held > held_by_request and self.held + amount > self.limit:
            raise OverloadedError(
                f"the requests under way have {self.held} {self._noun}; {amount} more would exceed the {self.limit} "
                f"that {self._argument} allows; try again later",
                retry_after(),
            )


class Admission:
    """Counts the requests of a model and what they hold; used by one event loop.

    Attributes:
        requests: number of requests under way.
        characters: the budget of characters. A generator's texts count until they are tokenized, an encoder's until
            the request is over.
        tokens: the budget of tokens that wait for the model; a generator's prompts count once for each output.
        numbers: the budget of numbers in answers: a generator's requested log probabilities, or an encoder's scores.
    """

    def __init__(
        self,
        limits: RequestLimits,
        retry_after: Callable[[], float] = lambda: 1.0,
        answers: int = 1,
    ) -> None:
        """
        Args:
            retry_after: seconds after which a refused client may try again.
            answers: all open answers together may have as many numbers as this many of the largest answers.
        """
        self.requests = 0
        self.limits = limits
        self.retry_after = retry_after
        self.characters = Budget(limits.max_queue_characters, "characters", "--max_queue_characters")
        self.tokens = Budget(limits.max_queue_tokens, "tokens", "--max_queue_tokens")
        largest = "--max_answer_numbers" if answers == 1 else f"{answers} times --max_answer_numbers"
        self.numbers = Budget(answers * limits.max_answer_numbers, "numbers in answers", largest)

    def enter(self, characters: int) -> None:
        """Admit a request, before any work is done for it; call `leave` when it is over.

        Args:
            characters: number of characters of its texts.

        Raises:
            OverloadedError: too many requests are under way, or they hold too much.
        """
        if self.requests >= self.limits.max_concurrent_requests:
            raise OverloadedError(
                f"the model is busy with {self.requests} requests, which is the most it takes "
                "(max_concurrent_requests); try again later",
                self.retry_after(),
            )
        self.characters.check(characters, self.retry_after)
        # The request will have one token at least.
        self.tokens.check(1, self.retry_after)
        self.requests += 1
        self.characters.held += characters

    def leave(self, characters: int) -> None:
        """End a request.

        Args:
            characters: number of characters that it still holds.
        """
        self.requests -= 1
        self.characters.held -= characters

    async def drain(self) -> None:
        """Wait until all requests have ended, for at most `_UNLOAD_SECONDS`."""
        deadline = asyncio.get_running_loop().time() + _UNLOAD_SECONDS
        # Requests end in many places, each of which would have to set an event.
        while self.requests and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def admit(self, characters: int = 0) -> Iterator[Admitted]:
        """Admit a request of a generator for as long as the context lasts.

        Args:
            characters: number of characters of its prompts.

        Raises:
            OverloadedError: too many requests are under way, or they hold too much.
        """
        self.enter(characters)
        admitted = Admitted(self, characters)
        try:
            yield admitted
        finally:
            admitted.release()
            self.leave(0)


class Admitted:
    """A request of a generator that is under way; its outputs share the model's time with those of other requests.

    Attributes:
        on_queued: called for each output that begins to wait for the model.
    """

    def __init__(self, admission: Admission, characters: int) -> None:
        self.on_queued: Callable[[], None] = lambda: None
        self._admission = admission
        self._characters = characters
        self._tokens = 0
        self._logprobs = 0

    def queue(self, tokens: int, logprobs: int = 0) -> None:
        """Count the prompts as tokens instead of characters, once they are tokenized and wait for the model.

        Args:
            tokens: number of tokens of all prompts, each counted once for each output.
            logprobs: number of log probabilities that the request asks for.

        Raises:
            LimitExceededError: the request has more tokens or log probabilities than all requests together may have.
            OverloadedError: all requests together have too many tokens or log probabilities.
        """
        self._release_characters()
        admission = self._admission
        admission.limits.check("max_queue_tokens", tokens, "tokens of prompts, each times its outputs,")
        admission.tokens.check(tokens, admission.retry_after)
        if logprobs:
            admission.limits.check("max_answer_numbers", logprobs, "log probabilities")
            admission.numbers.check(logprobs, admission.retry_after)
        admission.numbers.held += logprobs
        self._logprobs += logprobs
        admission.tokens.held += tokens
        self._tokens += tokens

    def start(self, tokens: int) -> None:
        """Release tokens that do not wait any more, because an output has begun."""
        tokens = min(tokens, self._tokens)
        self._admission.tokens.held -= tokens
        self._tokens -= tokens

    def release(self) -> None:
        """Release everything that the request holds."""
        self._release_characters()
        self.start(self._tokens)
        self._admission.numbers.held -= self._logprobs
        self._logprobs = 0

    def _release_characters(self) -> None:
        self._admission.characters.held -= self._characters
        self._characters = 0
