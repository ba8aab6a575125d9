"""Which forward pass a model takes, found out by trying at load.

A forward pass is trusted if a batch of unequal texts gives what the stock model gives for each of them alone, in any
order, and if the scores of a text do not change when the other texts are replaced by others of the same lengths. The
fastest that is trusted serves: packed batches, padded ones, batches of texts of equal length, or one text at a time.

Rounding in 16 bit hides what a neighbour does to an answer. Models in 16 bit are therefore tried in float32 first.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig

from runners.encoder.batching import BatchMode
from runners.encoder.difference import measure_difference
from runners.encoder.forward import (
    Forward,
    GroupedForward,
    ModelInputs,
    PaddedForward,
    Rows,
    group_above,
    group_by_length,
    group_singly,
)
from runners.encoder.linear import pack_linears
from runners.encoder.packing import PackedForward
from runners.encoder.reading import TokenizedText
from runners.errors import ModelLoadError, brief
from runners.memory import available_memory

logger = logging.getLogger(__name__)

# How far scores of a batch may be from those of the stock model, relative to their size.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# Words of the texts that are tried; others are longer than what the model's attention reaches, up to a limit.
PROBE_WORDS = (1, 8, 24)
_MOST_PROBE_WORDS = 1100
# Where copying the weights to float32 would take more of the free memory, it is not done.
_SHARE_OF_MEMORY = 0.8
_MANNERS = {
    BatchMode.PACKED: "in packed batches",
    BatchMode.PADDED: "in padded batches, sorted by length",
    BatchMode.EQUAL_LENGTH: "in batches of equal length",
    BatchMode.ONE_BY_ONE: "one by one",
}
_INPUTS_BESIDE_TEXT = ("bbox", "image", "pixel_values", "visual_embeds", "visual_feats")


def count_probe_words(config: PretrainedConfig) -> tuple[int, ...]:
    """The lengths, in words, of texts that show how a model of this config is to be run."""
    reach = max(_read_reaches(config.get_text_config()))
    if not reach:
        return PROBE_WORDS
    # One that is read whole, and one that is not.
    return (*PROBE_WORDS, min(reach // 2, _MOST_PROBE_WORDS), min(reach + PROBE_WORDS[-1], _MOST_PROBE_WORDS))


def _read_reaches(config: PretrainedConfig) -> Iterator[int]:
    """How many tokens attention reaches, where it does not reach all; 0 where it does."""
    # Layers may differ, and then no value holds for all.
    for each in config.per_layer_config if getattr(config, "is_heterogeneous", False) else [config]:
        for name in ("sliding_window", "local_attention", "attention_window"):
            value = getattr(each, name, None) or 0
            yield from value if isinstance(value, list) else [value]
    if getattr(config, "attention_type", None) == "block_sparse":
        yield (5 + 2 * config.num_random_blocks) * config.block_size


class Probe:
    """Texts of unequal lengths that the stock model runs, and others to put in their places."""

    def __init__(self, inputs: ModelInputs, texts: Sequence[TokenizedText], ordinary_ids: NDArray[np.int64]) -> None:
        """
        Args:
            texts: as the model's own tokenizer makes them; those that the stock model refuses are left out.
            ordinary_ids: token ids that texts are made of, which the model has embeddings for: int64 [ids].

        Raises:
            ModelLoadError: the stock model refuses all of them.
        """
        self.inputs = inputs
        self._ordinary_ids = ordinary_ids
        limit = inputs.rope.limit
        if limit is not None:
            # Above it texts run only beside others of their length, whatever passes below.
            texts = [text for text in texts if len(text.input_ids) <= limit]
        self.texts: list[TokenizedText] = []
        # What the stock model says of each: [rows, classes].
        self.expected: list[Tensor] = []
        refusal = None
        for text in texts:
            try:
                self.expected += self.run_alone([text])
            except Exception as error:
                refusal = refusal or brief(error)
            else:
                self.texts.append(text)
        if not self.texts:
            dtype, others = _name_dtype(inputs), _name_other_inputs(inputs)
            raise ModelLoadError(f"{self.name} does not run with text alone in {dtype}{others}: {refusal}")
        self._keeps_specials = self._needs_specials()

    @property
    def name(self) -> str:
        return type(self.inputs.model).__name__

    @torch.inference_mode()
    def run_alone(self, texts: Sequence[TokenizedText]) -> list[Tensor]:
        """What the stock model says of each text alone: [rows, classes]."""
        return [self.inputs.run_alone(text) for text in texts]

    def replace(self, text: TokenizedText, seed: int) -> TokenizedText:
        """Another text of the same length, with its masks; without other special tokens for an odd seed.

        The latter only where the stock model runs such texts.
        """
        return self._replace(text, seed, self._keeps_specials or seed % 2 == 0)

    def _replace(self, text: TokenizedText, seed: int, keeps_specials: bool) -> TokenizedText:
        ids = np.random.default_rng(seed).choice(self._ordinary_ids, len(text.input_ids))
        kept = text.input_ids == self.inputs.mask_token_id
        if keeps_specials:
            kept = ~np.isin(text.input_ids, self._ordinary_ids)
        ids[kept] = text.input_ids[kept]
        return replace(text, input_ids=ids)

    def _needs_specials(self) -> bool:
        """Whether the stock model refuses a text without special tokens: some classifiers want an end of text."""
        try:
            self.run_alone([self._replace(self.texts[0], 0, False)])
        except Exception:
            return True
        return False


def choose_forward(probe: Probe, padding_side: str) -> tuple[Forward, str]:
    """Pack the model's linear layers and choose its forward pass.

    Args:
        padding_side: where the model's tokenizer puts padding, `right` or `left`; the other side is tried after it.

    Returns:
        The forward pass and why it was chosen, for the log.

    Raises:
        ModelLoadError: the model's scores are not finite.
    """
    _check_finite(probe)
    candidates = _make_candidates(probe, padding_side)
    refusals: dict[BatchMode, str] = {}
    if probe.inputs.dtype != torch.float32:
        candidates = _check_in_float32(probe, candidates, refusals)
    expected = torch.cat(probe.expected)
    logger.info("%s", pack_linears(probe.inputs.model, lambda: torch.cat(probe.run_alone(probe.texts)), expected))
    forward, reason = _choose(probe, candidates, probe.expected, refusals)
    limit = probe.inputs.rope.limit
    if limit is None:
        return forward, reason
    guarded = GroupedForward(forward, forward.mode, partial(group_above, limit))
    return guarded, f"{reason}; texts of more than {limit} tokens run only beside others of their length (RoPE scaling)"


@torch.inference_mode()
def _choose(
    probe: Probe, candidates: Sequence[Forward], expected: Sequence[Tensor], refusals: dict[BatchMode, str]
) -> tuple[Forward, str]:
    """The first candidate that can be trusted; the last one, a text at a time, is the stock model itself."""
    *batched, alone = candidates
    for forward in batched:
        try:
            if isinstance(forward, PackedForward):
                forward.attach()
            difference = _check(probe, forward, expected)
        except Exception as error:
            if isinstance(forward, PackedForward):
                forward.detach()
            refusals.setdefault(forward.mode, brief(error))
        else:
            return forward, _explain(probe, forward, refusals, difference)
    return alone, _explain(probe, alone, refusals, None)


def _make_candidates(probe: Probe, padding_side: str) -> Sequence[Forward]:
    """All forward passes, the fastest first."""
    inputs = probe.inputs
    other_side = "left" if padding_side == "right" else "right"
    selects = _selects(probe)
    return [
        PackedForward(inputs),
        PaddedForward(inputs, padding_side, selects),
        PaddedForward(inputs, other_side, selects),
        GroupedForward(PaddedForward(inputs, selects=selects), BatchMode.EQUAL_LENGTH, group_by_length),
        GroupedForward(PaddedForward(inputs, selects=selects), BatchMode.ONE_BY_ONE, group_singly),
    ]


@torch.inference_mode()
def _selects(probe: Probe) -> bool:
    """Whether the head gives the same for rows that are selected before it, tried on one text."""
    if probe.inputs.rows is not Rows.MASKS:
        return False
    try:
        found, _ = PaddedForward(probe.inputs).run(probe.texts[:1])
        _compare([found], probe.expected[:1], _TOLERANCE[probe.inputs.dtype])
    except Exception:
        return False
    return True


def _check_in_float32(probe: Probe, candidates: Sequence[Forward], refusals: dict[BatchMode, str]) -> Sequence[Forward]:
    """The first candidate that can be trusted in float32, and all after it.

    Where there is no memory for that a padded batch is never trusted: what padding changes looks like rounding.
    """
    model = probe.inputs.model
    wanted = 2 * sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    available = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else available_memory()
    if wanted > _SHARE_OF_MEMORY * available:
        refusals[BatchMode.PADDED] = (
            f"there is no memory to try it in float32, {wanted >> 20} MiB of {available >> 20} MiB that are free"
        )
        return [forward for forward in candidates if forward.mode is not BatchMode.PADDED]
    with _in_float32(probe.inputs):
        expected = probe.run_alone(probe.texts)
        forward, _ = _choose(probe, candidates, expected, refusals)
        if isinstance(forward, PackedForward):
            forward.detach()
    return candidates[candidates.index(forward) :]


@contextlib.contextmanager
def _in_float32(inputs: ModelInputs) -> Iterator[None]:
    """The model with its weights as float32 meanwhile, which hold the same numbers."""
    dtype, model = inputs.dtype, inputs.model
    # CTRL casts a buffer of its own at each run.
    every = (*model.parameters(), *model.buffers())
    tensors = [tensor for tensor in every if tensor.dtype == dtype and not tensor.is_inference()]
    stored = [tensor.data for tensor in tensors]
    try:
        inputs.dtype = torch.float32
        for tensor in tensors:
            tensor.data = tensor.data.float()
        yield
    finally:
        inputs.dtype = dtype
        for tensor, data in zip(tensors, stored, strict=True):
            tensor.data = data


def _check(probe: Probe, forward: Forward, expected: Sequence[Tensor]) -> float:
    """Try a forward pass.

    Args:
        expected: what the stock model says of the probe's texts.

    Returns:
        How far its scores are from those.

    Raises:
        ValueError: it gives something else, or the answer to a text depends on the others.
    """
    dtype = probe.inputs.dtype
    tolerance = _TOLERANCE[dtype]
    texts = list(probe.texts)
    if forward.mode is BatchMode.EQUAL_LENGTH:
        texts = [each for text in texts for each in (text, probe.replace(text, seed=0))]
        expected = probe.run_alone(texts)
    found = _split(forward, texts)
    difference = _compare(found, expected, tolerance)
    _compare(_split(forward, texts[::-1])[::-1], expected, tolerance)
    # Padding mixes no texts, and in float32 what depends on the other rows of a batch is the order of sums.
    exact = forward.mode is BatchMode.PACKED or dtype != torch.float32
    for kept in (0, 1):
        others = [text if index % 2 == kept else probe.replace(text, 2 + kept) for index, text in enumerate(texts)]
        beside = _split(forward, others)
        if exact and not all(map(torch.equal, beside[kept::2], found[kept::2])):
            raise ValueError("the answer to a text depends on the others of its batch")
        _compare(beside[kept::2], found[kept::2], tolerance)
    return difference


def _split(forward: Forward, texts: Sequence[TokenizedText]) -> list[Tensor]:
    """What a forward pass says of each text: [rows, classes]."""
    rows, counts = forward.run_checked(texts) if isinstance(forward, PackedForward) else forward.run(texts)
    return list(torch.split(rows, counts))


def _compare(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> float:
    """How far scores are from what is expected.

    Raises:
        ValueError: it is more than the tolerance.
    """
    difference = measure_difference(torch.cat(list(found)), torch.cat(list(expected)))
    if not difference <= tolerance:
        raise ValueError(f"its scores differ by {difference:.0e}")
    return difference


@torch.inference_mode()
def _check_finite(probe: Probe) -> None:
    """Refuse a checkpoint with a NaN, and a dtype that scores overflow in.

    Raises:
        ModelLoadError: a weight or a score is not finite.
    """
    dtype = _name_dtype(probe.inputs)
    for name, weight in probe.inputs.model.named_parameters():
        # One pass over the weights, without a copy of them.
        if not torch.isfinite(weight.sum(dtype=torch.float32)):
            raise ModelLoadError(
                f"the weights {name} hold NaN or infinity in {dtype}: the checkpoint is broken or wants another --dtype"
            )
    if not all(torch.isfinite(scores).all() for scores in probe.expected):
        others = {"float16": ": set --dtype to bfloat16 or float32", "bfloat16": ": set --dtype to float32"}
        raise ModelLoadError(f"{probe.name} gives NaN or infinity in {dtype}{others.get(dtype, '')}")


def _explain(probe: Probe, chosen: Forward, refusals: dict[BatchMode, str], difference: float | None) -> str:
    same = f"{probe.name} gives the same as for each text alone ({difference:.0e})" if difference is not None else ""
    reasons = (f"not {refused}, since {reason}" for refused, reason in refusals.items())
    return f"texts are run {_MANNERS[chosen.mode]}: {'; '.join(filter(None, [same, *reasons]))}"


def _name_dtype(inputs: ModelInputs) -> str:
    return str(inputs.dtype).removeprefix("torch.")


def _name_other_inputs(inputs: ModelInputs) -> str:
    """What the model takes beside text, which may be what it lacks."""
    taken = inspect.signature(inputs.model.forward).parameters
    others = [name for name in _INPUTS_BESIDE_TEXT if name in taken]
    return f", it takes {' and '.join(others)} beside it" if others else ""
