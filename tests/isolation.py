"""Every forward pass with a model for it, and what the server says of one text among others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from starlette.testclient import TestClient
from transformers import PreTrainedTokenizerBase

from benchmarks.texts import docstrings
from runners.encoder.batch_mode import BatchMode
from runners.encoder.runner import EncoderRunner
from runners.modeling.packed_linear import PackedLinear
from tests.families import FAMILIES, Family, albert_unigram
from tests.served import Served
from tests.wire import Outcome, Request

# Of the largest number of the answer. In float32 sums may be taken in another order, in bfloat16 be rounded otherwise;
# on a CPU with AVX-512 BF16 packed batches were bit-identical in bfloat16 too.
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
LABELS = ("a film", "a station")

Arrays = dict[str, NDArray[Any]]
Wire = Callable[[TestClient, grpc.Channel, str, Request], Outcome]


def _padded_on_the_left() -> PreTrainedTokenizerBase:
    tokenizer = albert_unigram()
    tokenizer.padding_side = "left"
    return tokenizer


# What is padded on the right and on the left, and what cannot be padded.
_FAMILIES = {
    **FAMILIES,
    "deberta-conv": replace(FAMILIES["deberta-v2"], config=FAMILIES["deberta-v2"].config | {"conv_kernel_size": 3}),
    "xlnet": Family("xlnet", _padded_on_the_left, {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64}),
    "fnet": Family("fnet", albert_unigram, {"type_vocab_size": 4}),
}


@dataclass(frozen=True)
class Case:
    """A model as it is served.

    Attributes:
        mode: how its texts share batches.
        forced: whether it would choose another mode by itself.
        parameters: of every request.
        outputs: what is asked for; nothing is the model's own.
    """

    family: str
    task: str
    mode: BatchMode
    dtype: str = "float32"
    forced: bool = False
    parameters: dict[str, Any] = field(default_factory=dict, hash=False)
    outputs: tuple[str, ...] = ("logits",)

    def __str__(self) -> str:
        windows = ["windows"] if "stride" in self.parameters else []
        return "-".join([self.family, self.task, self.mode.replace(" ", "_"), self.dtype, *windows])

    def save(self, folder: Path) -> Path:
        return _FAMILIES[self.family].save(folder, self.task)


def _packed(family: str, task: str, dtype: str = "float32", **how: Any) -> Case:
    return Case(family, task, BatchMode.PACKED, dtype, **how)


_OWN: dict[str, Any] = {"outputs": ()}
CASES = [
    _packed("bert", "question_answering", **_OWN),
    _packed("bert", "sequence_classification"),
    _packed("bert", "text_embedding", **_OWN),
    _packed("bert", "text_ranking", outputs=("logits", "relevance")),
    _packed("bert", "token_classification", parameters={"stride": 8}),
    _packed("bert", "zero_shot_classification", parameters={"candidate_labels": ",".join(LABELS)}, **_OWN),
    _packed("distilbert", "token_classification"),
    _packed("roberta", "text_embedding", **_OWN),
    _packed("modernbert", "fill_mask"),
    _packed("bert", "sparse_embedding", **_OWN),
    _packed("bert", "sequence_classification", "bfloat16"),
    _packed("roberta", "sparse_embedding", "bfloat16", **_OWN),
    _packed("distilbert", "token_classification", "bfloat16"),
    _packed("roberta", "fill_mask", "bfloat16"),
    _packed("modernbert", "text_embedding", "bfloat16", **_OWN),
    _packed("deberta-v2", "sequence_classification"),
    _packed("deberta-v2", "text_embedding", "bfloat16", **_OWN),
    Case("deberta-conv", "sequence_classification", BatchMode.PADDED),
    Case("deberta-conv", "token_classification", BatchMode.PADDED, "bfloat16"),
    Case("deberta-conv", "sparse_embedding", BatchMode.PADDED, **_OWN),
    Case("xlnet", "sequence_classification", BatchMode.PADDED),
    Case("fnet", "token_classification", BatchMode.EQUAL_LENGTH),
    Case("bert", "text_embedding", BatchMode.ONE_BY_ONE, forced=True, **_OWN),
]


class Server:
    """A case that is served over REST and gRPC."""

    def __init__(self, case: Case, served: Served, channel: grpc.Channel) -> None:
        self.case = case
        self._client = served.client
        self._channel = channel
        runner = served.runner
        assert isinstance(runner, EncoderRunner)
        assert runner._loaded is not None
        assert runner.forward_mode is case.mode
        packs_linears = any(isinstance(module, PackedLinear) for module in runner._loaded.model.modules())
        self.exact = packs_linears and case.mode is BatchMode.PACKED and case.dtype == "float32"
        # Padded in float32, the order of a sum may depend on where a text lies in memory.
        self.exact_beside_same_lengths = (
            case.mode in (BatchMode.PACKED, BatchMode.ONE_BY_ONE) or case.dtype != "float32"
        )
        tokenizer = runner._loaded.encoder_task.tokenizer
        self._mask: str = tokenizer.mask_token
        self._entries = runner._loaded.encoder_task.width
        # After another word, since some tokenizers see the first one otherwise.
        known = len(tokenizer.tokenize("it"))
        usual = [word for word, _ in Counter(" ".join(docstrings()).split()).most_common(200) if word.isalpha()]
        self._words = [word for word in usual if len(tokenizer.tokenize(f"it {word}")) == known + 1]
        assert len(self._words) > 20

    def ask(self, wire: Wire, texts: Sequence[str]) -> list[Arrays]:
        """The outputs for each of the texts: [1, ...] each."""
        # The mask comes first, since the end of a long text is truncated.
        beginning = f"it {self._mask}" if self.case.task == "fill_mask" else "it"
        given: list[Any] = [f"{beginning} {text}" for text in texts]
        if self.case.task in ("question_answering", "text_ranking"):
            given = [["where is it", text] for text in given]
        tensor = {"name": "x", "shape": [*np.shape(given)], "datatype": "BYTES", "data": np.ravel(given).tolist()}
        request: Request = {"inputs": [tensor], "parameters": self.case.parameters}
        if self.case.outputs:
            request["outputs"] = [{"name": name} for name in self.case.outputs]
        outcome = wire(self._client, self._channel, "model", request)
        assert outcome.code == "OK", outcome.error
        types = {"FP32": np.float32, "INT64": np.int64, "BYTES": object}
        arrays = {
            name: np.array(data, dtype=types[datatype]).reshape(shape)
            for name, datatype, shape, data in outcome.outputs
        }
        if self.case.task == "sparse_embedding":
            arrays = {"dense": self._fill(arrays["index"], arrays["value"])}
        return [
            {name: array[position : position + 1] for name, array in arrays.items()} for position in range(len(texts))
        ]

    def _fill(self, index: NDArray[Any], values: NDArray[Any]) -> NDArray[np.float32]:
        """Sparse vectors with their zeros: rounding decides whether a number is one."""
        dense = np.zeros((len(index), self._entries), dtype=np.float32)
        for row, places, weights in zip(dense, index, values, strict=True):
            row[places[places >= 0]] = weights[places >= 0]
        return dense

    def make_texts(self, lengths: Sequence[int], seed: int) -> list[str]:
        """Texts of so many words, each of which is one token, so that those of two seeds have the same lengths."""
        random = Random(seed)
        return [" ".join(random.choices(self._words, k=length)) for length in lengths]

    def check_same(self, beside: Arrays, alone: Arrays, exact: bool) -> None:
        """Whether two answers to a text are the same, but for what fills up tensors of several texts.

        Args:
            exact: whether bit for bit, else within the bound of the dtype.
        """
        assert list(beside) == list(alone)
        for name, expected in alone.items():
            found = beside[name][tuple(slice(size) for size in expected.shape)]
            if exact or expected.dtype != np.float32:
                assert found.tolist() == expected.tolist(), name
            else:
                largest = float(np.abs(expected).max())
                np.testing.assert_allclose(found, expected, rtol=0, atol=BOUNDS[self.case.dtype] * largest)
