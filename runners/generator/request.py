"""A request to a model: what is asked for, and how far it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from runners.generation import Delta, FinishReason
from runners.generator.constraints import GrammarMatcher
from runners.generator.logprobs import PromptScores, describe
from runners.generator.sampling import Processor, Ranked, SampledRow, Settings
from runners.generator.text import TextStream
from runners.generator.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and how it is continued.

    Attributes:
        counted: the tokens that the repetition penalty counts beside the output's.
        context: the tokens before the first one in the same text; none for encoder-decoders.
        max_tokens: 0 only computes the prompt.
        ends: the tokens that end the output, and the reason that is given for each.
        processors: change the logits of this request alone.
        matcher: of the constraint of the output.
        prompt_logprobs: how many of the most likely tokens are told at each position of the prompt; None for nothing.
    """

    prompt: Sequence[int]
    counted: Sequence[int]
    context: Sequence[int]
    settings: Settings
    seed: int | None
    max_tokens: int
    ends: Mapping[int, int | None]
    stop: Sequence[str] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = None
    processors: Sequence[Processor] = ()
    matcher: GrammarMatcher | None = None


class Generation:
    """A request under way; made on the event loop that waits for it."""

    def __init__(self, request: Request, vocabulary: Vocabulary) -> None:
        self.request = request
        self.sampled = SampledRow(request.settings, request.seed, request.counted, request.processors, request.matcher)
        asked = request.prompt_logprobs
        self.prompt_scores = None if asked is None else PromptScores(asked, [])
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        # The scheduler's own; `cancelled` is read between steps.
        self.waiting = False
        self.cancelled = False
        self.finished = False
        self._vocabulary = vocabulary
        self._text = TextStream(
            vocabulary, request.context, request.stop, request.include_stop, request.skip_special_tokens
        )
        self._tokens = 0

    @property
    def is_scored(self) -> bool:
        """Whether log probabilities of the prompt are asked for."""
        return self.prompt_scores is not None

    def take(self, token: int, ranked: Ranked | None) -> Delta | Exception:
        """What the next token adds, and whether it is the last; or why there is none."""
        if self.sampled.error is not None:
            self.finished = True
            return self.sampled.error
        if self.request.max_tokens == 0:
            self.finished = True
            return Delta("", (), "length")
        offset = self._text.length
        text, reason, stop_reason = self._add(token)
        self.finished = reason is not None
        logprobs = () if ranked is None else (describe(self._vocabulary, token, ranked, offset),)
        return Delta(text, (token,), reason, logprobs, stop_reason)

    def _add(self, token: int) -> tuple[str, FinishReason | None, int | str | None]:
        """The text that is certain now, and why it ends."""
        self._tokens += 1
        request = self.request
        if token in request.ends:
            text = self._text.push(token, may_stop=False)[0] if request.include_stop else ""
            return text + self._text.finish(), "stop", request.ends[token]
        text, stop = self._text.push(token, self._tokens > request.settings.min_tokens)
        if stop is not None:
            return text, "stop", stop
        if request.matcher is not None and request.matcher.is_complete:
            return text + self._text.finish(), "stop", None
        if self._tokens >= request.max_tokens:
            return text + self._text.finish(), "length", None
        return text, None, None
