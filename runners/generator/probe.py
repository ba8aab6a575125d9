"""Probes of a model at load: how its sequences can share batches, and whether its linear layers can be packed.

A way of batching is used if rows that join and leave get the same logits as `generate` computes for each row alone. The
probe's texts cross the attention windows and the lengths at which rotary positions change: at their real lengths if
such a text takes seconds at most, and with all these limits lowered to a few tokens.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel

from runners.core.device_thread import give_way
from runners.core.errors import ModelLoadError, NonFiniteModelError, brief
from runners.generator.decoder import Batching, Decoder, Rows
from runners.generator.probe_limits import has_limits, lowered, read_windows, selects_columns
from runners.modeling.dtypes import advise_wider, name_dtype
from runners.modeling.max_length import count_positions
from runners.modeling.packed_linear import pack_linears
from runners.modeling.score_difference import find_tolerance

# Lengths of texts: the first crosses a limit of 8 tokens while it runs, the second begins above, the third stays below.
_PROMPTS = (5, 23, 2, 12)
_OUTPUT = 7
_LOWERED = 8
# Tokens of a text beyond a window.
_BEYOND = 24
# Most tokens times weights of a text, which take some seconds, by device.
_AFFORDABLE = {"cpu": 10**11, "cuda": 10**13}
_MAX_TOKENS = 1100
# Numbers of rows at which kernels of linear layers are timed, and how often each: a step has a row for each sequence, a
# prompt hundreds.
_TRIED_ROWS = {1: 12, 8: 12, 64: 8, 512: 3}


@torch.inference_mode()
def choose_batching(decoder: Decoder) -> str:
    """Set `decoder.batching` to the first way of batching that gives the same logits as `generate`.

    Returns:
        The choice and its reasons, for the log.

    Raises:
        NonFiniteModelError: the logits of `generate` are not finite.
        ModelLoadError: `generate` does not run the model, or no way gives the same logits.
    """
    name = type(decoder.model).__name__
    try:
        probes = [_Probe(decoder, _PROMPTS)]
    except Exception as error:
        raise ModelLoadError(f"{name} cannot be generated with: {brief(error)}") from error
    probes[0].check_finite()
    notes = _add_probes(decoder, probes)
    reasons = []
    for batching in Batching:
        decoder.batching = batching
        try:
            if batching is not Batching.ALONE and selects_columns(decoder):
                raise ValueError("its attention selects the best columns, and rounding decides among equal ones")
            difference = max(probe.check() for probe in probes)
        except Exception as error:
            reasons.append(f"not {batching}: {brief(error)}")
        else:
            same = f"{batching}: {name} gives the same as `generate` for each alone ({difference:.0e})"
            return "; ".join([same, *reasons, *notes])
    raise ModelLoadError(f"{name} cannot be generated with: {'; '.join(reasons)}")


def _add_probes(decoder: Decoder, probes: list[_Probe]) -> list[str]:
    """Add the probes that cross limits; returns what is not probed, for the log."""
    if not has_limits(decoder):
        return []
    notes = []
    reach = max([*read_windows(decoder), decoder.rope.limit or 0])
    tokens = reach + _BEYOND
    weights = sum(parameter.numel() for parameter in decoder.model.parameters())
    positions = count_positions(decoder.model) or _MAX_TOKENS
    most = min(_MAX_TOKENS, _AFFORDABLE.get(decoder.model.device.type, 0) // weights)
    if tokens > most:
        notes.append(f"texts of more than {reach} tokens were not tried")
    elif tokens + _OUTPUT <= positions:
        probes.append(_Probe(decoder, (_PROMPTS[0], tokens, _PROMPTS[2], max(_PROMPTS[3], 3 * reach // 4))))
    try:
        probes.append(_Probe(decoder, _PROMPTS, _LOWERED))
    except Exception as error:
        notes.append(
            f"limits of {_LOWERED} tokens were not tried, since the model does not run with them: {brief(error)}"
        )
    return notes


class _Probe:
    """Sequences of unequal lengths, some of which join a running one, and the logits of `generate` for each alone."""

    def __init__(self, decoder: Decoder, lengths: Sequence[int], limit: int | None = None) -> None:
        """
        Args:
            lengths: numbers of tokens of the prompts.
            limit: lower windows and rotary limits to this; None to leave them.
        """
        self.decoder = decoder
        self._limit = limit
        config: Any = decoder.model.config
        vocabulary = config.get_text_config(decoder=True).vocab_size
        random = torch.Generator().manual_seed(0)
        # Special tokens, which masks or embeddings treat differently, are below 8.
        random_tokens = [
            torch.randint(min(8, vocabulary - 1), vocabulary, (length + _OUTPUT,), generator=random).tolist()
            for length in lengths
        ]
        eos = getattr(decoder.model.generation_config, "eos_token_id", None)
        ends = set(eos) if isinstance(eos, list) else {eos}
        other = next(token for token in range(vocabulary) if token >= min(8, vocabulary - 1) and token not in ends)
        sequences = [[other if token in ends else token for token in tokens] for tokens in random_tokens]
        self.prompts = [sequence[:-_OUTPUT] for sequence in sequences]
        self.outputs = [sequence[-_OUTPUT:] for sequence in sequences]
        with self._lowered():
            self._expected = list(map(self._generate, self.prompts, self.outputs))

    def check_finite(self) -> None:
        """
        Raises:
            NonFiniteModelError: a logit of `generate` is NaN or infinity. Models give minus infinity to unused tokens.
        """
        # The maximum of a tensor with a NaN is NaN.
        if not all(float(logits.max()) < math.inf for logits in self._expected):
            dtype, name = self.decoder.model.dtype, type(self.decoder.model).__name__
            raise NonFiniteModelError(f"{name} gives NaN or infinity in {name_dtype(dtype)}", advise_wider(dtype))

    def check(self) -> float:
        """The largest difference of logits, divided by the largest logit.

        Raises:
            ValueError: the difference is larger than rounding explains.
        """
        with self._lowered():
            found = self._run()
        largest = max(float(expected.abs().max()) for expected in self._expected)
        difference = max(float((logits - self._expected[row][step]).abs().max()) for row, step, logits in found)
        difference /= largest
        if not difference <= find_tolerance(self.decoder.model.dtype):
            where = "" if self._limit is None else f" where windows and rotary limits are {self._limit} tokens"
            raise ValueError(f"its logits differ by {difference:.0e} of the largest{where}")
        return difference

    def _run(self) -> list[tuple[int, int, Tensor]]:
        run = _Run(self)
        match self.decoder.batching:
            case Batching.CONTINUOUS:
                # The others join the first row; then the first row leaves, and then the longest one.
                run.start([0])
                run.step(2)
                run.start([1, 2, 3])
                run.step(3)
                run.leave([0])
                run.step(1)
                run.leave([1])
                run.step(1)
            case Batching.TOGETHER:
                run.start([0, 1, 2, 3])
                run.step(3)
                run.leave([1])
                run.step(3)
            case Batching.ALONE:
                for row in range(len(_PROMPTS)):
                    run.start([row])
                    run.step(6)
                    run.leave([row])
        return run.found

    def _lowered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._limit is None else lowered(self.decoder, self._limit)

    def _generate(self, prompt: list[int], output: list[int]) -> Tensor:
        """The logits of each step of `generate` that is forced to write the output, [steps, vocabulary]."""
        give_way()
        model: Any = self.decoder.model
        self.decoder.reset_state()
        ids = torch.tensor([prompt], device=model.device)
        generated = model.generate(
            ids, attention_mask=torch.ones_like(ids), logits_processor=[_ForceTokens(output)], num_beams=1,
            do_sample=False, num_return_sequences=1, max_new_tokens=len(output), return_dict_in_generate=True,
            output_logits=True,
            decoder_start_token_id=self.decoder.start_token,
            # `generate` of transformers 5.19 loses the cache where a sequence is computed anew.
            **({"use_cache": False} if self.decoder.restarts_above is not None else {}),
        )  # fmt: skip
        return torch.cat(generated.logits)


class _ForceTokens(LogitsProcessor):
    """Makes `generate` write these tokens."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = list(tokens)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self._tokens.pop(0)] = 0
        return forced


class _Run:
    """Runs the rows of a probe.

    Attributes:
        found: (sequence, step, logits) of all steps.
    """

    def __init__(self, probe: _Probe) -> None:
        self.found: list[tuple[int, int, Tensor]] = []
        self._probe = probe
        self._decoder = probe.decoder
        self._rows: Rows | None = None
        self._running: list[int] = []
        self._steps = [0] * len(probe.prompts)

    def start(self, sequences: list[int]) -> None:
        """Compute prompts with the outputs so far, and let them join the running rows."""
        give_way()
        probe = self._probe
        texts = [probe.prompts[each] + probe.outputs[each][: self._steps[each]] for each in sequences]
        prefill = self._decoder.start(texts)
        # In two parts, if the model can compute parts.
        logits = self._decoder.advance(prefill, prefill.ids.numel() // 2 + 1)
        while logits is None:
            logits = self._decoder.advance(prefill, prefill.ids.numel())
        if self._rows is None:
            self._rows = prefill.rows
        else:
            self._rows.join(prefill.rows)
        self._running += sequences
        self._record(sequences, logits)

    def step(self, count: int) -> None:
        for _ in range(count):
            self._step()

    def leave(self, sequences: Sequence[int]) -> None:
        stay = [row for row, each in enumerate(self._running) if each not in sequences]
        if self._rows is not None and stay and len(stay) < len(self._running):
            self._rows.keep(stay)
        self._running = [self._running[row] for row in stay]
        if not stay:
            self._rows = None

    def _step(self) -> None:
        give_way()
        lengths = [] if self._rows is None else self._rows.lengths
        limit = self._decoder.restarts_above
        restarting = [each for each, length in zip(self._running, lengths, strict=True) if length == limit]
        self.leave(restarting)
        if self._rows is not None:
            outputs = self._probe.outputs
            tokens = [outputs[each][self._steps[each]] for each in self._running]
            logits = self._decoder.step(self._rows, tokens)
            self._advance(self._running)
            self._record(self._running, logits)
        self._advance(restarting)
        # Sequences that cannot join are not followed any further.
        if restarting and (self._decoder.batching is Batching.CONTINUOUS or self._rows is None):
            self.start(restarting)

    def _advance(self, sequences: Sequence[int]) -> None:
        for each in sequences:
            self._steps[each] += 1

    def _record(self, sequences: Sequence[int], logits: Tensor) -> None:
        self.found += [(each, self._steps[each], row) for each, row in zip(sequences, logits, strict=True)]


@torch.inference_mode()
def speed_up(model: PreTrainedModel) -> str:
    """Pack linear layers where that is faster and the model runs with them; returns the result for the log."""
    ids = torch.tensor([[0, 1]], device=model.device)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}

    def run() -> Tensor:
        logits: Tensor = model(**inputs, use_cache=False).logits
        return logits

    try:
        expected = run()
    except Exception as error:
        return f"stock linear layers: {type(model).__name__} does not run on a trial ({brief(error)})"
    return pack_linears(model, run, expected, _TRIED_ROWS)
