"""Filters tokens by top_k and top_p, without sorting the whole vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

# Number of most likely tokens that are searched first; top_k and top_p nearly always end among them.
_CANDIDATES = 1024


def least_kept(logits: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """The smallest logit that top_k and then top_p keep; tokens with an equal logit are kept too.

    Args:
        logits: [rows, vocabulary].
        top_k: [rows], at most the vocabulary.
        top_p: [rows, 1].

    Returns:
        [rows, 1].
    """
    vocabulary = logits.shape[1]
    limited = top_k[:, None] < vocabulary
    largest = int(torch.where(limited[:, 0], top_k, 0).max())
    least, complete = _least_among(logits, top_k, top_p, min(vocabulary, max(_CANDIDATES, largest)))
    if not bool(complete.all()):
        least, _ = _least_among(logits, top_k, top_p, vocabulary)
    return least


def _least_among(logits: Tensor, top_k: Tensor, top_p: Tensor, candidates: int) -> tuple[Tensor, Tensor]:
    """As `least_kept`, among this number of candidates; and, [rows, 1], whether they were enough."""
    vocabulary = logits.shape[1]
    values = logits.topk(candidates).values
    in_top_k = torch.arange(candidates, device=logits.device) < top_k[:, None]
    limited = top_k[:, None] < vocabulary
    top_k_sum = values.masked_fill(~in_top_k, -torch.inf).logsumexp(-1, keepdim=True)
    mass = (values - torch.where(limited, top_k_sum, logits.logsumexp(-1, keepdim=True))).exp()
    before = mass.cumsum(-1) - mass
    is_kept = in_top_k & ((before < top_p) | (top_p >= 1))
    is_kept[:, 0] = True
    last = is_kept.sum(-1, keepdim=True) - 1
    complete = limited | (last < candidates - 1) | (candidates == vocabulary)
    return values.gather(1, last), complete
