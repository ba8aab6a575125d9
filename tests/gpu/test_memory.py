"""Memory and synchronization of packed batches."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.gpu.engine import Engine, make_texts
from runners.encoder.packing import PackedForward
from runners.encoder.sequences import TokenizedText
from tests.gpu.conftest import Record
from tests.gpu.families import DTYPES, FAMILIES, Sizes, make_case
from tests.model_cases import run

_MIB = 2**20
_BATCHES = {"cuda": 2000, "cpu": 60}
# What libraries keep: workspaces of cuBLAS, for one.
_KEPT = 64 * _MIB


def make_model(device: torch.device, **config: int) -> PreTrainedModel:
    model: PreTrainedModel = FAMILIES["bert"].make("sequence_classification", Sizes.of(device), **config).to(device)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_forward_pass_does_not_wait(family: str, dtype: str, device: torch.device) -> None:
    case = make_case(family, "text_embedding", dtype, device)
    assert isinstance(case.forward, PackedForward), case.reason
    batches = [case.texts(lengths, seed) for seed, lengths in enumerate([[5, 100, 33], [1], [140, 64, 65, 7]])]
    with torch.inference_mode():
        for texts in batches:
            case.forward.run(texts)
        with _forbidding_waits(device):
            results = [case.forward.run(texts)[0] for texts in batches]
    assert all(result.isfinite().all() for result in results)


@contextmanager
def _forbidding_waits(device: torch.device) -> Iterator[None]:
    """Let whatever makes the host wait for the GPU raise an error."""
    if device.type == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_memory_is_flat_over_random_batches(device: torch.device, record: Record) -> None:
    case = make_case("bert", "sequence_classification", "float16", device)
    sizes = Sizes.of(device)
    random = np.random.default_rng(0)
    held, count = list[tuple[int, int, int]](), _BATCHES[device.type]
    for number in range(count):
        longest = int(random.integers(2, sizes.longest))
        texts = int(random.integers(1, max(2, min(256, sizes.max_batch_tokens // longest))))
        assert len(run(case.forward, case.texts(random.integers(1, longest, texts).tolist(), number))) == texts
        if number in (count // 2, count - 1):
            gc.collect()
            held.append((_read_allocated(device), _read_reserved(device), _read_resident()))
    (_, reserved_before, resident_before), (allocated, reserved, resident) = held
    growth = {"gpu_mib": (reserved - reserved_before) / _MIB, "host_mib": (resident - resident_before) / _MIB}
    record("memory after random batches", allocated / _MIB, "MiB", batches=count, **growth)
    assert held[0][0] == held[1][0]
    assert reserved <= 1.1 * reserved_before
    assert resident - resident_before < 64 * _MIB


def _read_allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def _read_reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def _read_resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_an_unload_frees_the_memory(device: torch.device, record: Record) -> None:
    def load() -> tuple[weakref.ref[PreTrainedModel], int]:
        model = make_model(device)
        engine = Engine(model, False, Sizes.of(device).max_batch_tokens)
        engine.ask(make_texts([9, 30, 100], 1000))
        loaded = _read_allocated(device)
        engine.close()
        return weakref.ref(model), loaded

    # The first one leaves what libraries keep.
    load()
    gc.collect()
    before = _read_allocated(device)
    model, loaded = load()
    gc.collect()
    after = _read_allocated(device)
    record("memory after an unload", (after - before) / _MIB, "MiB", loaded_mib=(loaded - before) / _MIB)
    assert model() is None
    assert after - before < _KEPT
    assert device.type == "cpu" or loaded - before > 2 * _KEPT


def test_batches_without_memory_are_halved(device: torch.device, record: Record) -> None:
    sizes = Sizes.of(device)
    budget = sizes.max_batch_tokens
    engine = Engine(make_model(device), False, budget, use_graphs=False)
    texts = make_texts([64] * (budget // 64), 1000)
    try:
        expected = engine.ask(texts)
        with _limiting_memory(engine, device, lambda part: engine.ask(texts[: len(texts) // part])):
            found = engine.ask(texts)
            assert engine.loaded.queue.max_batch_tokens == budget
            again = engine.ask(texts)
            assert engine.loaded.queue.max_batch_tokens == budget // 2
            engine.ask(texts)
            assert engine.loaded.queue.max_batch_tokens == budget // 2
    finally:
        engine.close()
    for answers in (found, again):
        np.testing.assert_allclose(np.stack(answers), np.stack(expected), atol=1e-4)
    record("batches after memory has run out", budget // 2, "tokens", before=budget)


@contextmanager
def _limiting_memory(engine: Engine, device: torch.device, ask: Callable[[int], object]) -> Iterator[None]:
    """Leave memory for three quarters of a full batch.

    Args:
        ask: runs the given part of a full batch.
    """
    if device.type == "cuda":
        peaks = []
        for part in (1, 2):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            ask(part)
            peaks.append(torch.cuda.max_memory_allocated(device))
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(sum(peaks) / 2 / torch.cuda.mem_get_info(device)[1], device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
        return
    run, most = engine.forward.run, 3 * engine.loaded.queue.max_batch_tokens // 4

    def run_few(texts: list[TokenizedText]) -> tuple[Tensor, list[int]]:
        if sum(len(text.input_ids) for text in texts) > most:
            raise torch.OutOfMemoryError("emulated")
        return run(texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.forward, "run", run_few)
        yield
