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

from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from runners.encoder.segments import Segments

# Most bytes of the scores of one part, and the fewest rows that a part has: fewer would read the weights too often.
_PART_BYTES = {"cpu": 32 * 2**20, "cuda": 2**30}
_LEAST_ROWS = 32
# Kernels are built and cached per number of rows, so parts are rounded up to a multiple of this.
_ROW_MULTIPLE = 4


class TokenPooling(Protocol):
    """Pools the scores of each text's tokens to one row."""

    def start(self, texts: int, scores: Tensor) -> Tensor:
        """The rows of texts of which no token is pooled yet, for scores such as these: [texts, classes]."""

    def add(self, pooled: Tensor, scores: Tensor, segments: Segments) -> None:
        """Pool further tokens.

        Args:
            pooled: [texts, classes], of the tokens before; changed.
            scores: [tokens, classes]; may be overwritten.
            segments: which of the tokens belong to which text.
        """

    def finish(self, pooled: Tensor) -> Tensor:
        """The rows of texts whose tokens are all pooled: float32 [texts, classes]; `pooled` may be overwritten."""


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
        first: the position of the first text.
        counts: how many rows this text and the next ones have.
    """

    start: int
    first: int
    counts: Sequence[int]

    @property
    def rows(self) -> int:
        return sum(self.counts)


def cut_parts(lengths: Sequence[int], most: int) -> Iterator[Part]:
    """Divide the rows of texts of these lengths into parts.

    A part has whole texts, and at most one piece of a text that has more rows than a part may have. How a text is
    divided does not depend on the other texts.

    Args:
        most: the most rows of a part.
    """
    start, counts = 0, list[int]()
    for position, length in enumerate(lengths):
        size = sum(counts)
        if counts and size + length > most:
            yield Part(start, position - len(counts), counts)
            start, counts = start + size, []
        rest = length
        while rest > most:
            yield Part(start, position, [most])
            start, rest = start + most, rest - most
        counts.append(rest)
    if counts:
        yield Part(start, len(lengths) - len(counts), counts)


def take_tokens(rows: Tensor, slots: Tensor | None) -> Tensor:
    """The rows of the tokens of a batch: [tokens, columns].

    Args:
        rows: [texts, slots of a text, columns].
        slots: int64 [tokens], the slots of the tokens among all; None to take all slots.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    return flat if slots is None else flat.index_select(0, slots)


class _TokenRows:
    """The rows of the tokens of a batch in a model's last hidden state, once the model has run."""

    def __init__(self, slots: Tensor | None) -> None:
        """
        Args:
            slots: as of `take_tokens`.
        """
        self._slots = slots
        self._rows: Tensor | None = None

    def take(self, part: Part, hidden: Tensor) -> Tensor:
        """The rows of a part, and some more to the next multiple: [1, rows, hidden].

        Args:
            hidden: [texts, tokens, hidden] in the first call; ignored in later ones.
        """
        if self._rows is None:
            self._rows = take_tokens(hidden, self._slots)
        rounded = part.rows + -part.rows % _ROW_MULTIPLE
        taken = self._rows[part.start : part.start + rounded]
        return functional.pad(taken, (0, 0, 0, rounded - len(taken)))[None]


def pool_in_parts(
    model: PreTrainedModel,
    selector: RowSelector,
    pooling: TokenPooling,
    run: Callable[[Callable[[Tensor], Tensor]], Tensor],
    tensors: dict[str, Tensor],
    segments: Segments,
    slots: Tensor | None,
) -> Tensor:
    """Run a model, its head on a few rows at a time, and pool the scores of each text's tokens.

    Args:
        selector: of the module whose output the head reads.
        run: runs the model on the tensors, with a function that selects the rows on which the head runs.
        tensors: int64 [texts, tokens] each.
        segments: which of the tokens belong to which text.
        slots: int64 [tokens], the slots of the tokens among all of the tensors; None if the tokens come first.

    Returns:
        float32 [texts, classes].
    """
    entries = int(model.config.get_text_config().vocab_size)
    most = max(_LEAST_ROWS, _PART_BYTES[model.device.type] // (entries * model.dtype.itemsize))
    first, *others = cut_parts(segments.counts, most)
    rows = _TokenRows(slots)

    def add(pooled: Tensor, part: Part, scores: Tensor) -> None:
        texts = pooled[part.first : part.first + len(part.counts)]
        pooling.add(texts, scores[0], segments.cut(part.start, part.first, part.counts))

    with selector.repeating():
        scores = run(partial(rows.take, first))
        pooled = pooling.start(len(segments.counts), scores)
        add(pooled, first, scores)
        for part in others:
            # They take the place of these.
            del scores
            selector.select = partial(rows.take, part)
            scores = model(**tensors).logits
            add(pooled, part, scores)
    return pooling.finish(pooled)
