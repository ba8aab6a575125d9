"""The sampler: chooses the next tokens of all rows of a batch from their logits.

Logits are changed in vLLM's order: constraint, forbidden tokens, bias, repetition, frequency and presence penalty,
temperature. Log probabilities are those after the constraint. Tokens are then filtered in the order of `transformers`:
top_k, top_p, min_p. A row's token depends on its seed and its logits only: each row has its own random numbers, and the
token is the one at which the cumulative probabilities, in vocabulary order, exceed the random number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from runners.generator.constraints import GrammarMatcher
from runners.generator.logprobs import Ranked, count_as_likely, rank
from runners.generator.sequence_errors import as_runner_error
from runners.generator.token_filter import least_kept
from runners.generator.token_masks import Bans, ConstraintMasks, index_pairs

# Takes a row's logits, float32 [vocabulary], and the ids of its output so far; changes them in place or returns others.
Processor = Callable[[Tensor, Sequence[int]], Tensor]

# A smaller temperature is greedy, as in vLLM.
_MIN_TEMPERATURE = 1e-5


@dataclass(frozen=True, slots=True)
class Settings:
    """`runners.core.generation.Sampling` with the model's defaults; top_k is None for the whole vocabulary.

    Attributes:
        ends: tokens that are not generated before `min_tokens`.
        bad_words: sequences of tokens; the last token is not generated after the others.
        allowed: the only tokens that are generated; None for all.
        logprob_ids: tokens whose log probabilities are returned instead of those of the most likely ones.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_tokens: int = 0
    ends: tuple[int, ...] = ()
    bad_words: tuple[tuple[int, ...], ...] = ()
    allowed: tuple[int, ...] | None = None
    logprobs: int | None = None
    logprob_ids: tuple[int, ...] = ()

    @property
    def greedy(self) -> bool:
        return self.temperature < _MIN_TEMPERATURE

    @property
    def truncated(self) -> bool:
        return not self.greedy and (self.top_k is not None or self.top_p < 1)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        forbids = self.bad_words or self.allowed is not None or self.min_tokens
        return bool(forbids or self.logit_bias or self.penalised)

    @property
    def penalised(self) -> bool:
        return bool(self.presence_penalty or self.frequency_penalty) or self.repetition_penalty != 1


class NamedTokens:
    """The token ids of settings as tensors on the CPU; made once for each request, since the lists may be long."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def allowed(self) -> Tensor:
        """The only tokens that are generated, [tokens]; empty where all are allowed."""
        return torch.tensor(self._settings.allowed or (), dtype=torch.long)

    @cached_property
    def ends(self) -> Tensor:
        """The tokens that are not generated before `min_tokens`, [tokens]."""
        return torch.tensor(self._settings.ends, dtype=torch.long)

    @cached_property
    def biases(self) -> tuple[Tensor, Tensor]:
        """Token ids, and the biases of their logits, [tokens] each."""
        bias = self._settings.logit_bias
        return torch.tensor([*bias], dtype=torch.long), torch.tensor([*bias.values()], dtype=torch.float32)


class SampledRow:
    """The state of a row between steps."""

    def __init__(
        self,
        settings: Settings,
        seed: int | None,
        prompt: Sequence[int],
        processors: Sequence[Processor] = (),
        matcher: GrammarMatcher | None = None,
        output: Sequence[int] = (),
        named: NamedTokens | None = None,
    ) -> None:
        """
        Args:
            seed: None for a random one.
            prompt: the tokens that the repetition penalty counts in addition to the output.
            processors: change the logits in this order, before penalties and temperature.
            matcher: the state of the output in its constraint; None without a constraint.
            output: the tokens that the row has generated before.
            named: the named tokens of these settings, if they exist already.
        """
        self.settings = settings
        self.named = named or NamedTokens(settings)
        self.random = random.Random(seed)
        self.processors = processors
        self.matcher = matcher
        self.output = list(output)
        # The random number of the current step, until the step is complete.
        self.drawn: float | None = None
        # Set by the sampler once the row has failed; its further tokens are meaningless.
        self.error: Exception | None = None
        self._prompt = prompt
        # By token: how often it was generated, and whether it was generated or is in the prompt.
        self.counts: Tensor | None = None
        self.seen: Tensor | None = None

    def draw(self) -> float:
        """The random number of the current step, from 0 to 1."""
        if self.drawn is None:
            self.drawn = self.random.random()
        return self.drawn

    def begin(self, vocabulary: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """The counts of the row's tokens, made at the first call: how often each was generated, and which were seen."""
        if self.counts is None or self.seen is None:
            self.counts = torch.zeros(vocabulary, device=device)
            self.seen = torch.zeros(vocabulary, dtype=torch.bool, device=device)
            output = torch.tensor(self.output, dtype=torch.long, device=device)
            self.counts.scatter_add_(0, output, torch.ones_like(output, dtype=self.counts.dtype))
            self.seen[torch.tensor([*self._prompt, *self.output], dtype=torch.long, device=device)] = True
        return self.counts, self.seen


class Sampler:
    """Samples the rows of a batch; a new one is made when rows leave or join."""

    def __init__(self, rows: Sequence[SampledRow], vocabulary: int, device: torch.device) -> None:
        self._rows = rows
        self._device = device
        settings = [row.settings for row in rows]
        self._constraints = ConstraintMasks(rows)
        self._bans = Bans(rows, vocabulary, device)
        self._processed = [index for index, row in enumerate(rows) if row.processors]
        # Rows in which all tokens may be forbidden.
        self._narrowed = sorted({*self._bans.rows, *self._processed})
        self._plain = not self._narrowed and all(
            setting.greedy and not setting.penalised and not setting.logit_bias for setting in settings
        )
        self._ranked = [index for index, setting in enumerate(settings) if setting.logprobs is not None]
        self._biases = self._bias_tensors()
        self._random = [row for row in rows if not row.settings.greedy]
        self._random_rows = self._rows_where([not setting.greedy for setting in settings])
        sampled = [setting for setting in settings if not setting.greedy]
        self._temperature = self._column([setting.temperature for setting in sampled])
        self._min_p = self._column([setting.min_p for setting in sampled])
        self._has_min_p = any(setting.min_p for setting in sampled)
        self._truncated_rows = self._rows_where([setting.truncated for setting in sampled])
        truncated = [setting for setting in sampled if setting.truncated]
        self._top_k = torch.tensor(
            [min(setting.top_k or vocabulary, vocabulary) for setting in truncated], device=device
        )
        self._top_p = self._column([setting.top_p for setting in truncated])
        penalised = [row for row in rows if row.settings.penalised]
        self._penalised_rows = self._rows_where([setting.penalised for setting in settings])
        self._presence = self._column([row.settings.presence_penalty for row in penalised])
        self._frequency = self._column([row.settings.frequency_penalty for row in penalised])
        self._repetition = self._column([row.settings.repetition_penalty for row in penalised])
        self._counts, self._seen = self._gather_counts(penalised, vocabulary)

    def choose(self, logits: Tensor) -> tuple[list[int], dict[int, Ranked]]:
        """The next token of every row.

        Args:
            logits: [rows, vocabulary].

        Returns:
            Tokens by row, and the log probabilities of the rows that ask for them.
        """
        logits = self._constraints.apply(logits.float())
        tokens = logits.argmax(-1) if self._plain else self._sample(logits)
        ranked = self.rank(logits, tokens)
        chosen = tokens.tolist()
        # Nothing below fails, so that the state of all rows changes or none.
        if len(self._penalised_rows):
            counted = tokens[self._penalised_rows][:, None]
            self._counts.scatter_add_(1, counted, torch.ones_like(counted, dtype=self._counts.dtype))
            self._seen.scatter_(1, counted, True)
        for row, token in zip(self._rows, chosen, strict=True):
            row.output.append(token)
            row.drawn = None
        self._constraints.consume(chosen)
        return chosen, ranked

    def adjust(self, raw: Tensor) -> Tensor:
        """The logits after settings and processors, before the temperature; float32 [rows, vocabulary]."""
        logits = raw.clone()
        self._bans.apply(logits)
        if self._biases is not None:
            rows, ids, values = self._biases
            logits[rows, ids] += values
        for index in self._processed:
            self._process(self._rows[index], logits[index])
        if self._narrowed:
            self._revive(logits, raw)
        if len(self._penalised_rows):
            logits[self._penalised_rows] = self._penalise(logits[self._penalised_rows])
        return logits

    def _sample(self, raw: Tensor) -> Tensor:
        logits = self.adjust(raw)
        tokens = logits.argmax(-1)
        if self._random:
            tokens[self._random_rows] = self._draw(logits[self._random_rows])
        return tokens

    def _process(self, row: SampledRow, logits: Tensor) -> None:
        """Change the logits of a row, [vocabulary], in place; an error ends this row only."""
        try:
            for processor in row.processors:
                logits.copy_(processor(logits, row.output))
        except Exception as error:
            row.error = as_runner_error(error)

    def _revive(self, logits: Tensor, raw: Tensor) -> None:
        """Where all tokens of a row are forbidden, allow those of its constraint, or of `allowed` if it has none."""
        dead = (logits[self._narrowed].amax(-1) == -torch.inf).tolist()
        for index, is_dead in zip(self._narrowed, dead, strict=True):
            if is_dead:
                row = self._rows[index]
                logits[index] = raw[index]
                if row.matcher is None and row.settings.allowed is not None:
                    self._bans.allow_only(logits[index], row.named.allowed)

    def _penalise(self, logits: Tensor) -> Tensor:
        repeated = torch.where(logits > 0, logits / self._repetition, logits * self._repetition)
        logits = torch.where(self._seen, repeated, logits)
        return logits - self._frequency * self._counts - self._presence * (self._counts > 0)

    def _draw(self, logits: Tensor) -> Tensor:
        logits = logits / self._temperature
        if len(self._truncated_rows):
            truncated = logits[self._truncated_rows]
            least = least_kept(truncated, self._top_k, self._top_p)
            logits[self._truncated_rows] = truncated.masked_fill(truncated < least, -torch.inf)
        probabilities = logits.softmax(-1)
        if self._has_min_p:
            least = self._min_p * probabilities.amax(-1, keepdim=True)
            probabilities = probabilities.masked_fill(probabilities < least, 0)
        cumulative = probabilities.cumsum(-1, dtype=torch.float64)
        total = cumulative[:, -1:]
        drawn = torch.tensor([[row.draw()] for row in self._random], dtype=torch.float64, device=self._device)
        # A number that is rounded up to the total would be beyond the last token with a probability.
        below = torch.nextafter(total, torch.zeros_like(total))
        tokens = torch.searchsorted(cumulative, torch.minimum(drawn * total, below), right=True)
        return tokens[:, 0].clamp(max=logits.shape[1] - 1)

    def rank(self, logits: Tensor, tokens: Tensor) -> dict[int, Ranked]:
        """The log probabilities of tokens, for the rows that ask for them.

        Args:
            logits: float32 [rows, vocabulary].
            tokens: [rows].
        """
        if not self._ranked:
            return {}
        logprobs = logits[self._ranked].log_softmax(-1)
        settings = [self._rows[index].settings for index in self._ranked]
        chosen = rank(logprobs, tokens[self._ranked], max(setting.logprobs or 0 for setting in settings))
        return {
            index: self._rank_named(ranked, logprobs[row], setting.logprob_ids)
            if setting.logprob_ids
            else replace(ranked, top=ranked.top[: setting.logprobs])
            for row, (index, setting, ranked) in enumerate(zip(self._ranked, settings, chosen, strict=True))
        }

    def _rank_named(self, chosen: Ranked, logprobs: Tensor, ids: tuple[int, ...]) -> Ranked:
        named = logprobs[torch.tensor(ids, device=self._device)]
        ranks = count_as_likely(logprobs, named)
        return replace(chosen, top=tuple(zip(ids, named.tolist(), ranks.tolist(), strict=True)))

    def _column(self, values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)[:, None]

    def _rows_where(self, flags: list[bool]) -> Tensor:
        return torch.tensor([index for index, flag in enumerate(flags) if flag], dtype=torch.long, device=self._device)

    def _bias_tensors(self) -> tuple[Tensor, Tensor, Tensor] | None:
        biased = [(index, *row.named.biases) for index, row in enumerate(self._rows) if row.settings.logit_bias]
        if not biased:
            return None
        indices, ids, values = zip(*biased, strict=True)
        rows, tokens = index_pairs(indices, ids)
        return rows.to(self._device), tokens.to(self._device), torch.cat(values).to(self._device)

    def _gather_counts(self, rows: Sequence[SampledRow], vocabulary: int) -> tuple[Tensor, Tensor]:
        """The counts of these rows as one tensor; each row's counts become a view of it."""
        if not rows:
            return torch.empty(0, device=self._device), torch.empty(0, device=self._device)
        counts, seen = (
            torch.stack(parts) for parts in zip(*(row.begin(vocabulary, self._device) for row in rows), strict=True)
        )
        for row, row_counts, row_seen in zip(rows, counts, seen, strict=True):
            row.counts, row.seen = row_counts, row_seen
        return counts, seen
