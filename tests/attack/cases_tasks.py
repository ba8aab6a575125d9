"""What only some tasks of encoders have: labels, targets, documents, contexts, words, whole vocabularies."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.attack.case import (
    ANSWERED,
    INFER,
    PREDICT,
    REFUSED,
    Case,
    ServerKind,
    connections,
    post,
    post_gzip,
    repeat,
    text_body,
)
from tests.attack.wire import PENDING, Plan, http_request

MIB = 2**20
RERANK, SCORE, TEI_RERANK, TEI_PREDICT = "/v1/rerank", "/v1/score", "/rerank", "/predict"


def _body(**body: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(body).encode()


def _predict(*instances: Any, **parameters: Any) -> Callable[[], bytes]:
    return _body(instances=instances, parameters=parameters)


def _infer(text: str, texts: int, outputs: list[dict[str, Any]], **parameters: Any) -> Callable[[], bytes]:
    tensor = {"name": "input-0", "shape": [texts], "datatype": "BYTES", "data": [text] * texts}
    return _body(inputs=[tensor], outputs=outputs, parameters=parameters)


_LOGITS = {"name": "logits"}

FILLER = [
    ("logits of a mask, 1,000 times", post(INFER, _infer("[MASK]", 1, [_LOGITS] * 1000)), REFUSED),
    ("logits of a mask, 10,000 times", post(INFER, _infer("[MASK]", 1, [_LOGITS] * 10_000)), REFUSED),
    ("logits of a mask, 200,000 times", post_gzip(INFER, _infer("[MASK]", 1, [_LOGITS] * 200_000)), REFUSED),
    ("logits of 500 masks in 200 texts", post(INFER, _infer("[MASK]" * 500, 200, [_LOGITS])), REFUSED),
    ("logits of 8,000,000 numbers", post(INFER, _infer("[MASK]" * 10, 26, [_LOGITS])), ANSWERED),
    ("logits of 8,000,000 numbers, 8 at once", post(INFER, _infer("[MASK]" * 10, 26, [_LOGITS]), times=8), ANSWERED),
    ("logits of 8,000,000 numbers, compressed", post(INFER, _infer("[MASK]" * 10, 26, [_LOGITS]), accept_encoding="gzip"), ANSWERED),
    ("logits of 8,000,000 numbers in binary, 20 at once", post(INFER, _infer("[MASK]" * 10, 26, [_LOGITS], binary_data_output=True), times=20), ANSWERED),
    ("logits of 8,000,000 numbers that 30 clients do not read", connections(lambda: [Plan(http_request("POST", INFER, _infer("[MASK]" * 10, 26, [_LOGITS])()), reads=False)] * 30), frozenset({PENDING})),
    ("probabilities of 500 masks over V1", post(PREDICT, _predict(*["[MASK]" * 500] * 20, return_probabilities=True)), REFUSED),
    ("a top_k of 10^9", post(PREDICT, _predict("[MASK]", top_k=10**9)), REFUSED),
    ("a top_k of 1,000 at 500 masks in 200 texts", post(PREDICT, _predict(*["[MASK]" * 500] * 200, top_k=1000)), REFUSED),
    ("a top_k of 1,000 at 8,000 masks", post(PREDICT, _predict(*["[MASK]" * 400] * 20, top_k=1000)), ANSWERED),
    ("8,000,000 targets", post_gzip(PREDICT, repeat('{"instances":["[MASK]"],"parameters":{"targets":[', '"a"', 8_000_000, "]}}")), REFUSED),
    ("30 MiB of targets between commas", post_gzip(PREDICT, text_body('{"instances":["[MASK]"],"parameters":{"targets":"', "a,", 30 * MIB, '"}}')), REFUSED),
    ("target of 1,000,000 letters", post(PREDICT, _predict("[MASK]", targets=["a" * 1_000_000])), REFUSED),
    ("1,000 targets of 30,000 letters", post_gzip(PREDICT, _predict("[MASK]", targets=["a" * 30_000] * 1000)), REFUSED),
    ("windows of 500,000 letters", post(PREDICT, _predict("[MASK] " + "a " * 250_000, stride=500)), ANSWERED),
    ("windows of 30 texts of 500,000 letters", post_gzip(PREDICT, _predict(*["[MASK] " + "a " * 250_000] * 30, stride=500)), REFUSED),
]  # fmt: skip

READER = [
    ("an answer of 10^9 tokens, 1,000 of them", post(PREDICT, _predict({"question": "a", "context": "b " * 500}, max_answer_len=10**9, top_k=1000)), REFUSED),
    ("an answer of 1,000 tokens, 1,000 of them", post(PREDICT, _predict(*[{"question": "a", "context": "b " * 50_000}] * 4, max_answer_len=1000, top_k=1000)), ANSWERED),
    ("62 contexts of 524,000 characters, whose client leaves", post_gzip(PREDICT, _predict(*[{"question": "a", "context": "b " * 262_000}] * 62), leaves=3), ANSWERED | {"pending"}),
    ("62 contexts of 524,000 letters", post_gzip(PREDICT, _predict(*[{"question": "a", "context": "b" * 524_000}] * 62)), ANSWERED),
    ("question of 1,000,000 characters", post_gzip(PREDICT, _predict({"question": "a " * 500_000, "context": "b"})), ANSWERED),
    ("4,096 questions with contexts of 5,000 characters, whose client leaves", post_gzip(PREDICT, _predict(*[{"question": "a", "context": "b " * 2500}] * 4096), leaves=3), ANSWERED | {"pending"}),
    ("windows that share all but a token", post(PREDICT, _predict({"question": "a", "context": "b " * 100_000}, stride=505)), ANSWERED),
    ("2,500,000 questions without a context", post_gzip(PREDICT, repeat('{"instances":[', '{"question":""}', 2_000_000, "]}")), REFUSED),
]  # fmt: skip

LABELLER = [
    ("8,000,000 labels", post_gzip(PREDICT, repeat('{"instances":["a"],"parameters":{"candidate_labels":[', '"a"', 8_000_000, "]}}")), REFUSED),
    ("30 MiB of labels between commas", post_gzip(PREDICT, text_body('{"instances":["a"],"parameters":{"candidate_labels":"', "a,", 30 * MIB, '"}}')), REFUSED),
    ("1,000 labels for 4,096 texts", post(PREDICT, _predict(*["a"] * 4096, candidate_labels=[str(each) for each in range(1000)])), REFUSED),
    ("1,000 labels of 30,000 letters", post_gzip(PREDICT, _predict("a", candidate_labels=[f"{each}" + "b" * 30_000 for each in range(1000)])), REFUSED),
    ("hypothesis of 8 MiB for 1,000 labels", post_gzip(PREDICT, _predict("a", candidate_labels=[str(each) for each in range(1000)], hypothesis_template="a" * (8 * MIB) + "{}")), REFUSED),
    ("hypothesis with 1,000,000 places", post_gzip(PREDICT, _predict("a", candidate_labels=["b" * 1000, "c"], hypothesis_template="{}" * 1_000_000)), REFUSED),
    ("hypothesis that formats", post(PREDICT, _predict("a", candidate_labels=["b", "c"], hypothesis_template="{:>1000000000}{}{0.__class__}")), ANSWERED),
    ("1,000 labels for 32 texts", post(PREDICT, _predict(*["a"] * 32, candidate_labels=[str(each) for each in range(1000)])), ANSWERED),
]  # fmt: skip

RANKER = [
    ("8,000,000 documents", post_gzip(RERANK, repeat('{"query":"a","documents":[', '""', 8_000_000, "]}")), REFUSED),
    ("2,500,000 documents as objects", post_gzip(RERANK, repeat('{"query":"a","documents":[', '{"text":""}', 2_500_000, "]}")), REFUSED),
    ("query of 1,000,000 letters with 4,096 documents", post_gzip(RERANK, _body(query="a" * 1_000_000, documents=["b"] * 4096)), REFUSED),
    ("query of 8,000 letters with 4,000 documents", post_gzip(RERANK, _body(query="a " * 4000, documents=["b"] * 4000)), ANSWERED),
    ("query of 32 MiB", post_gzip(RERANK, _body(query="a" * (31 * MIB), documents=["b"])), REFUSED),
    ("8,000,000 texts of TEI", post_gzip(TEI_RERANK, repeat('{"query":"a","texts":[', '""', 8_000_000, "]}")), REFUSED),
    ("7,000,000 lists of TEI", post_gzip(TEI_PREDICT, repeat('{"inputs":[', "[]", 7_000_000, "]}")), REFUSED),
    ("2,500,000 pairs of TEI", post_gzip(TEI_PREDICT, repeat('{"inputs":[', '["",""]', 2_500_000, "]}")), REFUSED),
    ("8,000,000 items to score", post_gzip(SCORE, repeat('{"data_1":"a","data_2":[', '""', 8_000_000, "]}")), REFUSED),
    ("4,000,000 and 4,000,000 to score", post_gzip(SCORE, lambda: repeat('{"data_1":[', '""', 4_000_000, "]")() + repeat(',"data_2":[', '""', 4_000_000, "]}")()), REFUSED),
    ("15 texts of 1,000,000 letters for Unigram", post_gzip(PREDICT, _predict(*["a" * 1_000_000] * 15)), ANSWERED),
    ("15 texts of 1,000,000 ideographs for Unigram", post_gzip(PREDICT, lambda: json.dumps({"instances": ["漢" * 1_000_000] * 15}, ensure_ascii=False).encode()), ANSWERED),
]  # fmt: skip

TAGGER = [
    ("8,000,000 empty words", post_gzip(PREDICT, repeat('{"instances":[{"words":[', '""', 8_000_000, "]}]}")), REFUSED),
    ("words of 1,000,000 letters", post_gzip(PREDICT, _predict(*[{"words": ["a" * 1_000_000]}] * 15)), ANSWERED),
    ("300,000 words", post_gzip(PREDICT, _predict({"words": ["a"] * 300_000})), ANSWERED),
    ("8,000,000 labels to leave out", post_gzip(PREDICT, repeat('{"instances":["a"],"parameters":{"ignore_labels":[', '"a"', 8_000_000, "]}}")), REFUSED),
    ("entities of 4,096 texts", post_gzip(PREDICT, _predict(*["a b c " * 20] * 4096, aggregation_strategy="simple", ignore_labels=[])), ANSWERED),
    ("15 texts of 1,000,000 letters for BPE", post_gzip(PREDICT, _predict(*["a" * 1_000_000] * 15)), ANSWERED),
    ("15 texts of 1,000,000 spaces for BPE", post_gzip(PREDICT, _predict(*[" " * 1_000_000] * 15)), ANSWERED),
    ("500,000 letters for BPE, read to the end", post(PREDICT, _predict("a" * 500_000, truncation=False)), ANSWERED),
    ("500,000 letters for BPE, truncated tokens counted", post(PREDICT, _predict("ab" * 250_000, return_truncated_tokens=True)), ANSWERED),
]  # fmt: skip

_BY_SERVER = {
    ServerKind.FILLER: FILLER,
    ServerKind.READER: READER,
    ServerKind.LABELLER: LABELLER,
    ServerKind.RANKER: RANKER,
    ServerKind.TAGGER: TAGGER,
}
CASES = [
    # They may all be refused; those that are answered take the model's time.
    Case(name, served, prepare, allowed, patience=10 if allowed == {PENDING} else 60, quick=allowed is REFUSED)
    for served, rows in _BY_SERVER.items()
    for name, prepare, allowed in rows
]
