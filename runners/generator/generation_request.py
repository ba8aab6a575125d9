"""A request to a model: what is asked for, and how far it has come."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from runners.core.generation import Delta, FinishReason
from runners.generator.beams import BeamRules, Beams, Hypothesis
from runners.generator.constraints import GrammarMatcher
from runners.generator.logprobs import PromptScores, describe
from runners.generator.output_text import TextStream
from runners.generator.sampler import NamedTokens, Processor, Ranked, SampledRow, Sampler, Settings
from runners.generator.vocabulary import Vocabulary

# What a caller gets: a delta, all that beams have found, or why there is no more.
Item = Delta | list[Hypothesis] | Exception


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
        beams: None to sample.
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
    beams: BeamRules | None = None


class Output:
    """One sequence of a request, as its tokens come."""

    def __init__(self, request: Request, vocabulary: Vocabulary) -> None:
        self.finished = False
        self._request = request
        self._vocabulary = vocabulary
        self._text = TextStream(
            vocabulary, request.context, request.stop, request.include_stop, request.skip_special_tokens
        )
        self._tokens = 0

    def take(self, token: int, ranked: Ranked | None) -> Delta:
        """What the next token adds, and whether it is the last."""
        offset = self._text.length
        text, reason, stop_reason = self._add(token)
        self.finished = reason is not None
        logprobs = () if ranked is None else (describe(self._vocabulary, token, ranked, offset),)
        return Delta(text, (token,), reason, logprobs, stop_reason)

    def _add(self, token: int) -> tuple[str, FinishReason | None, int | str | None]:
        """The text that is certain now, and why it ends."""
        self._tokens += 1
        request = self._request
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


class Generation:
    """A request under way; made on the event loop that waits for it."""

    def __init__(self, request: Request, vocabulary: Vocabulary, owner: Hashable) -> None:
        """
        Args:
            owner: the request of the client, of which there may be other sequences.
        """
        self.request = request
        self.owner = owner
        self.sampled = SampledRow(request.settings, request.seed, request.counted, request.processors, request.matcher)
        self.beams = None if request.beams is None else begin_beams(request, request.beams)
        asked = request.prompt_logprobs
        self.prompt_scores = None if asked is None else PromptScores(asked, [])
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Item] = asyncio.Queue()
        # The scheduler's own; `cancelled` is read between steps.
        self.waiting = False
        self.cancelled = False
        self.finished = False
        self._output = Output(request, vocabulary)

    @property
    def is_scored(self) -> bool:
        """Whether log probabilities of the prompt are asked for, and not told yet."""
        return self.prompt_scores is not None and not self.outputs[0]

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and output of each row; some models compute a sequence anew at some length."""
        return [[*self.request.prompt, *output] for output in self.outputs]

    @property
    def length(self) -> int:
        """The tokens of each of these."""
        return len(self.request.prompt) + len(self.outputs[0])

    @property
    def outputs(self) -> Sequence[Sequence[int]]:
        """What each row has generated."""
        return [self.sampled.output] if self.beams is None else self.beams.outputs

    @property
    def rows(self) -> int:
        """The rows of the batch that it has now."""
        return 1 if self.beams is None else len(self.beams)

    @property
    def most_rows(self) -> int:
        """The rows of a batch that it has at most."""
        return 1 if self.request.beams is None else self.request.beams.width

    def take(self, token: int, ranked: Ranked | None) -> Delta | Exception:
        """What the next token adds, and whether it is the last; or why there is none."""
        if self.sampled.error is not None:
            self.finished = True
            return self.sampled.error
        if self.request.max_tokens == 0:
            self.finished = True
            return Delta("", (), "length")
        delta = self._output.take(token, ranked)
        self.finished = self._output.finished
        return delta


def begin_beams(request: Request, rules: BeamRules) -> Beams:
    """The beams of a request; its settings and processors hold for each, by its own output."""
    settings = request.settings
    named = NamedTokens(settings)

    def sampler(logits: Tensor, outputs: Sequence[Sequence[int]]) -> tuple[Sampler, list[SampledRow]]:
        rows = [
            SampledRow(settings, None, request.counted, request.processors, output=output, named=named)
            for output in outputs
        ]
        return Sampler(rows, logits.shape[1], logits.device), rows

    def adjust(logprobs: Tensor, outputs: Sequence[Sequence[int]]) -> Tensor:
        beams, rows = sampler(logprobs, outputs)
        adjusted = beams.adjust(logprobs)
        for row in rows:
            if row.error is not None:
                raise row.error
        return adjusted

    def rank(logprobs: Tensor, tokens: Sequence[int]) -> list[Ranked]:
        beams, _ = sampler(logprobs, [()] * len(tokens))
        ranked = beams.rank(logprobs, torch.tensor(tokens, device=logprobs.device))
        return [ranked[row] for row in range(len(tokens))]

    return Beams(
        rules,
        len(request.counted),
        request.max_tokens,
        request.ends,
        adjust if request.processors or settings.adjusts else None,
        rank if settings.logprobs is not None else None,
    )


def tell_found(request: Request, vocabulary: Vocabulary, hypothesis: Hypothesis, choice: int) -> Delta:
    """What beams have found as the delta of a choice; a stop string cuts the text."""
    output = Output(request, vocabulary)
    taken: list[Delta] = []
    for token, ranked in zip_longest(hypothesis.tokens, hypothesis.ranked):
        taken.append(output.take(token, ranked))
        if output.finished:
            break
    return replace(
        taken[-1],
        text="".join(delta.text for delta in taken),
        token_ids=hypothesis.tokens[: len(taken)],
        logprobs=tuple(logprobs for delta in taken for logprobs in delta.logprobs),
        choice=choice,
    )
