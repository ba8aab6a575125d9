"""A head that scores every entry of a vocabulary, run on all tokens of a batch; the scores of each text are pooled.

The scores of all tokens together would take gigabytes: 16,384 tokens by 30,522 entries by 4 bytes. The head therefore
runs on a few rows at a time, and their scores are pooled before it runs on the next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

# Most bytes of the scores of one part, and the fewest rows that a part has: fewer would read the weights too often.
_PART_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
_LEAST_ROWS = 32
# Kernels are built and cached per number of rows, so parts are rounded up to a multiple of this.
_ROW_MULTIPLE = 4


class TokenPooling(Protocol):
    """Pools the scores of a text's tokens to one row."""

    def add(self, pooled: Tensor | None, scores: Tensor) -> Tensor:
        """Pool further tokens of a text.

        Args:
            pooled: [classes], of the tokens before; None if there are none.
            scores: [tokens, classes].

        Returns:
            [classes].
        """

    def finish(self, pooled: Tensor) -> Tensor:
        """The row of a text whose tokens are all pooled: [classes]."""


class RowSelector:
    """Selects rows of a module's last hidden state with a hook, while `select` is set."""

    def __init__(self, module: nn.Module) -> None:
        self.select: Callable[[Tensor], Tensor] | None = None
        self._module = module
        module.register_forward_hook(self._hook)

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """Within the block the module runs once: later calls return the same output, with other rows selected."""
        run, output = self._module.forward, None

        def repeat(*args: Any, **kwargs: Any) -> Any:
            nonlocal output
            if output is None:
                output = run(*args, **kwargs)
            return output

        self._module.forward = repeat
        try:
            yield
        finally:
            del self._module.forward
            self.select = None

    def _hook(self, _: nn.Module, __: Any, output: Any) -> Any:
        if self.select is not None:
            output.last_hidden_state = self.select(output.last_hidden_state)
        return output


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows of a batch on which the head runs together.

    Attributes:
        start: the first row, among those of all texts.
        counts: how many rows belong to which text: pairs of a position and a count.
    """

    start: int
    counts: Sequence[tuple[int, int]]

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.counts)


def cut_parts(lengths: Sequence[int], most: int) -> Iterator[Part]:
    """Divide the rows of texts of these lengths into parts.

    A part has whole texts, and at most one piece of a text that has more rows than a part may have. How a text is
    divided does not depend on the other texts.

    Args:
        most: the most rows of a part.
    """
    start, counts = 0, list[tuple[int, int]]()
    for position, length in enumerate(lengths):
        size = sum(count for _, count in counts)
        if counts and size + length > most:
            yield Part(start, counts)
            start, counts = start + size, []
        rest = length
        while rest > most:
            yield Part(start, [(position, most)])
            start, rest = start + most, rest - most
        counts.append((position, rest))
    if counts:
        yield Part(start, counts)


class _TextRows:
    """The rows of the texts of a batch in a model's last hidden state, once the model has run."""

    def __init__(self, spans: Sequence[slice]) -> None:
        self._spans = spans
        self._rows: Tensor | None = None

    def take(self, part: Part, hidden: Tensor) -> Tensor:
        """The rows of a part, and some more to the next multiple: [1, rows, hidden].

        Args:
            hidden: [texts, tokens, hidden] in the first call; ignored in later ones.
        """
        if self._rows is None:
            flat = hidden.reshape(-1, hidden.shape[-1])
            self._rows = torch.cat([flat[span] for span in self._spans])
        rounded = part.rows + -part.rows % _ROW_MULTIPLE
        taken = self._rows[part.start : part.start + rounded]
        return functional.pad(taken, (0, 0, 0, rounded - len(taken)))[None]


def pool_in_parts(
    model: PreTrainedModel,
    selector: RowSelector,
    pooling: TokenPooling,
    run: Callable[[Callable[[Tensor], Tensor]], Tensor],
    tensors: dict[str, Tensor],
    spans: Sequence[slice],
) -> Tensor:
    """Run a model, its head on a few rows at a time, and pool the scores of each text's tokens.

    Args:
        selector: of the module whose output the head reads.
        run: runs the model on the tensors, with a function that selects the rows on which the head runs.
        tensors: int64 [texts, tokens] each.
        spans: where the tokens of each text are among all of the tensors.

    Returns:
        [texts, classes].
    """
    entries = int(model.config.get_text_config().vocab_size)
    most = max(_LEAST_ROWS, _PART_BYTES[model.device.type] // (entries * model.dtype.itemsize))
    first, *others = cut_parts([span.stop - span.start for span in spans], most)
    rows = _TextRows(spans)
    pooled: list[Tensor | None] = [None] * len(spans)
    with selector.repeating():
        _add(pooling, pooled, first, run(partial(rows.take, first)))
        for part in others:
            selector.select = partial(rows.take, part)
            _add(pooling, pooled, part, model(**tensors).logits)
    return torch.stack([pooling.finish(each) for each in pooled if each is not None])


def _add(pooling: TokenPooling, pooled: list[Tensor | None], part: Part, scores: Tensor) -> None:
    """Pool the scores of a part, [1, rows, classes]."""
    rows = torch.split(scores[0, : part.rows], [count for _, count in part.counts])
    for (position, _), each in zip(part.counts, rows, strict=True):
        pooled[position] = pooling.add(pooled[position], each)
