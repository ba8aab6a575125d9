"""CUDA graphs of the packed forward pass.

A batch of a few hundred tokens keeps a GPU busy for less time than Python needs to start its kernels, a dozen a layer.
A graph is captured once, and starts all of them in one call.

A graph repeats what was captured: kernels, sizes and addresses, and whatever Python has computed. So a graph is
captured for each of a series of sizes, and a batch runs in the first one that it fits into. All batches of a size have
one `Shape`, unused sequences are empty, and only the content of the input tensors differs. Each graph is compared with
the forward pass in that shape, bit for bit, on two batches.
"""

from __future__ import annotations

import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

import torch
from torch import Tensor

from runners.core.device_thread import give_way
from runners.core.errors import brief
from runners.encoder.batch_mode import BatchMode
from runners.encoder.batch_trial import cut_text
from runners.encoder.forward import Forward, TokenSelection
from runners.encoder.packing import PackedBatch, PackedForward, Shape
from runners.encoder.probe import Probe
from runners.encoder.sequences import TokenizedText
from runners.encoder.transfers import DeviceArrays
from runners.modeling.device_failures import free_memory

_LEAST_ROWS = 16
# A kernel of attention starts a thread block for each text and part of the longest text that there may be, most of them
# without work. So graphs are for texts of this many tokens on average at least, and at most.
_LEAST_TOKENS, _MOST_TOKENS = 8, 512
# How many sizes there are between a power of two and the next, for fewer rows than this, and for more.
_FEW_ROWS, _STEPS, _FINE_STEPS = 1024, 4, 8
# Invalid graphs, to which PyTorch's allocator of pinned memory still refers.
_invalid: list[torch.cuda.CUDAGraph] = []


class Capturer(Protocol):
    """Captures what a function makes a device do."""

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture a function that has run before.

        Returns:
            A function that repeats the work on the device's current stream, and the tensor that it writes each time.
        """


class GraphCapturer:
    """Captures CUDA graphs, all of which share their memory: one runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        # A wait invalidates a capture, and so much stays behind in PyTorch then that it must not come to that.
        with _refusing_waits():
            compute()
        graph = torch.cuda.CUDAGraph()
        try:
            # If a capture cannot be ended, `torch.cuda.graph` leaves its stream as the current one. Other threads
            # may use the GPU meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._device)),
                torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
            ):
                output = compute()
        except Exception:
            self._clean_up(graph)
            raise
        finally:
            # PyTorch keeps cuBLAS's workspace of a stream for ever, and with it a part of the graphs' memory.
            torch._C._cuda_clearCublasWorkspaces()
        return graph.replay, output

    def _clean_up(self, graph: torch.cuda.CUDAGraph) -> None:
        """End what `CUDAGraph::capture_end` leaves if it raises: the allocator would never free memory again.

        aten/src/ATen/cuda/CUDAGraph.cpp; `synchronize_and_free_events` in c10/cuda/CUDACachingAllocator.cpp.
        """
        try:
            torch._C._cuda_endAllocateToPool(self._device.index, self._pool)
        except RuntimeError:
            # The capture has ended properly: the error is of the work that was captured.
            return
        torch._C._cuda_releasePool(self._device.index, self._pool)
        _invalid.append(graph)


@contextmanager
def _refusing_waits() -> Iterator[None]:
    """Within the block operators that wait for the GPU raise a RuntimeError, in all threads."""
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        # PyTorch says that it does not find all waits.
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


@dataclass(frozen=True, slots=True)
class _CapturedGraph:
    """A graph and the memory that it reads and writes."""

    arrays: DeviceArrays
    replay: Callable[[], None]
    output: Tensor

    def run(self, batch: PackedBatch) -> Tensor:
        """The scores of a batch of this shape; the next run overwrites them."""
        self.arrays.fill(batch.arrays)
        self.replay()
        return self.output[: sum(batch.counts)]


class GraphedForward(Forward):
    """Runs batches as captured graphs; those that fit into none as the forward pass that was captured.

    The scores of a batch are overwritten by the next batch, in the order of the device's stream.
    """

    name = mode = BatchMode.PACKED

    def __init__(self, forward: PackedForward, max_rows: int, max_texts: int, max_length: int) -> None:
        """
        Args:
            max_rows: the rows of the largest graph.
            max_texts: the most texts of a batch.
            max_length: the most tokens of a text.
        """
        self._forward = forward
        self._shapes = [*_list_shapes(max_rows, max_texts, max_length)]
        self._graphs: dict[int, _CapturedGraph] = {}
        # All graphs write their scores here: each of its own would take gigabytes where a vocabulary is scored.
        self._scores: Tensor | None = None

    @property
    def count(self) -> int:
        """How many graphs are captured."""
        return len(self._graphs)

    def capture(self, probe: Probe, capturer: Capturer) -> None:
        """Capture all graphs.

        Raises:
            Exception: the model cannot be captured, or a graph gives other scores.
        """
        # The largest first: the others, and their scores, fit into its memory.
        for shape in reversed(self._shapes):
            give_way()
            self._graphs[shape.rows] = self._capture(shape, probe, capturer)

    def _capture(self, shape: Shape, probe: Probe, capturer: Capturer) -> _CapturedGraph:
        texts = _fill(probe.texts, shape)
        first, second = (self._forward.lay_out(each, shape) for each in (texts, [*map(probe.replace, texts[::-1])]))
        device = probe.inputs.model.device
        expected = []
        for batch in (first, second):
            # The first run of a shape may load kernels, which a capture cannot.
            tensors = DeviceArrays(batch.arrays, device).tensors
            scores = self._forward.compute(batch, tensors, is_fixed=True)
            expected.append(scores[: sum(batch.counts)].clone())
        if self._scores is None:
            self._scores = torch.empty_like(scores)
        arrays, written = DeviceArrays(first.arrays, device), self._scores[: len(scores)]
        replay, output = capturer.capture(
            lambda: written.copy_(self._forward.compute(first, arrays.tensors, is_fixed=True))
        )
        graph = _CapturedGraph(arrays, replay, output)
        for batch, scores in zip((second, first), reversed(expected), strict=True):
            if not torch.equal(graph.run(batch), scores):
                raise ValueError(f"a graph of {shape.rows} rows gives other scores than what was captured")
        return graph

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        shape = self._find_shape(texts)
        if shape is None:
            return self._forward.run(texts)
        batch = self._forward.lay_out(texts, shape)
        return self._graphs[shape.rows].run(batch), batch.counts

    def count_padding(self, texts: Sequence[TokenizedText]) -> int:
        shape = self._find_shape(texts)
        return 0 if shape is None else shape.rows - sum(len(text.input_ids) for text in texts)

    def detach(self) -> None:
        """Free the graphs, and restore the model's own attention."""
        self._graphs.clear()
        self._scores = None
        self._forward.detach()

    def _find_shape(self, texts: Sequence[TokenizedText]) -> Shape | None:
        """The least shape that the texts fit into."""
        needed = self._forward.measure(texts)
        first = bisect_left(self._shapes, needed.rows, key=lambda shape: shape.rows)
        return next((shape for shape in self._shapes[first:] if shape.holds(needed)), None)


def capture_graphs(
    forward: Forward, probe: Probe, capturer: Capturer, max_rows: int, max_texts: int, max_length: int
) -> tuple[Forward, str]:
    """A forward pass that replays captured graphs, if the given one can be captured.

    Returns:
        The forward pass to use, and what was done and why, for the log.
    """
    if not isinstance(forward, PackedForward) or probe.inputs.selection is TokenSelection.POOLED:
        return forward, "no CUDA graphs: the kernels of a batch depend on its texts"
    graphed = GraphedForward(forward, max_rows, max_texts, max_length)
    try:
        with torch.inference_mode():
            graphed.capture(probe, capturer)
    except Exception as error:
        reason = brief(error)
    else:
        return graphed, f"{graphed.count} CUDA graphs, of up to {max_rows} tokens"
    del graphed
    free_memory(probe.inputs.model.device)
    return forward, f"no CUDA graphs: {reason}"


def _list_shapes(max_rows: int, max_texts: int, max_length: int) -> Iterator[Shape]:
    """The shapes of graphs, the least first: an eighth of a large batch is padding at most."""
    rows = _LEAST_ROWS
    while True:
        rows = min(rows, max_rows)
        yield Shape(rows, max(1, min(rows // _LEAST_TOKENS, max_texts)), min(rows, max_length, _MOST_TOKENS))
        if rows == max_rows:
            return
        power = 1 << (rows.bit_length() - 1)
        step = power // (_STEPS if rows < _FEW_ROWS else _FINE_STEPS)
        rows += max(_LEAST_ROWS, step)


def _fill(texts: Sequence[TokenizedText], shape: Shape) -> list[TokenizedText]:
    """As many texts as a shape has room for, one after another; those that are too long are cut."""
    filled, room = list[TokenizedText](), shape.rows
    for text in cycle(texts):
        if not room or len(filled) == shape.texts:
            break
        kept = min(room, shape.longest)
        if len(text.input_ids) > kept:
            text = cut_text(text, kept)
        filled.append(text)
        room -= len(text.input_ids)
    return filled
