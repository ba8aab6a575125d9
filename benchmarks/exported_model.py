"""The model as users of a CPU often run it: exported to ONNX, in float32, on ONNX Runtime or OpenVINO.

ONNX Runtime gets the graph with its fused operators (attention, GELU, layer normalization), OpenVINO fuses by itself.
FastAPI's threads run ONNX Runtime at once, which is 1.03 to 1.08 times as fast at 32 callers as one at a time, and
OpenVINO in turn: its mode for latency is 1.6 times as fast at one caller as that for throughput, and 0.75 times at 32.
Runs in an environment of its own, `make bench-encoders` makes it.
"""

from __future__ import annotations

import inspect
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from runners.core.machine import count_cores

# Measured on 2 cores of an AMD EPYC (family 25 model 1): 32 sorted texts of 8 to 256 tokens are padded so much that
# batches of 8 are 0.75 times as fast, and one by one is 0.95 to 1.15 times as fast.
_BATCH = 4
_CLASSES: dict[str, Any] = {
    "sequence_classification": AutoModelForSequenceClassification,
    "token_classification": AutoModelForTokenClassification,
    "fill_mask": AutoModelForMaskedLM,
    "text_embedding": AutoModel,
}
_Arrays = dict[str, NDArray[np.int64]]


class ExportedModel:
    """A model with its tokenizer.

    Raises:
        SystemExit: its scores are not those of the stock model.
    """

    def __init__(self, folder: str, task: str, engine: str) -> None:
        self._task = task
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        # The graph of this attention is the one that ONNX Runtime's optimizer fuses.
        model: Any = _CLASSES[task].from_pretrained(folder, attn_implementation="eager").eval()
        # In the order in which the exporter names them.
        parameters = inspect.signature(model.forward).parameters
        self._names = [name for name in parameters if name in self._tokenizer.model_input_names]
        self._labels = model.config.id2label
        with tempfile.TemporaryDirectory() as scratch:
            example = self._tokenize(["a text", "a text of some more words"])
            path = _export(model, example, Path(scratch) / "model.onnx")
            self._run = _RUNS[engine](path, model.config)
            _compare(model, example, self._run)

    def predict(self, texts: list[str]) -> list[Any]:
        """One text alone, several in batches of texts of like length."""
        answers: list[Any] = [None] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(texts), _BATCH):
            batch = order[start : start + _BATCH]
            arrays = self._tokenize([texts[index] for index in batch])
            scores = self._run(arrays)
            for index, row, mask, ids in zip(batch, scores, arrays["attention_mask"], arrays["input_ids"], strict=True):
                answers[index] = self._answer(row, mask.astype(bool), ids)
        return answers

    def _tokenize(self, texts: list[str]) -> _Arrays:
        encoded = self._tokenizer(texts, padding=True, truncation=True, return_tensors="np")
        return {name: encoded[name].astype(np.int64) for name in self._names}

    def _answer(self, scores: NDArray[Any], mask: NDArray[Any], ids: NDArray[Any]) -> Any:
        """Of one text; `scores` are those of its tokens, for sequence classification those of its classes."""
        if self._task == "text_embedding":
            mean = scores[mask].mean(0)
            return (mean / np.linalg.norm(mean)).tolist()
        if self._task == "fill_mask":
            top = scores[ids == self._tokenizer.mask_token_id].argmax(-1)
            return str(self._tokenizer.convert_ids_to_tokens(top))
        if self._task == "token_classification":
            return str([self._labels[index] for index in scores[mask].argmax(-1)])
        weights = np.exp(scores - scores.max())
        return str({"label": self._labels[int(weights.argmax())], "score": float(weights.max() / weights.sum())})


def _export(model: Any, example: _Arrays, path: Path) -> Path:
    inputs = {name: torch.from_numpy(array) for name, array in example.items()}
    axes = {name: {0: "batch", 1: "length"} for name in inputs}
    torch.onnx.export(
        model, (inputs,), str(path), input_names=[*inputs], output_names=["scores"], dynamic_axes=axes, dynamo=False
    )
    return path


def _run_onnxruntime(path: Path, config: Any) -> Callable[[_Arrays], NDArray[Any]]:
    import onnxruntime
    from onnxruntime.transformers import optimizer

    heads, width = config.num_attention_heads, config.hidden_size
    fused = optimizer.optimize_model(str(path), "bert", num_heads=heads, hidden_size=width, opt_level=0)
    fused.save_model_to_file(str(path))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = count_cores()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    # Fused embeddings take int32.
    types = {one.name: np.int32 if "int32" in one.type else np.int64 for one in session.get_inputs()}

    def run(arrays: _Arrays) -> NDArray[Any]:
        inputs = {name: array.astype(types[name]) for name, array in arrays.items() if name in types}
        scores: NDArray[Any] = session.run(["scores"], inputs)[0]
        return scores

    return run


def _run_openvino(path: Path, _: Any) -> Callable[[_Arrays], NDArray[Any]]:
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": count_cores(),
    }  # fmt: skip
    request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    lock = threading.Lock()

    def run(arrays: _Arrays) -> NDArray[Any]:
        with lock:
            # A copy, since the next run writes into the same tensor.
            return np.array(request.infer(arrays)["scores"])

    return run


_RUNS: dict[str, Callable[[Path, Any], Callable[[_Arrays], NDArray[Any]]]] = {
    "onnxruntime": _run_onnxruntime,
    "openvino": _run_openvino,
}


def _compare(model: Any, arrays: _Arrays, run: Callable[[_Arrays], NDArray[Any]]) -> None:
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(array) for name, array in arrays.items()})[0].numpy()
    real = arrays["attention_mask"].astype(bool) if expected.ndim == 3 else slice(None)
    difference = abs(run(arrays) - expected)[real].max()
    if not difference <= 1e-4:
        raise SystemExit(f"error: the exported model's scores differ by {difference:.1e}")
