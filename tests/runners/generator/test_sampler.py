"""Logits to tokens: against the processors of `transformers`, against a table, and by what is drawn."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from runners.core.generation import Constraint
from runners.generator import token_filter
from runners.generator.constraints import Grammars
from runners.generator.logprobs import count_as_likely, rank
from runners.generator.sampler import SampledRow, Sampler, Settings
from runners.generator.token_filter import least_kept
from runners.generator.vocabulary import Vocabulary
from tests.families import roberta_bpe

CPU = torch.device("cpu")
LOGITS = [2.0, 1.5, 0.5, 0.0, -1.0, -3.0]


def sampler(*rows: SampledRow, vocabulary: int = len(LOGITS)) -> Sampler:
    return Sampler(rows, vocabulary, CPU)


def draw(settings: Settings, logits: list[float], times: int) -> Counter[int]:
    """How often each token is drawn from the same logits; each row has another seed."""
    rows = [SampledRow(settings, seed, []) for seed in range(times)]
    tokens, _ = sampler(*rows, vocabulary=len(logits)).choose(torch.tensor([logits] * times))
    return Counter(tokens)


@pytest.mark.parametrize(
    ("settings", "warpers"),
    [
        ({}, []),
        ({"temperature": 0.5}, [TemperatureLogitsWarper(0.5)]),
        ({"temperature": 2.0}, [TemperatureLogitsWarper(2.0)]),
        ({"top_k": 2}, [TopKLogitsWarper(2)]),
        ({"top_k": 100}, []),
        ({"top_p": 0.7}, [TopPLogitsWarper(0.7)]),
        ({"top_p": 0.01}, [TopPLogitsWarper(0.01)]),
        ({"min_p": 0.2}, [MinPLogitsWarper(0.2)]),
        ({"temperature": 1.5, "top_k": 4, "top_p": 0.8}, [TemperatureLogitsWarper(1.5), TopKLogitsWarper(4), TopPLogitsWarper(0.8)]),
        ({"temperature": 0.7, "top_p": 0.95, "min_p": 0.1}, [TemperatureLogitsWarper(0.7), TopPLogitsWarper(0.95), MinPLogitsWarper(0.1)]),
    ],
)  # fmt: skip
def test_tokens_are_drawn_as_by_transformers(settings: dict[str, Any], warpers: list[Any]) -> None:
    scores: Any = LogitsProcessorList(warpers)(torch.zeros(1, 1, dtype=torch.long), torch.tensor([LOGITS]))  # type: ignore[arg-type]
    expected = scores.softmax(-1)[0]
    times = 20_000
    drawn = draw(Settings(**settings), LOGITS, times)
    found = torch.tensor([drawn[token] / times for token in range(len(LOGITS))])
    assert not found[expected == 0].any(), "what is left out must not be drawn"
    assert found[expected > 1e-3].all()
    # The seeds are fixed: four standard deviations.
    assert (found - expected).abs().max() < 4 * (0.25 / times) ** 0.5


@pytest.mark.parametrize("top_k", [3000, 1500, 7])
@pytest.mark.parametrize("top_p", [1.0, 0.999, 0.5, 0.05])
@pytest.mark.parametrize("spread", [0.01, 5.0])
def test_truncation_of_a_large_vocabulary_is_that_of_transformers(top_k: int, top_p: float, spread: float) -> None:
    """A flat distribution takes more candidates than are looked at first."""
    logits = torch.randn(3, 3000, generator=torch.Generator().manual_seed(0)) * spread
    assert token_filter._CANDIDATES < 1500
    ids = torch.zeros(3, 1, dtype=torch.long)
    expected = TopPLogitsWarper(top_p)(ids, TopKLogitsWarper(top_k)(ids, logits))
    least = least_kept(logits, torch.full((3,), top_k), torch.full((3, 1), top_p))
    kept, expected_kept = logits >= least, expected > -torch.inf
    # Sums of thousands of probabilities round: one token at the border may fall on either side.
    assert (kept != expected_kept).sum(-1).max() <= (1 if spread < 1 and top_p < 1 else 0)


def test_greedy_and_random_rows_share_a_batch() -> None:
    rows = [
        SampledRow(Settings(temperature=0), None, []),
        SampledRow(Settings(top_k=1), None, []),
        SampledRow(Settings(logit_bias={4: 10.0}, temperature=0), None, []),
        SampledRow(Settings(temperature=1e-9), None, []),
    ]
    tokens, _ = sampler(*rows).choose(torch.tensor([LOGITS] * 4))
    assert tokens == [0, 0, 4, 0]


def test_what_a_row_draws_does_not_depend_on_the_batch() -> None:
    logits = torch.randn(30, 4, 50, generator=torch.Generator().manual_seed(0))

    def run(others: list[Settings]) -> list[int]:
        row = SampledRow(Settings(temperature=1.2, top_p=0.9, frequency_penalty=0.3), 7, [])
        chosen = []
        for step in logits:
            # Made anew at every step, as when rows leave and join.
            batch = sampler(*(SampledRow(other, None, []) for other in others), row, vocabulary=50)
            chosen.append(batch.choose(torch.cat([step[: len(others)], step[3:]]))[0][-1])
        return chosen

    alone = run([])
    assert run([Settings(), Settings(temperature=0, presence_penalty=1), Settings(top_k=3)]) == alone
    assert len(set(alone)) > 5


@pytest.mark.parametrize(
    ("presence", "frequency", "expected"),
    [
        # Token 0 comes until its penalty takes it below 1.5, and so on.
        (0.6, 0.0, [0, 1, 0, 0]),
        (0.0, 0.4, [0, 0, 1, 0]),
        (0.5, 0.4, [0, 1, 0, 0]),
        (-1.0, 0.0, [0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_penalties_count_what_was_generated(presence: float, frequency: float, expected: list[int]) -> None:
    logits = torch.tensor([[2.0, 1.5, 0.0]])
    # The prompt does not count.
    row = SampledRow(Settings(temperature=0, presence_penalty=presence, frequency_penalty=frequency), None, [0, 0])
    batch = sampler(row, vocabulary=3)
    counts = Counter[int]()
    for token in expected:
        by_hand = [
            logit - counts[index] * frequency - (counts[index] > 0) * presence
            for index, logit in enumerate(logits[0].tolist())
        ]
        assert by_hand.index(max(by_hand)) == token, "the table must be right"
        assert batch.choose(logits)[0] == [token]
        counts[token] += 1


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(1, 40, generator=torch.Generator().manual_seed(0))
    prompt = [3, 9, 9]
    row = SampledRow(Settings(temperature=0, repetition_penalty=1.7), None, prompt)
    processor = RepetitionPenaltyLogitsProcessor(1.7)
    for _ in range(12):
        expected = int(processor(torch.tensor([prompt]), logits).argmax())
        assert sampler(row, vocabulary=40).choose(logits)[0] == [expected]
        prompt = [*prompt, expected]
    assert len(set(prompt)) > 6


def test_a_forced_token_counts_and_has_its_log_probability() -> None:
    def force(logits: torch.Tensor, _: Sequence[int]) -> torch.Tensor:
        return torch.full_like(logits, -torch.inf).index_fill_(0, torch.tensor([5]), 0)

    row = SampledRow(Settings(temperature=0, presence_penalty=9, logprobs=2), None, [], [force])
    batch = sampler(row)
    logits = torch.tensor([LOGITS])
    tokens, ranked = batch.choose(logits)
    assert tokens == [5]
    expected = logits[0].log_softmax(-1).tolist()
    assert ranked[0].logprob == pytest.approx(expected[5])
    assert [(token, place) for token, _, place in ranked[0].top] == [(0, 1), (1, 2)]
    assert [value for _, value, _ in ranked[0].top] == pytest.approx(expected[:2])
    assert row.counts is not None
    assert row.counts.tolist() == [0, 0, 0, 0, 0, 1]


def test_a_processor_changes_its_own_row_and_fails_it_alone() -> None:
    seen: list[list[int]] = []

    def forbid_repetition(logits: Tensor, output: Sequence[int]) -> Tensor:
        seen.append(list(output))
        logits[list(output)] = -torch.inf
        return logits

    def fail(logits: Tensor, output: Sequence[int]) -> Tensor:
        raise ValueError("a bug")

    greedy = Settings(temperature=0)
    rows = [
        SampledRow(greedy, None, []),
        SampledRow(greedy, None, [], [forbid_repetition]),
        # A new tensor is as good.
        SampledRow(greedy, None, [], [lambda logits, _: -logits]),
        SampledRow(greedy, None, [], [fail]),
    ]
    batch = sampler(*rows)
    chosen = [batch.choose(torch.tensor([LOGITS] * 4))[0] for _ in range(3)]
    assert [tokens[:3] for tokens in chosen] == [[0, 0, 5], [0, 1, 5], [0, 2, 5]]
    assert seen == [[], [0], [0, 1]]
    assert [row.error for row in rows[:3]] == [None] * 3
    assert re.fullmatch(
        r"this output has failed: ValueError; the server's log says where \(reference \w{8}\)", str(rows[3].error)
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"allowed": (3, 5)}, [3, 3, 3]),
        ({"bad_words": ((0,), (1, 1))}, [1, 2, 1]),
        # The last token is forbidden after the others only, also across what comes between.
        ({"bad_words": ((0, 0, 0), (0, 0, 1))}, [0, 0, 2]),
        ({"min_tokens": 2, "ends": (0, 1)}, [2, 2, 0]),
        ({"min_tokens": 2}, [0, 0, 0]),
        ({"min_tokens": 1, "ends": (0,), "logit_bias": {0: 100.0, 4: 50.0}}, [4, 0, 0]),
        # The repetition penalty may turn signs, but nothing makes up for what is forbidden.
        ({"allowed": (4, 5), "repetition_penalty": 9.0}, [4, 5, 4]),
        # Where all is forbidden, what is allowed comes before what is not wanted.
        ({"allowed": (5,), "bad_words": ((5,),)}, [5, 5, 5]),
        ({"min_tokens": 2, "ends": tuple(range(6))}, [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1e-4])
def test_forbidden_tokens_are_not_generated(settings: dict[str, Any], expected: list[int], temperature: float) -> None:
    others = [
        SampledRow(Settings(temperature=0), None, []),
        SampledRow(Settings(temperature=0, allowed=(5,)), None, []),
    ]
    row = SampledRow(Settings(temperature=temperature, **settings), 0, [])
    chosen = []
    for _ in expected:
        tokens, _ = sampler(others[0], row, others[1]).choose(torch.tensor([LOGITS] * 3))
        assert tokens[::2] == [0, 5]
        chosen.append(tokens[1])
    assert chosen == expected
    # The same without making the sampler anew.
    row = SampledRow(Settings(temperature=temperature, **settings), 0, [])
    batch = sampler(row)
    assert [batch.choose(torch.tensor([LOGITS]))[0][0] for _ in expected] == expected


def test_ranks_count_what_is_as_likely() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]] * 3)
    rows = [
        SampledRow(Settings(temperature=0, logprobs=2, allowed=(3,)), None, []),
        SampledRow(Settings(temperature=0, logprobs=3, logprob_ids=(4, 1, 2)), None, []),
        SampledRow(Settings(temperature=0, logprobs=0), None, []),
    ]
    _, ranked = sampler(*rows, vocabulary=5).choose(logits)
    assert [ranked[row].rank for row in range(3)] == [3, 1, 1]
    assert [(token, place) for token, _, place in ranked[0].top] == [(1, 1), (2, 2)]
    assert [(token, place) for token, _, place in ranked[1].top] == [(4, 5), (1, 1), (2, 3)]
    assert [value for _, value, _ in ranked[1].top] == pytest.approx(logits[0].log_softmax(-1)[[4, 1, 2]].tolist())
    assert ranked[2].top == ()


@pytest.mark.parametrize("vocabulary", [7, 5000])
def test_ranks_of_named_tokens_count_what_is_as_likely(vocabulary: int) -> None:
    # Of a few values, so that many are equal.
    logprobs = torch.randn(vocabulary, generator=torch.manual_seed(0)).round()
    logprobs[::5] = -torch.inf
    named = logprobs[torch.randint(vocabulary, (128,))]
    assert torch.equal(count_as_likely(logprobs, named), (logprobs >= named[:, None]).sum(-1))


def test_constraints_hold_for_their_rows_and_come_before_log_probabilities() -> None:
    tokenizer = roberta_bpe()
    size = len(tokenizer)
    vocabulary = Vocabulary(tokenizer)
    grammars = Grammars(vocabulary, size, frozenset({2}))
    [b] = tokenizer.encode("b", add_special_tokens=False)
    matchers = [grammars.compile(Constraint("regex", pattern)) for pattern in ("a+b", "ca", "b")]
    greedy = Settings(temperature=0, logprobs=1)
    rows = [
        SampledRow(greedy, None, [], matcher=matchers[0]),
        SampledRow(greedy, None, []),
        SampledRow(greedy, None, [], matcher=matchers[1]),
        # What is not wanted gives way to the constraint.
        SampledRow(Settings(temperature=1.0, min_tokens=9, ends=(2,), bad_words=((b,),)), 0, [], matcher=matchers[2]),
    ]
    logits = torch.zeros(4, size)
    logits[:, 2], logits[:, 7] = 1, 9
    batch = sampler(*rows, vocabulary=size)
    steps = [batch.choose(logits) for _ in range(3)]
    chosen = [tokens for tokens, _ in steps]
    assert [tokens[1] for tokens in chosen] == [7, 7, 7]
    assert vocabulary.text(chosen[0][0]).startswith("a")
    assert [tokens[3] for tokens in chosen[:2]] == [b, 2]
    assert vocabulary.decode([tokens[2] for tokens in chosen], skip_special_tokens=True) == "ca"
    # What the constraint does not take has no probability, as in vLLM.
    _, ranked = steps[0]
    assert ranked[1].logprob == pytest.approx(float(logits[1].log_softmax(-1)[7]))
    assert (ranked[2].logprob, ranked[2].rank) == (0, 1)
    assert [row.error for row in rows] == [None] * 4


def test_what_cannot_come_is_not_among_the_most_likely() -> None:
    logprobs = torch.tensor([[0.5, 0.0, 0.5, 0.0]]).log()
    [ranked] = rank(logprobs, torch.tensor([0]), 3)
    assert sorted(token for token, *_ in ranked.top) == [0, 2]
