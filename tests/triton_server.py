"""A Triton on the CPU with two models in numpy, a tiny BERT's classifier and its encoder; runs in `.venv-triton`.

`python tests/triton_server.py CLASSIFIER.npz ENCODER.npz HTTP_PORT GRPC_PORT METRICS_PORT` serves until its input ends.
"""

from __future__ import annotations

import math
import os
import sys
import sysconfig

# Triton's Python stub takes the first libpython that the loader finds, which must be that of this Python.
os.environ["LD_LIBRARY_PATH"] = ":".join(
    filter(None, [sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")])
)

from typing import Any

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
HEADS = 2
erf = np.vectorize(math.erf)


class Bert:
    """BERT's forward pass, from the weights as `transformers` names them."""

    def __init__(self, path: str) -> None:
        self.weights = {name.removeprefix("bert."): array for name, array in np.load(path).items()}

    def encode(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
        """The last hidden state, [texts, tokens, hidden]."""
        table = self.weights
        hidden = table["embeddings.word_embeddings.weight"][input_ids]
        hidden = hidden + table["embeddings.position_embeddings.weight"][: input_ids.shape[1]]
        hidden = hidden + table["embeddings.token_type_embeddings.weight"][token_type_ids]
        hidden = self.normalize("embeddings.LayerNorm", hidden)
        bias = np.where(attention_mask[:, None, None, :] == 1, 0.0, -np.inf)
        layers = {name.split(".")[2] for name in table if name.startswith("encoder.layer.")}
        for layer in sorted(layers, key=int):
            prefix = f"encoder.layer.{layer}"
            attended = self.linear(f"{prefix}.attention.output.dense", self.attend(prefix, hidden, bias))
            hidden = self.normalize(f"{prefix}.attention.output.LayerNorm", attended + hidden)
            inner = self.linear(f"{prefix}.intermediate.dense", hidden)
            inner = inner * 0.5 * (1 + erf(inner / math.sqrt(2)))
            hidden = self.normalize(f"{prefix}.output.LayerNorm", self.linear(f"{prefix}.output.dense", inner) + hidden)
        return hidden.astype(np.float32)

    def classify(self, **tensors: Any) -> Any:
        """The logits, [texts, classes]."""
        pooled = np.tanh(self.linear("pooler.dense", self.encode(**tensors)[:, 0]))
        return self.linear("classifier", pooled).astype(np.float32)

    def attend(self, prefix: str, hidden: Any, bias: Any) -> Any:
        texts, tokens, size = hidden.shape
        query, key, value = (
            self.linear(f"{prefix}.attention.self.{name}", hidden)
            .reshape(texts, tokens, HEADS, size // HEADS)
            .transpose(0, 2, 1, 3)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(size // HEADS) + bias
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = weights / weights.sum(-1, keepdims=True) @ value
        return attended.transpose(0, 2, 1, 3).reshape(texts, tokens, size)

    def linear(self, name: str, given: Any) -> Any:
        return given @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def normalize(self, name: str, given: Any) -> Any:
        centred = given - given.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def main(classifier_path: str, encoder_path: str, *ports: str) -> None:
    classifier, encoder = Bert(classifier_path), Bert(encoder_path)

    def classify(**tensors: Any) -> dict[str, Any]:
        return {"logits": classifier.classify(**tensors)}

    def encode(**tensors: Any) -> dict[str, Any]:
        return {"last_hidden_state": encoder.encode(**tensors)}

    http_port, grpc_port, metrics_port = map(int, ports)
    config = TritonConfig(http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port, exit_timeout_secs=3)
    with Triton(config=config) as triton:
        # Fewer texts than this server sends at once, and both widths of integers.
        for name, infer, dtype, output in (
            ("classifier", classify, np.int32, Tensor(name="logits", dtype=np.float32, shape=(5,))),
            ("encoder", encode, np.int64, Tensor(name="last_hidden_state", dtype=np.float32, shape=(-1, 32))),
        ):
            inputs = [Tensor(name=each, dtype=dtype, shape=(-1,)) for each in INPUTS]
            triton.bind(name, batch(infer), inputs, [output], config=ModelConfig(max_batch_size=8))
        triton.run()
        sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
