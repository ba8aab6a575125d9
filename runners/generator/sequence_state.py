"""A sequence to generate: its request, its state in the scheduler, and the delivery of its deltas."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch
from torch import Tensor

from runners.core.event_loops import call_on_loops
from runners.core.generation import Delta, FinishReason
from runners.core.request_record import RequestRecord, current_record
from runners.generator.beams import BeamRules, Beams, Hypothesis
from runners.generator.constraints import GrammarMatcher
from runners.generator.logprobs import PromptScores, Ranked, describe
from runners.generator.sampler import NamedTokens, Processor, SampledRow, Sampler, Settings
from runners.generator.text_stream import TextStream
from runners.generator.vocabulary import Vocabulary

# An item for a caller: a delta, the sequences of a beam search, or the error that ends the sequence.
Item = Delta | list[Hypothesis] | Exception


@dataclass(frozen=True, slots=True)
class Request:
    """A tokenized prompt, and how it is continued, with the model's defaults.

    Attributes:
        counted: the tokens that the repetition penalty counts in addition to the output.
        context: the tokens before the output in the same text; empty for encoder-decoders.
        max_tokens: 0 only computes the prompt.
        ends: the tokens that end the output, with the stop reason of each.
        processors: change the logits of this request only.
        matcher: the state of the output in its constraint; None without a constraint.
        beams: the rules of the beam search; None for sampling.
        prompt_logprobs: number of the most likely tokens at each position of the prompt; None for no log probabilities.
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
    """The text of a sequence, built token by token."""

    def __init__(self, request: Request, vocabulary: Vocabulary) -> None:
        self.finished = False
        self._request = request
        self._vocabulary = vocabulary
        self._text = TextStream(
            vocabulary, request.context, request.stop, request.include_stop, request.skip_special_tokens
        )
        self._tokens = 0

    def take(self, token: int, ranked: Ranked | None) -> Delta:
        """The delta of the next token; sets `finished` with the last one."""
        offset = self._text.length
        text, reason, stop_reason = self._add(token)
        self.finished = reason is not None
        logprobs = () if ranked is None else (describe(self._vocabulary, token, ranked, offset),)
        return Delta(text, (token,), reason, logprobs, stop_reason)

    def _add(self, token: int) -> tuple[str, FinishReason | None, int | str | None]:
        """The text that is certain after a token, and, at the end, the finish and stop reasons."""
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
    """A sequence that waits or runs, or a beam search; made on the event loop that reads its items."""

    def __init__(self, request: Request, vocabulary: Vocabulary, owner: Hashable) -> None:
        """
        Args:
            owner: the client's request, which may have other sequences.
        """
        self.request = request
        self.owner = owner
        self.sampled = SampledRow(request.settings, request.seed, request.counted, request.processors, request.matcher)
        self.beams = None if request.beams is None else begin_beams(request, request.beams)
        count = request.prompt_logprobs
        self.prompt_scores = None if count is None else PromptScores(count, [])
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Item] = asyncio.Queue()
        # Set by the scheduler; `cancelled` is read between steps.
        self.waiting = False
        self.cancelled = False
        self.finished = False
        # The device thread cannot find it.
        self.record: RequestRecord | None = current_record.get()
        self._output = Output(request, vocabulary)

    @property
    def needs_prompt_scores(self) -> bool:
        """Whether log probabilities of the prompt are still to be computed."""
        return self.prompt_scores is not None and not self.outputs[0]

    @property
    def sequences(self) -> list[list[int]]:
        """Prompt and output of each row: some models compute a sequence anew at some length."""
        return [[*self.request.prompt, *output] for output in self.outputs]

    @property
    def length(self) -> int:
        """Number of tokens of each of `sequences`."""
        return len(self.request.prompt) + len(self.outputs[0])

    @property
    def outputs(self) -> Sequence[Sequence[int]]:
        """The tokens that each row has generated."""
        return [self.sampled.output] if self.beams is None else self.beams.outputs

    @property
    def rows(self) -> int:
        """Current number of rows in the batch."""
        return 1 if self.beams is None else len(self.beams)

    @property
    def most_rows(self) -> int:
        """Largest number of rows in the batch."""
        return 1 if self.request.beams is None else self.request.beams.width

    def take(self, token: int, ranked: Ranked | None) -> Delta | Exception:
        """The delta of the next token, or the error of the row; sets `finished` at the end."""
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
    """The beams of a request; its settings and processors apply to each beam's output."""
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


def describe_beam(request: Request, vocabulary: Vocabulary, hypothesis: Hypothesis, choice: int) -> Delta:
    """A sequence of a beam search as the only delta of a choice; a stop string ends its text."""
    output = Output(request, vocabulary)
    deltas: list[Delta] = []
    for token, ranked in zip_longest(hypothesis.tokens, hypothesis.ranked):
        deltas.append(output.take(token, ranked))
        if output.finished:
            break
    return replace(
        deltas[-1],
        text="".join(delta.text for delta in deltas),
        token_ids=hypothesis.tokens[: len(deltas)],
        logprobs=tuple(logprobs for delta in deltas for logprobs in delta.logprobs),
        choice=choice,
    )


def deliver(items: Sequence[tuple[Generation, Item]]) -> None:
    """Give the items of a step to their callers, with one call for each event loop."""
    for generation, _ in call_on_loops(_put, ((item[0].loop, item) for item in items)):
        generation.cancelled = True


def _put(items: Sequence[tuple[Generation, Item]]) -> None:
    for generation, item in items:
        generation.queue.put_nowait(item)
