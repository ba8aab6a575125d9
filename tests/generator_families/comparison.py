"""A generator on this server's engine against `generate` of the stock model: alone, joining others, in parts.

Token ids must be the same and their log probabilities close. Where two tokens are so close that rounding decides, the
comparison of a sequence ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import torch

from runners.core.arguments import Arguments
from runners.core.errors import ModelLoadError, brief
from runners.core.generation import Sampling
from runners.core.machine import count_cores
from runners.generator.transformers_engine import TransformersEngine
from tests.generator_families.models import save_generator
from tests.generator_families.registry import ORIGINAL_POSITIONS, Family

# Tokens of a prompt and of its output: below the rotary limit of 40, at it, across it, above it; most cross windows of 8.
CASES = ((3, 8), (ORIGINAL_POSITIONS, 6), (33, 16), (57, 12), (20, 14), (1, 10))
# How far log probabilities may be, which rounding changes by 1e-5.
_TOLERANCE = 2e-3
_SMALL_BATCH = 24


class Verdict(StrEnum):
    """What came of a family."""

    STOCK_REFUSES = "`generate` refuses"
    RIGHT = "right"
    WRONG = "wrong"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Verdict, the way to batch that was found, and the reason where it is not right."""

    verdict: Verdict
    batching: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Expected:
    """A prompt and what `generate` makes of it.

    Attributes:
        logprobs: of the tokens of the output.
        margins: how much less likely the second best token is, in log probability.
    """

    prompt: list[int]
    output: list[int]
    logprobs: list[float]
    margins: list[float]


def compare(family: Family, folder: Path) -> Outcome:
    """The outcome of a family; its model is saved in the folder."""
    try:
        save_generator(family, folder)
        expected = [_generate(family, folder, *case) for case in CASES]
    except Exception as error:
        return Outcome(Verdict.STOCK_REFUSES, reason=brief(error))
    # One thread: tiny models gain nothing by more, which spin where other processes run.
    engine = TransformersEngine(Arguments(model_dir=str(folder), workers=count_cores()))
    try:
        engine.load()
        scheduler = engine._model().scheduler
        reason = asyncio.run(_compare_answers(engine, expected))
        # Prompts that go into the cache in parts, or one by one.
        scheduler._token_budget.tokens = _SMALL_BATCH
        reason = reason or asyncio.run(_compare_answers(engine, expected))
        batching = str(scheduler._decoder.batching)
    except ModelLoadError as error:
        return Outcome(Verdict.REFUSED, reason=brief(error).replace(str(folder), "..."))
    finally:
        engine.close()
    return Outcome(Verdict.WRONG if reason else Verdict.RIGHT, batching, reason)


def _generate(family: Family, folder: Path, length: int, tokens: int) -> _Expected:
    # Loaded anew for each: dynamic scaling keeps what it has grown to.
    model = family.auto_class.from_pretrained(folder).eval()
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    random = torch.Generator().manual_seed(length)
    ids = torch.randint(8, vocabulary, (1, length), generator=random)
    # Where LongRoPE changes Phi-3's `generate` drops its cache, and loses what was in it.
    drops_cache = family.variant == "longrope" and family.model_type in ("phi3", "phimoe")
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=1, do_sample=False, max_new_tokens=tokens,
        min_new_tokens=tokens, return_dict_in_generate=True, output_logits=True, use_cache=not drops_cache,
        eos_token_id=None,
    )  # fmt: skip
    logprobs = torch.cat(made.logits).log_softmax(-1)
    output = made.sequences[0, -tokens:].tolist()
    if not torch.isfinite(logprobs).all():
        raise ValueError("its logits are not finite")
    best = logprobs.topk(2).values
    chosen = logprobs.gather(1, torch.tensor(output)[:, None])[:, 0]
    return _Expected(ids[0].tolist(), output, chosen.tolist(), (best[:, 0] - best[:, 1]).tolist())


async def _compare_answers(engine: TransformersEngine, expected: Sequence[_Expected]) -> str:
    """What is wrong: each alone, then all: at once, and the later ones when an earlier one has begun."""
    for index, each in enumerate(expected):
        if reason := await _compare_answer(engine, each):
            return f"alone, case {index}: {reason}"
    found = await asyncio.gather(*(_compare_answer(engine, each) for each in expected))
    for index, reason in enumerate(found):
        if reason:
            return f"at once, case {index}: {reason}"
    for order in (expected, expected[::-1]):
        begun = [asyncio.Event() for _ in order]
        found = await asyncio.gather(
            *(
                _compare_answer(engine, each, begun[index - 1] if index else None, begun[index])
                for index, each in enumerate(order)
            )
        )
        for each, reason in zip(order, found, strict=True):
            if reason:
                return f"joining, case {expected.index(each)}: {reason}"
    return ""


async def _compare_answer(
    engine: TransformersEngine,
    expected: _Expected,
    after: asyncio.Event | None = None,
    begun: asyncio.Event | None = None,
) -> str:
    """What is wrong with one; it starts after an event, and sets another with its second token."""
    if after is not None:
        await after.wait()
    sampling = Sampling(temperature=0, max_tokens=len(expected.output), ignore_eos=True, logprobs=1)
    tokens: list[int] = []
    logprobs: list[float] = []
    try:
        async for delta in engine.generate(expected.prompt, sampling):
            tokens += delta.token_ids
            logprobs += [entry.chosen.logprob for entry in delta.logprobs]
            if begun is not None and len(tokens) > 1:
                begun.set()
    except Exception as error:
        return brief(error)
    finally:
        if begun is not None:
            begun.set()
    return _find_difference(expected, tokens, logprobs)


def _find_difference(expected: _Expected, tokens: Sequence[int], logprobs: Sequence[float]) -> str:
    if len(tokens) != len(expected.output) or len(logprobs) != len(tokens):
        return f"{len(tokens)} tokens instead of {len(expected.output)}"
    for step, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
        if token != expected.output[step]:
            is_rounding = expected.margins[step] < _TOLERANCE
            return "" if is_rounding else f"token {step} is {token}, not {expected.output[step]}"
        off = abs(logprob - expected.logprobs[step])
        if off > _TOLERANCE * max(1, abs(expected.logprobs[step])):
            return f"the log probability of token {step} is off by {off:.0e}"
    return ""
