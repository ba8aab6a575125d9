"""What is measured of the engine, without a server."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from statistics import fmean, median

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.closed_loop import Load
from benchmarks.gpu.engine import Engine, make_texts
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.loads import LONG, SHORT, drive
from benchmarks.gpu.models import BERT_BASE, DISTILBERT, MINILM, ModelSize, shrink
from benchmarks.gpu.texts import train_tokenizer, write_texts
from benchmarks.pairs import Ratio, take_turns
from runners.encoder.forward import pad
from runners.encoder.queue import MAX_BATCH_TEXTS
from runners.encoder.sequences import TokenizedText
from runners.encoder.worker import ModelWorker

_TERA = 1e12
# The largest batch on a GPU, and in a rehearsal.
_GPU_TOKENS, _CPU_TOKENS = 16_384, 1_536
_TEXTS = 4096
_EMBEDDED = 64
# Lengths of the texts, callers and texts a request: short texts in requests of 64 cost Python less.
_LIMIT_LOADS = ((SHORT, 256, 1), (LONG, 256, 1), (SHORT, 8, 64))


@dataclass(frozen=True)
class Setting:
    """Where and how much is measured.

    Attributes:
        is_quick: whether small models are measured for a moment, which only shows that the benchmark works.
    """

    device: torch.device
    is_quick: bool
    figures: Figures

    @property
    def max_batch_tokens(self) -> int:
        return _GPU_TOKENS if self.device.type == "cuda" else _CPU_TOKENS

    def scale(self, size: ModelSize) -> ModelSize:
        return shrink(size) if self.is_quick else size

    def seconds(self, loads: int) -> float:
        """Of each of the loads that are left in this part."""
        return 0.2 if self.is_quick else max(0.5, min(5.0, 0.6 * self.figures.left / loads))

    def is_late(self, figure: str, **details: object) -> bool:
        """Whether the time of the part is over; says so."""
        late = not self.is_quick and self.figures.left <= 0
        if late:
            self.figures.skip(figure, "no time is left; --minutes and --only give it more", **details)
        return late

    def wait(self) -> None:
        """Until the device has computed everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def time(self, run: Callable[[], object], seconds: float) -> float:
        """Seconds of one run: the median of several groups, after a warm-up."""
        run()
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        once = max(time.perf_counter() - start, 1e-6)
        repeats = max(1, int(seconds / 5 / once))
        spent = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            self.wait()
            spent.append((time.perf_counter() - start) / repeats)
        return median(spent)


@contextlib.contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """Let float32 products be computed in TF32, as --matmul_precision=high does."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# As users name them: the dtype of the weights, and whether products are in TF32.
PRECISIONS = {
    "float16": (torch.float16, False), "bfloat16": (torch.bfloat16, False),
    "tf32": (torch.float32, True), "float32": (torch.float32, False),
}  # fmt: skip


def measure_products(setting: Setting, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large square product of random numbers."""
    size = 8192 if setting.device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=setting.device, dtype=dtype) for _ in range(2))
    result = torch.empty_like(left)
    return 2 * size**3 / setting.time(lambda: torch.mm(left, right, out=result), 0.5)


def measure_limit(setting: Setting) -> None:
    """The share of the card's limit of matrix products that BERT-base reaches."""
    figures = setting.figures
    size = setting.scale(BERT_BASE)
    vocabulary = int(size.config.get("vocab_size", 30_522))
    texts = {lengths: make_texts(lengths.draw(_TEXTS), vocabulary) for lengths in (SHORT, LONG)}
    # As traffic fills a batch, and one that has as many tokens as it may.
    even = [setting.max_batch_tokens // MAX_BATCH_TEXTS] * MAX_BATCH_TEXTS
    batches = [_take_batch(texts[SHORT], setting.max_batch_tokens), make_texts(even, vocabulary)]
    details = {"model": "BERT-base", "max_batch_tokens": setting.max_batch_tokens}
    for name, (dtype, tf32) in PRECISIONS.items():
        with matmul_precision(tf32):
            limit = measure_products(setting, dtype)
            figures.show("matrix products", limit / _TERA, "TFLOP/s", precision=name)
            if setting.is_late("share of the limit", precision=name):
                continue
            engine = Engine(size.make(setting.device, dtype), False, setting.max_batch_tokens)
            try:
                for batch in batches:
                    flops = size.count_flops([len(text.input_ids) for text in batch])
                    spent = setting.time(partial(engine.run, batch), setting.seconds(20))
                    figures.show(
                        "share of the limit, forward pass", flops / spent / limit, "of the matrix limit",
                        precision=name, tflops=round(flops / spent / _TERA, 2), texts=len(batch),
                        tokens=_count_tokens(batch), how=engine.reason, **details,
                    )  # fmt: skip
                for lengths, callers, texts_a_request in _LIMIT_LOADS:
                    load = drive(engine, texts[lengths], callers, setting.seconds(16), texts_a_request)
                    flops = size.count_flops(lengths.draw(_TEXTS)) / _TEXTS
                    figures.show(
                        "share of the limit, closed loop", load.texts_a_second * flops / limit, "of the matrix limit",
                        precision=name, callers=callers, texts_a_request=texts_a_request, lengths=str(lengths),
                        texts_a_second=round(load.texts_a_second), p50_ms=round(load.p50, 2), **details,
                    )  # fmt: skip
            finally:
                _close(engine)


def _take_batch(texts: Sequence[TokenizedText], budget: int) -> list[TokenizedText]:
    """The first texts that make a full batch; with so many as a batch may have, the budget may not be reached."""
    batch: list[TokenizedText] = []
    for text in texts[:MAX_BATCH_TEXTS]:
        budget -= len(text.input_ids)
        if budget < 0:
            break
        batch.append(text)
    return batch


def _count_tokens(texts: Sequence[TokenizedText]) -> int:
    return sum(len(text.input_ids) for text in texts)


def measure_precisions(setting: Setting) -> None:
    """DistilBERT-size in every precision at several numbers of callers."""
    size = setting.scale(DISTILBERT)
    texts = make_texts(SHORT.draw(_TEXTS), int(size.config.get("vocab_size", 30_522)))
    left = 4 * len(PRECISIONS)
    for name, (dtype, tf32) in PRECISIONS.items():
        if setting.is_late("texts a second", precision=name):
            continue
        with matmul_precision(tf32):
            engine = Engine(size.make(setting.device, dtype), False, setting.max_batch_tokens)
            try:
                for callers in (1, 32, 256, 1024):
                    load = drive(engine, texts, callers, setting.seconds(left))
                    left -= 1
                    _show_load(setting, "texts a second", load, model="DistilBERT", precision=name, lengths=str(SHORT))
            finally:
                _close(engine)


def measure_embeddings(setting: Setting) -> None:
    """MiniLM-size embeddings of 64 texts a request, beside the stock model on padded batches of sorted texts."""
    size = setting.scale(MINILM)
    texts = make_texts(SHORT.draw(_TEXTS), int(size.config.get("vocab_size", 30_522)))
    dtype = torch.float16 if setting.device.type == "cuda" else torch.float32
    details = {"model": "MiniLM", "precision": str(dtype).removeprefix("torch."), "lengths": str(SHORT)}
    engine = Engine(size.make(setting.device, dtype), True, setting.max_batch_tokens)
    rounds = 1 if setting.is_quick else 3
    seconds = setting.seconds(3 * rounds)
    stock = size.make(setting.device, dtype)
    sides: dict[str, Callable[[], float]] = {
        "engine": lambda: drive(engine, texts, 16, seconds, _EMBEDDED).texts_a_second,
        "padded stock model": partial(_embed_stock, setting, stock, texts, seconds),
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            if find_spec("sentence_transformers") is None:
                setting.figures.skip("embeddings, sentence-transformers", "sentence_transformers is not installed")
            else:
                sides["sentence-transformers, with tokenizing"] = _prepare_encode(setting, size, folder, dtype, seconds)
            measured = take_turns(sides, rounds)
        for side, speeds in measured.items():
            setting.figures.show(f"embeddings, {side}", median(speeds), "texts/s", **details)
            if side != "engine":
                _show_ratio(setting, f"embeddings, engine to {side}", measured["engine"], speeds, **details)
    finally:
        _close(engine)


def _prepare_encode(
    setting: Setting, size: ModelSize, folder: str, dtype: torch.dtype, seconds: float
) -> Callable[[], float]:
    """What measures `SentenceTransformer.encode`, in texts a second, on texts of the same lengths."""
    from sentence_transformers import SentenceTransformer

    size.make(torch.device("cpu"), torch.float32).save_pretrained(folder)
    tokenizer = train_tokenizer()
    tokenizer.save_pretrained(folder)
    texts = write_texts(tokenizer, _TEXTS // 4)
    model = SentenceTransformer(folder, device=setting.device.type, model_kwargs={"dtype": dtype})

    def encode() -> float:
        begun, done = time.perf_counter(), 0
        while not done or time.perf_counter() < begun + seconds:
            model.encode(texts, batch_size=_EMBEDDED, show_progress_bar=False)
            done += len(texts)
        return done / (time.perf_counter() - begun)

    return encode


@torch.inference_mode()
def _embed_stock(setting: Setting, model: PreTrainedModel, texts: Sequence[TokenizedText], seconds: float) -> float:
    """Texts a second in the way of sentence-transformers: sorted, padded batches of 64, mean pooling, no tokenizing."""
    ordered = sorted(texts[: 2 * _EMBEDDED] if setting.is_quick else texts, key=lambda text: -len(text.input_ids))
    end, done, spent = time.perf_counter() + seconds, 0, list[float]()
    while not spent or time.perf_counter() < end:
        start = time.perf_counter()
        for first in range(0, len(ordered), _EMBEDDED):
            arrays = pad(ordered[first : first + _EMBEDDED], 0, "right")
            tensors = {name: torch.from_numpy(array).to(setting.device) for name, array in arrays.items()}
            hidden: Tensor = model(**tensors).last_hidden_state
            mask = tensors["attention_mask"][..., None].to(hidden.dtype)
            ((hidden * mask).sum(1) / mask.sum(1)).float().cpu()
            done += len(tensors["input_ids"])
        spent.append(time.perf_counter() - start)
    return done / sum(spent)


class SerialWorker(ModelWorker):
    """Reads the results of each batch before the next one is launched."""

    def _launch(self, batch: Sequence[object]) -> None:
        super()._launch(batch)  # type: ignore[arg-type]
        self._collect()


def measure_switches(setting: Setting) -> None:
    """What graphs and double buffering bring, in pairs."""
    size = setting.scale(DISTILBERT)
    texts = make_texts(SHORT.draw(_TEXTS), int(size.config.get("vocab_size", 30_522)))
    is_gpu = setting.device.type == "cuda"
    dtype = torch.float16 if is_gpu else torch.float32
    # What it is without the switch: whether it has graphs, and its worker.
    without: dict[str, tuple[bool, type[ModelWorker]]] = {
        "graphs": (False, ModelWorker),
        "double buffering": (True, SerialWorker),
    }
    setting.figures.skip("torch.compile, on to off", "the engine compiles no layers")
    callers = (1, 32, 256)
    rounds = 1 if setting.is_quick else 2
    left = 2 * rounds * len(callers) * len(without)
    for name, off in without.items():
        if not is_gpu and not setting.is_quick:
            setting.figures.skip(f"{name}, on to off", "a CPU has none")
        elif not setting.is_late(f"{name}, on to off"):
            with contextlib.ExitStack() as running:
                engines = [
                    Engine(size.make(setting.device, dtype), False, setting.max_batch_tokens, *made)
                    for made in ((True, ModelWorker), off)
                ]
                for engine in engines:
                    running.callback(_close, engine)
                for many in callers:
                    seconds = setting.seconds(left)
                    left -= 2 * rounds
                    sides = {engine: partial(_drive, engine, texts, many, seconds) for engine in engines}
                    on, off_speeds = take_turns(sides, rounds).values()
                    details = {"model": "DistilBERT", "precision": str(dtype).removeprefix("torch."), "callers": many}
                    _show_ratio(setting, f"{name}, on to off", on, off_speeds, **details)


def _drive(engine: Engine, texts: Sequence[TokenizedText], callers: int, seconds: float) -> float:
    return drive(engine, texts, callers, seconds).texts_a_second


def _show_ratio(
    setting: Setting, figure: str, above: Sequence[float], below: Sequence[float], **details: object
) -> None:
    """The median of the pairs' ratios, and what they are ratios of."""
    ratio = Ratio.of(above, below)
    setting.figures.show(
        figure, ratio.median, "ratio", pairs=[round(pair, 3) for pair in ratio.pairs],
        above=round(fmean(above), 1), below=round(fmean(below), 1), **details,
    )  # fmt: skip


def _show_load(setting: Setting, figure: str, load: Load, **details: object) -> None:
    setting.figures.show(
        figure, load.texts_a_second, "texts/s", callers=load.callers, p50_ms=round(load.p50, 2),
        p99_ms=round(load.p99, 2), errors=load.errors, **details,
    )  # fmt: skip


def _close(engine: Engine) -> None:
    engine.close()
    if engine.model.device.type == "cuda":
        torch.cuda.empty_cache()
