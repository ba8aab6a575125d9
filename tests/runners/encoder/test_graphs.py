"""Captured graphs of the packed forward pass: what is fixed, what may change, and what they answer.

A GPU's kernels and graphs are emulated: a replay computes again what was captured, with the Python values of then and
the tensors' content of now, as a CUDA graph does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from math import ceil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runners.encoder.graphs import Capturer, GraphCapturer, GraphedForward, capture_graphs
from runners.encoder.packing import PackedBatch, PackedForward, Shape
from runners.encoder.sequences import TokenizedText
from runners.modeling.score_difference import TOLERANCES, measure_difference
from tests.conftest import ModelFolder
from tests.emulated_gpu import HOPPER, TURING, emulate_gpu
from tests.forwards import ForwardCase, attach_packed, run

MAX_ROWS, MAX_TEXTS, MAX_LENGTH = 192, 24, 100
CAPTURED_TASKS = ["fill_mask", "sequence_classification", "text_embedding", "token_classification"]


class Repeater:
    """Repeats what it has captured."""

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        output = compute().clone()

        def replay() -> None:
            output.copy_(compute())

        return replay, output


@pytest.fixture(autouse=True)
def gpu(request: pytest.FixtureRequest) -> Iterator[None]:
    with emulate_gpu(getattr(request, "param", HOPPER)):
        yield


class Captured:
    """A model with its packed forward pass, and with the one that replays graphs of it."""

    def __init__(self, folder: Path, task: str, capturer: Capturer | None = None, dtype: str = "float32") -> None:
        self.case = ForwardCase(folder, task, dtype=dtype)
        # The probe runs the stock model.
        self.case.forward.detach()
        probe = self.case.probe()
        self.packed = attach_packed(self.case)
        self.forward, self.reason = capture_graphs(
            self.packed, probe, capturer or Repeater(), MAX_ROWS, MAX_TEXTS, MAX_LENGTH
        )

    def check(self, texts: list[TokenizedText]) -> None:
        """Compare the answers with those of the stock model."""
        for text, found in zip(texts, run(self.forward, texts), strict=True):
            torch.testing.assert_close(found, self.case.expected(text), atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("task", CAPTURED_TASKS)
def test_any_batch_equals_transformers(task: str, family: str, model_folder: ModelFolder) -> None:
    """In any order of sizes: what a batch leaves in the memory of its graph is of no consequence."""
    captured = Captured(model_folder(family, task), task)
    assert isinstance(captured.forward, GraphedForward), captured.reason
    for seed, lengths in enumerate([[1], [100, 60, 32], [5, 3], [16], [17], [1] * 24, [30, 30, 30, 30, 30]]):
        captured.check(captured.case.texts(lengths, seed))


def test_a_mean_head_reads_the_texts_of_each_batch(model_folder: ModelFolder) -> None:
    """A graph has the offsets of the texts as a tensor."""
    task = "sequence_classification"
    captured = Captured(model_folder("modernbert", task, classifier_pooling="mean"), task, dtype="float16")
    assert isinstance(captured.forward, GraphedForward), captured.reason
    for seed, lengths in enumerate([[1], [60, 32, 7], [5, 3], [16], [2] * 24]):
        texts = captured.case.texts(lengths, seed)
        for text, found in zip(texts, run(captured.forward, texts), strict=True):
            expected = captured.case.expected(text)
            assert measure_difference(found, expected) <= TOLERANCES[torch.float16]


@pytest.mark.parametrize(
    ("lengths", "padding"),
    [
        ([1], 15), ([16], 0), ([17], 15), ([60, 5], 15), ([100, 29], 160 - 129), ([96, 96], 0),
        # Of too many tokens, too long, and too many texts.
        ([100, 93], 0), ([101], 0), ([1] * 25, 0),
    ],
)  # fmt: skip
def test_a_batch_runs_in_the_least_graph_that_it_fits_into(
    lengths: list[int], padding: int, model_folder: ModelFolder
) -> None:
    captured = Captured(model_folder("bert", "sequence_classification"), "sequence_classification")
    texts = captured.case.texts(lengths, seed=0)
    assert captured.forward.count_padding(texts) == padding
    captured.check(texts)


def test_graphs_start_few_thread_blocks_without_work(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for each sequence and 128 rows of the longest one: flash_fwd_launch_template.h."""
    shapes, lay_out = set[Shape](), PackedForward.lay_out

    def note(self: PackedForward, texts: list[TokenizedText], shape: Shape) -> PackedBatch:
        shapes.add(shape)
        return lay_out(self, texts, shape)

    case = ForwardCase(model_folder("bert", "sequence_classification"), "sequence_classification")
    case.forward.detach()
    probe, forward = case.probe(), PackedForward(case.inputs)
    forward.attach()
    monkeypatch.setattr(PackedForward, "lay_out", note)
    graphed, reason = capture_graphs(forward, probe, Repeater(), 1024, 256, 8192)
    assert isinstance(graphed, GraphedForward), reason
    assert all(shape.sequences * ceil(shape.longest / 128) <= 0.6 * shape.rows for shape in shapes)


@pytest.mark.parametrize("task", ["fill_mask", "text_embedding"])
def test_all_graphs_write_their_scores_to_one_place(task: str, model_folder: ModelFolder) -> None:
    places = set[int]()

    class Noting(Repeater):
        def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
            output = compute()
            places.add(output.data_ptr())

            def replay() -> None:
                compute()

            return replay, output

    captured = Captured(model_folder("bert", task), task, Noting())
    assert isinstance(captured.forward, GraphedForward), captured.reason
    assert len(places) == 1


def test_more_masks_than_rows_to_read_run_without_a_graph(model_folder: ModelFolder) -> None:
    captured = Captured(model_folder("bert", "fill_mask"), "fill_mask")
    [text] = captured.case.texts([60], seed=0)
    text.input_ids[:25] = captured.case.mask
    assert captured.forward.count_padding([text]) == 0
    captured.check([text])


class Changing(Repeater):
    """A graph that gives other bits than what was captured."""

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        replay, output = super().capture(compute)

        def change() -> None:
            replay()
            output.view(torch.int32)[0, 0] += 1

        return change, output


class Ignoring(Repeater):
    """A graph that has captured the first batch itself."""

    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        return lambda: None, compute().clone()


class Refusing(Repeater):
    def capture(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.mark.parametrize(
    ("capturer", "reason"),
    [
        (Changing(), "a graph of 192 rows gives other scores than what was captured"),
        (Ignoring(), "a graph of 192 rows gives other scores than what was captured"),
        (Refusing(), "operation not permitted when stream is capturing"),
    ],
)
def test_a_graph_that_is_not_right_is_not_used(capturer: Capturer, reason: str, model_folder: ModelFolder) -> None:
    captured = Captured(model_folder("bert", "sequence_classification"), "sequence_classification", capturer)
    assert captured.forward is captured.packed
    assert captured.reason.startswith(f"no CUDA graphs: {reason}")


class EmulatedStreams:
    """A GPU's current stream, its captures, and the allocator's list of them, as PyTorch's sources have them.

    Attributes:
        current: the current stream.
        is_waiting: whether the model waits for the GPU.
        captures: pools of the captures that have begun and not ended; with one the allocator frees no memory.
    """

    default, side, pool, device = "default", "side", (0, 1), torch.device("cuda", 1)

    def __init__(self, patch: pytest.MonkeyPatch, is_waiting: bool) -> None:
        self.current = self.default
        self.is_waiting = is_waiting
        self.mode: object = 0
        self.captures: list[tuple[int, object]] = []
        self.released: list[tuple[int, object]] = []
        # Of cuBLAS, by the stream that was current.
        self.workspaces = set[str]()
        streams = self

        class Graph:
            def capture_begin(self, pool: object, **_: object) -> None:
                assert streams.current == streams.side
                streams.captures.append((1, pool))

            def capture_end(self) -> None:
                if streams.is_waiting:
                    raise RuntimeError("operation failed due to a previous error during capture")
                streams.captures.pop()

            def replay(self) -> None:
                assert streams.current == streams.default

        names = {
            "CUDAGraph": Graph, "Stream": lambda _: self.side, "graph_pool_handle": lambda: self.pool,
            "stream": self.switch, "current_stream": lambda _=None: self.current, "synchronize": lambda: None,
            "empty_cache": lambda: None, "get_sync_debug_mode": lambda: self.mode, "set_sync_debug_mode": self.set_mode,
        }  # fmt: skip
        for name, value in names.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch._C, "_host_emptyCache", lambda: None, raising=False)
        patch.setattr(torch._C, "_cuda_endAllocateToPool", self.end)
        patch.setattr(torch._C, "_cuda_clearCublasWorkspaces", self.workspaces.clear, raising=False)
        patch.setattr(torch._C, "_cuda_releasePool", lambda *pool: self.released.append(pool))

    def switch(self, stream: str) -> AbstractContextManager[None]:
        streams = self

        class Switch(AbstractContextManager[None]):
            def __enter__(self) -> None:
                self.before, streams.current = streams.current, stream

            def __exit__(self, *_: object) -> None:
                streams.current = self.before

        return Switch()

    def set_mode(self, mode: object) -> None:
        self.mode = mode

    def end(self, device: int, pool: object) -> None:
        if (device, pool) not in self.captures:
            raise RuntimeError("endAllocatePool: not currently capture to mempool_id")
        self.captures.remove((device, pool))

    def compute(self) -> Tensor:
        if self.is_waiting and self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.is_waiting and self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.workspaces.add(self.current)
        return torch.zeros(1)


def test_a_model_that_waits_for_the_gpu_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait invalidates the capture; neither the stream nor the allocator's list would be restored then."""
    streams = EmulatedStreams(monkeypatch, is_waiting=True)
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        GraphCapturer(streams.device).capture(streams.compute)
    assert (streams.current, streams.mode, streams.captures) == (streams.default, 0, [])


def test_an_invalid_capture_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch's debug mode does not find, such as a copy from memory that is not pinned."""
    streams = EmulatedStreams(monkeypatch, is_waiting=True)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)
    with pytest.raises(RuntimeError, match="a previous error during capture"):
        GraphCapturer(streams.device).capture(streams.compute)
    assert (streams.current, streams.captures) == (streams.default, [])
    assert streams.released == [(1, streams.pool)]


def test_an_error_of_the_model_ends_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph itself releases the memory of a capture that has ended."""
    streams = EmulatedStreams(monkeypatch, is_waiting=False)

    def compute() -> Tensor:
        if streams.captures:
            raise ValueError("no memory")
        return torch.zeros(1)

    capturer = GraphCapturer(streams.device)
    with pytest.raises(ValueError, match="no memory"):
        capturer.capture(compute)
    assert (streams.current, streams.captures, streams.released) == (streams.default, [], [])
    replay, _ = capturer.capture(streams.compute)
    replay()


def test_no_workspace_of_a_capture_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the memory of the graphs, which could not be freed when the model is unloaded."""
    streams = EmulatedStreams(monkeypatch, is_waiting=False)
    GraphCapturer(streams.device).capture(streams.compute)
    assert streams.side not in streams.workspaces


def test_windows_are_captured_in_sixteen_bits_only(model_folder: ModelFolder) -> None:
    folder, task = model_folder("modernbert", "token_classification"), "token_classification"
    assert Captured(folder, task).reason == (
        "no CUDA graphs: attention with this window or bias has other kernels for each batch"
    )
    captured = Captured(folder, task, dtype="bfloat16")
    assert isinstance(captured.forward, GraphedForward), captured.reason
    texts = captured.case.texts([70, 9, 33], seed=0)
    found = [rows.clone() for rows in run(captured.forward, texts)]
    for rows, text in zip(found, texts, strict=True):
        assert measure_difference(rows, captured.case.expected(text)) <= TOLERANCES[torch.bfloat16]


@pytest.mark.parametrize("gpu", [TURING], indirect=True)
def test_an_older_gpu_captures_graphs_too(model_folder: ModelFolder) -> None:
    folder = model_folder("bert", "sequence_classification")
    captured = Captured(folder, "sequence_classification", dtype="float16")
    assert captured.reason == "10 CUDA graphs, of up to 192 tokens"


def test_scores_pooled_in_parts_are_not_captured(model_folder: ModelFolder) -> None:
    captured = Captured(model_folder("bert", "sparse_embedding"), "sparse_embedding")
    assert captured.reason == "no CUDA graphs: the kernels of a batch depend on its texts"
