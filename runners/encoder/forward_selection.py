"""Selects the forward pass of a model, by probing at load.

A forward pass is correct if two conditions hold. A batch of texts of different lengths, in any order, gives the scores
that the stock model gives for each text alone. And the scores of a text do not change if the other texts of its batch
are replaced by others of the same lengths. The fastest correct forward pass is selected: packed batches, padded
batches, batches of texts of equal length, or one text at a time.

Rounding in 16 bits and in TF32 can hide the influence of other texts, so such models are probed in float32 first.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from runners.core.device_thread import give_way
from runners.core.errors import NonFiniteModelError, brief
from runners.core.machine import available_memory
from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import (
    Forward,
    GroupedForward,
    ModelInputs,
    PaddedForward,
    TokenSelection,
    group_above,
    group_by_length,
    group_singly,
)
from runners.encoder.packing import NarrowForward, PackedForward
from runners.encoder.probe import Probe
from runners.encoder.sequences import TokenizedText
from runners.modeling.dtypes import advise_wider, name_dtype
from runners.modeling.matmul_precision import exact_matmuls, is_reduced
from runners.modeling.packed_linear import pack_linears
from runners.modeling.score_difference import find_tolerance, measure_difference

logger = logging.getLogger(__name__)

# Do not probe in float32 if the weights need more than this share of the free memory.
_SHARE_OF_MEMORY = 0.8
# How many texts a padded batch and packed linear layers are probed with.
_PADDED_TEXTS = 3
_MODE_PHRASES = {
    BatchMode.PACKED: "in packed batches",
    BatchMode.EQUAL_LENGTH: "in batches of equal length",
    BatchMode.ONE_BY_ONE: "one by one",
}


def select_forward(probe: Probe, padding_side: str) -> tuple[Forward, str]:
    """Pack the model's linear layers and select its forward pass.

    Args:
        padding_side: where the model's tokenizer pads, `right` or `left`; the other side is probed after it.

    Returns:
        The forward pass, and the reason for the log.

    Raises:
        NonFiniteModelError: the model's weights or scores are not finite.
    """
    _check_finite(probe)
    candidates = make_candidates(probe, padding_side)
    refusals: dict[str, str] = {}
    if probe.inputs.dtype != torch.float32 or is_reduced():
        candidates = _check_in_float32(probe, candidates, refusals)
    few = slice(_PADDED_TEXTS)
    expected = torch.cat(probe.expected[few])
    is_narrow = any(isinstance(candidate, NarrowForward) for candidate in candidates)

    def run() -> Tensor:
        return torch.cat(probe.run_alone(probe.texts[few]))

    logger.info("%s", pack_linears(probe.inputs.model, run, expected, parts_last=is_narrow))
    forward, difference = _find_correct(probe, candidates, probe.expected, refusals)
    limit = probe.inputs.rope.limit
    if limit is None:
        return forward, _explain(probe, forward, refusals, difference)
    guarded = GroupedForward(forward, forward.mode, partial(group_above, limit))
    try:
        texts, scores = [*probe.texts, *probe.long_texts], [*probe.expected, *probe.long_expected]
        _compare(_split(guarded, texts), scores, find_tolerance(probe.inputs.dtype))
    except Exception as error:
        refusals[forward.name] = f"it differs for longer texts, whose rotary positions are scaled: {brief(error)}"
        forward.detach()
        return candidates[-1], _explain(probe, candidates[-1], refusals, None)
    reason = _explain(probe, forward, refusals, difference)
    return guarded, f"{reason}; texts of more than {limit} tokens run only beside others of their length (RoPE scaling)"


@torch.inference_mode()
def _find_correct(
    probe: Probe, candidates: Sequence[Forward], expected: Sequence[Tensor], refusals: dict[str, str]
) -> tuple[Forward, float | None]:
    """The first correct candidate, and how much its scores differ from those of the stock model.

    The last candidate, one text at a time, is the stock model itself; for it there is no difference.

    Raises:
        torch.OutOfMemoryError: there is not enough memory for a batch of probe texts.
    """
    *batched, alone = candidates
    for forward in batched:
        try:
            forward.attach()
            return forward, check_forward(probe, forward, expected)
        except torch.OutOfMemoryError:
            # It says nothing about the forward pass.
            forward.detach()
            raise
        except Exception as error:
            forward.detach()
            if forward.is_variant:
                logger.debug("%s: %s", type(forward).__name__, brief(error))
            else:
                refusals.setdefault(forward.name, brief(error))
    return alone, None


def make_candidates(probe: Probe, padding_side: str) -> Sequence[Forward]:
    """All forward passes, fastest first."""
    inputs = probe.inputs
    other_side = "left" if padding_side == "right" else "right"
    selects = _can_select_tokens(probe)
    # A GPU would run attention text by text.
    reads_few = inputs.selection in (TokenSelection.FIRST, TokenSelection.MASKS)
    is_narrow = reads_few and inputs.model.device.type == "cpu"
    return [
        *([NarrowForward(inputs)] if is_narrow else []),
        PackedForward(inputs),
        PaddedForward(inputs, padding_side, selects),
        PaddedForward(inputs, other_side, selects),
        GroupedForward(PaddedForward(inputs, selects=selects), BatchMode.EQUAL_LENGTH, group_by_length),
        GroupedForward(PaddedForward(inputs, selects=selects), BatchMode.ONE_BY_ONE, group_singly),
    ]


@torch.inference_mode()
def _can_select_tokens(probe: Probe) -> bool:
    """Whether tokens can be selected before the model's head runs, without changing scores; probed with one text."""
    if probe.inputs.selection not in (TokenSelection.MASKS, TokenSelection.POOLED):
        return False
    try:
        scores, _ = PaddedForward(probe.inputs).run(probe.texts[:1])
        _compare([scores], probe.expected[:1], find_tolerance(probe.inputs.dtype))
    except Exception:
        return False
    return True


def _check_in_float32(probe: Probe, candidates: Sequence[Forward], refusals: dict[str, str]) -> Sequence[Forward]:
    """The first candidate that is correct in float32, and all after it.

    Without memory for float32, padded batches are left out: in 16 bits the influence of padding looks like rounding.
    """
    try:
        with in_float32(probe.inputs):
            forward, _ = _find_correct(probe, candidates, probe.run_alone(probe.texts), refusals)
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
    """Convert the model's weights to float32, and compute matrix products exactly, within the block.

    Raises:
        MemoryError: they need too much of the free memory.
    """
    dtype, model = inputs.dtype, inputs.model
    # CTRL casts one of its buffers itself.
    weights = (*model.parameters(), *model.buffers())
    tensors = [
        tensor for tensor in weights if tensor.dtype == dtype and dtype != torch.float32 and not tensor.is_inference()
    ]
    needed = 2 * sum(tensor.nbytes for tensor in tensors)
    available = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else available_memory()
    if needed > _SHARE_OF_MEMORY * available:
        raise MemoryError(f"{needed >> 20} MiB of {available >> 20} MiB that are free")
    stored = [tensor.data for tensor in tensors]
    try:
        inputs.dtype = torch.float32
        for tensor in tensors:
            tensor.data = tensor.data.float()
        with exact_matmuls():
            yield
    finally:
        inputs.dtype = dtype
        for tensor, data in zip(tensors, stored, strict=True):
            tensor.data = data


def check_forward(probe: Probe, forward: Forward, expected: Sequence[Tensor]) -> float:
    """Check that a forward pass is correct.

    Args:
        expected: the stock model's scores of each of the probe's texts, [rows, classes] each.

    Returns:
        How much the scores of the forward pass differ from these.

    Raises:
        ValueError: they differ by more than the tolerance, or a text's scores depend on the other texts.
    """
    dtype = probe.inputs.dtype
    tolerance = find_tolerance(dtype)
    texts, expected = list(probe.texts), list(expected)
    if forward.mode is not BatchMode.PACKED and len(texts) > _PADDED_TEXTS:
        # The shortest text, which gets the most padding, and the longest ones.
        texts, expected = [texts[0], *texts[-2:]], [expected[0], *expected[-2:]]
    if forward.mode is BatchMode.EQUAL_LENGTH or len(texts) == 1:
        texts = [each for text in texts for each in (text, probe.replace(text))]
        forward.detach()
        expected = probe.run_alone(texts)
        forward.attach()
    scores = _split(forward, texts)
    difference = _compare(scores, expected, tolerance)
    replacements = [probe.replace]
    if forward.mode is BatchMode.PACKED:
        # In another order, and as a long row: CLIP, for one, refuses more tokens than it has positions.
        _compare(_split(forward, texts[::-1] * probe.copies), expected[::-1] * probe.copies, tolerance)
        replacements.append(probe.replace_all)
    # Padding does not mix texts; in float32 only the order of sums depends on the other rows of a batch.
    exact = forward.mode is BatchMode.PACKED or dtype != torch.float32
    for first, replace in enumerate(replacements):
        mixed = _split(forward, [text if index % 2 == first else replace(text) for index, text in enumerate(texts)])
        if exact and not all(map(torch.equal, mixed[first::2], scores[first::2])):
            raise ValueError("the answer to a text depends on the others of its batch")
        _compare(mixed[first::2], scores[first::2], tolerance)
    return difference


def _split(forward: Forward, texts: Sequence[TokenizedText]) -> list[Tensor]:
    """The scores of each text by a forward pass: [rows, classes] each."""
    give_way()
    with torch.inference_mode():
        rows, counts = forward.run_checked(texts)
    return list(torch.split(rows, counts))


def _compare(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> float:
    """The largest relative difference of scores (see `measure_difference`).

    Raises:
        ValueError: it is larger than the tolerance.
    """
    difference = measure_difference(torch.cat(list(actual)), torch.cat(list(expected)))
    if not difference <= tolerance:
        raise ValueError(f"its scores differ by {difference:.0e}")
    return difference


@torch.inference_mode()
def _check_finite(probe: Probe) -> None:
    """Refuse a checkpoint with NaN or infinity, and a dtype in which weights or scores overflow.

    Raises:
        NonFiniteModelError: a weight or a score is not finite.
    """
    dtype = probe.inputs.dtype
    weights = dict(probe.inputs.model.named_parameters())
    sums = []
    for weight in weights.values():
        give_way()
        # A sum needs one pass over the weight, and no copy. All are read at once: a GPU waits for each that is read.
        sums.append(weight.sum(dtype=torch.float32))
    finite = torch.stack(sums).isfinite().tolist()
    for name, is_finite in zip(weights, finite, strict=True):
        if not is_finite:
            raise NonFiniteModelError(
                f"the weights {name} hold NaN or infinity in {name_dtype(dtype)}",
                f": the checkpoint is broken{' or needs another --dtype' if advise_wider(dtype) else ''}",
            )
    scores = torch.cat([rows.flatten() for rows in (*probe.expected, *probe.long_expected)])
    if not scores.isfinite().all():
        raise NonFiniteModelError(f"{probe.name} gives NaN or infinity in {name_dtype(dtype)}", advise_wider(dtype))


def _explain(probe: Probe, chosen: Forward, refusals: dict[str, str], difference: float | None) -> str:
    parts = [f"{probe.name} gives the same as for each text alone ({difference:.0e})"] if difference is not None else []
    parts += [f"not {refused}, since {reason}" for refused, reason in refusals.items()]
    if chosen.is_variant:
        parts.append("its last layer runs only on the rows that the task reads")
    if probe.refused:
        parts.append(f"some texts were not tried, since the stock model refuses them: {probe.refused}")
    phrase = _MODE_PHRASES.get(chosen.mode, f"in batches sorted by length, {chosen.name}")
    return f"texts are run {phrase}: {'; '.join(parts)}"
