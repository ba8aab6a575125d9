"""The forward pass that a model is run with, found out by trying at load.

A forward pass is trusted if a batch of unequal texts gives what the stock model gives for each of them alone, in any
order, and if the scores of a text do not change when the other texts are replaced by others of the same lengths. The
fastest that is trusted serves: packed batches, padded ones, batches of texts of equal length, or one text at a time.

Rounding in 16 bit hides what a neighbour does to an answer. Models in 16 bit are therefore tried in float32 first.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from runners.core.errors import ModelLoadError, brief
from runners.core.machine import available_memory
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
from runners.encoder.packing import PackedForward
from runners.encoder.probe import Probe, name_dtype
from runners.encoder.queue import BatchMode
from runners.encoder.sequences import TokenizedText
from runners.modeling.packed_linear import pack_linears
from runners.modeling.score_difference import TOLERANCES, measure_difference

logger = logging.getLogger(__name__)

# Skip the float32 trial if its weights need more than this share of the free memory.
_SHARE_OF_MEMORY = 0.8
# Texts that are tried in a padded batch, and that packed layers are tried on.
_PADDED_TEXTS = 3
_MODE_PHRASES = {
    BatchMode.PACKED: "in packed batches",
    BatchMode.EQUAL_LENGTH: "in batches of equal length",
    BatchMode.ONE_BY_ONE: "one by one",
}


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
    candidates = make_candidates(probe, padding_side)
    refusals: dict[str, str] = {}
    if probe.inputs.dtype != torch.float32:
        candidates = _check_in_float32(probe, candidates, refusals)
    few = slice(_PADDED_TEXTS)
    expected = torch.cat(probe.expected[few])
    logger.info("%s", pack_linears(probe.inputs.model, lambda: torch.cat(probe.run_alone(probe.texts[few])), expected))
    forward, difference = _choose(probe, candidates, probe.expected, refusals)
    limit = probe.inputs.rope.limit
    if limit is None:
        return forward, _explain(probe, forward, refusals, difference)
    guarded = GroupedForward(forward, forward.mode, partial(group_above, limit))
    try:
        texts, scores = [*probe.texts, *probe.long_texts], [*probe.expected, *probe.long_expected]
        _compare(_split(guarded, texts), scores, TOLERANCES[probe.inputs.dtype])
    except Exception as error:
        refusals[forward.name] = f"longer texts, with other rotary positions, do not: {brief(error)}"
        forward.detach()
        return candidates[-1], _explain(probe, candidates[-1], refusals, None)
    reason = _explain(probe, forward, refusals, difference)
    return guarded, f"{reason}; texts of more than {limit} tokens run only beside others of their length (RoPE scaling)"


@torch.inference_mode()
def _choose(
    probe: Probe, candidates: Sequence[Forward], expected: Sequence[Tensor], refusals: dict[str, str]
) -> tuple[Forward, float | None]:
    """The first candidate that can be trusted, and how far its scores are from the stock ones.

    The last one, a text at a time, is the stock model itself.
    """
    *batched, alone = candidates
    for forward in batched:
        try:
            forward.attach()
            return forward, _check(probe, forward, expected)
        except Exception as error:
            forward.detach()
            refusals.setdefault(forward.name, brief(error))
    return alone, None


def make_candidates(probe: Probe, padding_side: str) -> Sequence[Forward]:
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
        _compare([found], probe.expected[:1], TOLERANCES[probe.inputs.dtype])
    except Exception:
        return False
    return True


def _check_in_float32(probe: Probe, candidates: Sequence[Forward], refusals: dict[str, str]) -> Sequence[Forward]:
    """The first candidate that can be trusted in float32, and all after it.

    Where there is no memory for that a padded batch is never trusted: what padding changes looks like rounding.
    """
    try:
        with in_float32(probe.inputs):
            forward, _ = _choose(probe, candidates, probe.run_alone(probe.texts), refusals)
            forward.detach()
        return candidates[candidates.index(forward) :]
    except (MemoryError, torch.OutOfMemoryError) as error:
        refusals[BatchMode.PADDED] = f"there is no memory to try it in float32: {brief(error)}"
        return [forward for forward in candidates if forward.mode is not BatchMode.PADDED]
    finally:
        if probe.inputs.model.device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def in_float32(inputs: ModelInputs) -> Iterator[None]:
    """The model with its weights as float32 meanwhile, which hold the same numbers.

    Raises:
        MemoryError: they would take more than most of the memory that is free.
    """
    dtype, model = inputs.dtype, inputs.model
    # CTRL casts a buffer of its own at each run.
    every = (*model.parameters(), *model.buffers())
    tensors = [tensor for tensor in every if tensor.dtype == dtype and not tensor.is_inference()]
    wanted = 2 * sum(tensor.nbytes for tensor in tensors)
    available = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else available_memory()
    if wanted > _SHARE_OF_MEMORY * available:
        raise MemoryError(f"{wanted >> 20} MiB of {available >> 20} MiB that are free")
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
    tolerance = TOLERANCES[dtype]
    texts, expected = list(probe.texts), list(expected)
    if forward.mode is not BatchMode.PACKED and len(texts) > _PADDED_TEXTS:
        # Each is filled up to the longest: the shortest one, and the longest ones.
        texts, expected = [texts[0], *texts[-2:]], [expected[0], *expected[-2:]]
    if forward.mode is BatchMode.EQUAL_LENGTH or len(texts) == 1:
        texts = [each for text in texts for each in (text, probe.replace(text))]
        forward.detach()
        expected = probe.run_alone(texts)
        forward.attach()
    found = _split(forward, texts)
    difference = _compare(found, expected, tolerance)
    replacements = [probe.replace]
    if forward.mode is BatchMode.PACKED:
        _compare(_split(forward, texts[::-1])[::-1], expected, tolerance)
        # Some models look at the length of the row: CLIP's refuses one of more tokens than it has positions.
        _compare(_split(forward, texts * probe.copies), [*expected] * probe.copies, tolerance)
        replacements.append(probe.replace_all)
    # Padding mixes no texts, and in float32 what depends on the other rows of a batch is the order of sums.
    exact = forward.mode is BatchMode.PACKED or dtype != torch.float32
    for kept, replace in enumerate(replacements):
        beside = _split(forward, [text if index % 2 == kept else replace(text) for index, text in enumerate(texts)])
        if exact and not all(map(torch.equal, beside[kept::2], found[kept::2])):
            raise ValueError("the answer to a text depends on the others of its batch")
        _compare(beside[kept::2], found[kept::2], tolerance)
    return difference


def _split(forward: Forward, texts: Sequence[TokenizedText]) -> list[Tensor]:
    """What a forward pass says of each text: [rows, classes]."""
    with torch.inference_mode():
        rows, counts = forward.run_checked(texts)
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
    dtype = name_dtype(probe.inputs)
    for name, weight in probe.inputs.model.named_parameters():
        # One pass over the weights, without a copy of them.
        if not torch.isfinite(weight.sum(dtype=torch.float32)):
            raise ModelLoadError(
                f"the weights {name} hold NaN or infinity in {dtype}: the checkpoint is broken or wants another --dtype"
            )
    if not all(torch.isfinite(scores).all() for scores in probe.expected):
        others = {"float16": ": set --dtype to bfloat16 or float32", "bfloat16": ": set --dtype to float32"}
        raise ModelLoadError(f"{probe.name} gives NaN or infinity in {dtype}{others.get(dtype, '')}")


def _explain(probe: Probe, chosen: Forward, refusals: dict[str, str], difference: float | None) -> str:
    parts = [f"{probe.name} gives the same as for each text alone ({difference:.0e})"] if difference is not None else []
    parts += [f"not {refused}, since {reason}" for refused, reason in refusals.items()]
    if probe.refused:
        parts.append(f"some texts were not tried, since the stock model refuses them: {probe.refused}")
    phrase = _MODE_PHRASES.get(chosen.mode, f"in batches sorted by length, {chosen.name}")
    return f"texts are run {phrase}: {'; '.join(parts)}"
