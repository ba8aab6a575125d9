"""Bodies for encoders: too many of everything, and texts that tokenizers read slowly."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable

from tests.attack.case import (
    ANSWERED,
    INFER,
    PREDICT,
    REFUSED,
    Attack,
    Case,
    ServerKind,
    numbered,
    post,
    post_gzip,
    repeat,
    text_body,
)

MIB = 2**20
EMBEDDINGS, EMBED, SCORE, RERANK = "/v1/embeddings", "/embed", "/v1/score", "/v1/rerank"
# Letters that are slow to normalize or to split, or that become many.
SLOW_TEXTS = {
    "CJK": "漢", "one letter": "a", "spaces": " ", "newlines": "\\n", "combining characters": "\u0301",
    "zero-width characters": "\u200b", "joined emoji": "👩\u200d", "a ligature of 18 letters": "\ufdfa",
    "Hangul's parts": "\u1112\u1161\u11ab", "mask tokens": "[MASK]", "unknown tokens": "[UNK]", "points": ".",
    "words": "word ", "accents": "é", "halves of special tokens": "[MAS", "digits": "7",
}  # fmt: skip
# Which `make test` sends too.
_QUICK_TEXTS = ("CJK", "spaces", "joined emoji")


def _cases(
    served: ServerKind, rows: Iterable[tuple[str, Callable[[], Attack], frozenset[str], float, bool]]
) -> list[Case]:
    return [Case(name, served, prepare, allowed, patience, quick) for name, prepare, allowed, patience, quick in rows]


def _amount(name: str, path: str, before: str, item: str, times: int, after: str, served: ServerKind) -> Case:
    """Compressed; refused however large it becomes."""
    return Case(name, served, post_gzip(path, repeat(before, item, times, after)), REFUSED)


_INPUT = '"name":"input-0","shape":[1],"datatype":"BYTES","data":["a"]'
_ASKED = f'{{"inputs":[{{{_INPUT}}}],"outputs":['


def _binary(elements: int, last: bytes = b"") -> Callable[[], Attack]:
    data = struct.pack("<I", 0) * elements + last
    head = json.dumps({"inputs": [{"name": "input-0", "shape": [elements], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}]}).encode()  # fmt: skip
    return post(INFER, lambda: head + data, inference_header_content_length=str(len(head)))


def _texts(letters: str, times: int, size: int) -> Callable[[], bytes]:
    """So many texts of `size` characters."""
    return repeat('{"instances":[', f'"{letters * (size // len(letters))}"', times, "]}")


AMOUNTS = [
    _amount(name, path, before, item, times, after, ServerKind.EMBEDDER)
    for name, path, before, item, times, after in [
        ("2,000,000 empty texts", PREDICT, '{"instances":[', '""', 2_000_000, "]}"),
        ("8,000,000 empty texts", PREDICT, '{"instances":[', '""', 8_000_000, "]}"),
        ("8,000,000 empty texts as inputs", PREDICT, '{"inputs":[', '""', 8_000_000, "]}"),
        ("4,000,000 pairs", PREDICT, '{"instances":[', '["",""]', 4_000_000, "]}"),
        ("7,000,000 empty lists", PREDICT, '{"instances":[', "[]", 7_000_000, "]}"),
        ("2,500,000 objects", PREDICT, '{"instances":[', '{"text":""}', 2_500_000, "]}"),
        ("8,000,000 words", PREDICT, '{"instances":[{"words":[', '""', 8_000_000, "]}]}"),
        ("3,000,000 parameters", PREDICT, '{"instances":["a"],"parameters":{', '"a":1', 3_000_000, "}}"),
        ("8,000,000 names of a parameter", PREDICT, '{"instances":["a"],"parameters":{"candidate_labels":[', '""', 8_000_000, "]}}"),
        ("3,000,000 unknown keys", PREDICT, '{"instances":["a"],', '"a":1', 3_000_000, "}"),
        ("8,000,000 texts to embeddings", EMBEDDINGS, '{"input":[', '""', 8_000_000, "]}"),
        ("8,000,000 texts of a letter to embeddings", EMBEDDINGS, '{"input":[', '"a"', 8_000_000, "]}"),
        ("7,000,000 arrays of a token", EMBEDDINGS, '{"input":[', "[1]", 7_000_000, "]}"),
        ("15,000,000 tokens", EMBEDDINGS, '{"input":[', "1", 15_000_000, "]}"),
        ("8,000,000 texts to embed", EMBED, '{"inputs":[', '"a"', 8_000_000, "]}"),
        ("7,000,000 arrays of a token to embed", EMBED, '{"inputs":[', "[1]", 7_000_000, "]}"),
        ("8,000,000 texts to score", SCORE, '{"text_1":"a","text_2":[', '"a"', 8_000_000, "]}"),
        ("8,000,000 queries to score", SCORE, '{"queries":[', '"a"', 8_000_000, '],"documents":["a"]}'),
        ("8,000,000 documents to rerank", RERANK, '{"query":"a","documents":[', '"a"', 8_000_000, "]}"),
        ("1,000,000 outputs", INFER, _ASKED, '{"name":"output-0"}', 1_000_000, "]}"),
        ("1,000,000 wrong outputs", INFER, _ASKED, '{"name":"o"}', 1_000_000, "]}"),
        ("300,000 inputs", INFER, '{"inputs":[', f"{{{_INPUT}}}", 300_000, "]}"),
        ("8,000,000 elements of a tensor", INFER, '{"inputs":[{"name":"input-0","shape":[8000000],"datatype":"BYTES","data":[', '""', 8_000_000, "]}]}"),
        ("10,000,000 dimensions", INFER, '{"inputs":[{"name":"input-0","datatype":"BYTES","data":["a"],"shape":[', "1", 10_000_000, "]}]}"),
        ("4,000,000 parameters of an input", INFER, f'{{"inputs":[{{{_INPUT},"parameters":{{', '"a":1', 4_000_000, "}}]}"),
        ("4,000,000 parameters of an output", INFER, _ASKED + '{"name":"output-0","parameters":{', '"a":1', 4_000_000, "}}]}"),
        ("4,000,000 parameters of load", "/v2/repository/models/model/load", '{"parameters":{', '"a":1', 4_000_000, "}}"),
    ]
]  # fmt: skip
# A load may be refused as such before its body is read.
AMOUNTS[-1] = Case(AMOUNTS[-1].name, ServerKind.EMBEDDER, AMOUNTS[-1].prepare, REFUSED | {"403", "404", "501"})

FORMS = _cases(
    ServerKind.EMBEDDER,
    [
        ("one output 1,000 times", post(INFER, repeat(_ASKED, '{"name":"output-0"}', 1000, "]}")), REFUSED, 20, True),
        ("1,000,000 different parameters", post_gzip(INFER, numbered('{"inputs":[],"parameters":{', '"#":1', MIB, "}}")), REFUSED, 20, True),
        ("lists in lists, 30 MiB", post_gzip(PREDICT, lambda: b'{"instances":' + b"[" * (30 * MIB)), REFUSED, 20, True),
        ("objects in objects, 5,000,000", post_gzip(PREDICT, lambda: b'{"instances":' + b'{"a":' * 5_000_000), REFUSED, 20, True),
        ("lists in a parameter, 100,000 deep", post_gzip(PREDICT, lambda: b'{"instances":["a"],"parameters":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"), REFUSED, 20, True),
        ("number of 30,000,000 digits", post_gzip(PREDICT, lambda: b'{"instances":' + b"9" * 30_000_000 + b"}"), REFUSED, 20, True),
        ("number of 30,000,000 digits as a token", post_gzip(EMBEDDINGS, lambda: b'{"input":[' + b"9" * 30_000_000 + b"]}"), REFUSED, 20, True),
        ("parameter of 30,000,000 digits", post_gzip(PREDICT, lambda: b'{"instances":["a"],"parameters":{"top_k":' + b"9" * 30_000_000 + b"}}"), REFUSED, 20, True),
        ("parameter 1e999999999", post(PREDICT, lambda: b'{"instances":["a"],"parameters":{"top_k":1e999999999}}'), REFUSED, 20, True),
        ("5,000,000 escapes", post_gzip(PREDICT, text_body('{"instances":["', "\\u0041", 30 * MIB, '"]}')), ANSWERED, 60, False),
        ("key of 30 MiB", post_gzip(PREDICT, text_body('{"instances":["a"],"', "a", 30 * MIB, '":1}')), ANSWERED, 20, True),
        ("name of a parameter of 30 MiB", post_gzip(PREDICT, text_body('{"instances":["a"],"parameters":{"', "a", 30 * MIB, '":1}}')), ANSWERED, 20, True),
        ("name of an output of 30 MiB", post_gzip(INFER, text_body(_ASKED + '{"name":"', "a", 30 * MIB, '"}]}')), REFUSED, 20, True),
        ("name of a model of 30 MiB", post_gzip(EMBEDDINGS, text_body('{"input":"a","model":"', "a", 30 * MIB, '"}')), REFUSED | {"404"}, 20, True),
        ("31 MiB of white space around a body", post_gzip(PREDICT, lambda: b" " * (31 * MIB) + b'{"instances":["a"]}'), ANSWERED, 20, True),
        ("31 MiB of nothing", post_gzip(PREDICT, lambda: b" " * (31 * MIB)), REFUSED, 20, True),
        ("31 MiB of random bytes", post(PREDICT, lambda: bytes(range(256)) * (31 * 4096)), REFUSED, 20, True),
        ("8,000,000 empty elements in binary", _binary(8_000_000), REFUSED, 20, True),
        ("4,096 elements in binary, one lies about its length", _binary(4096, b"\xff\xff\xff\xff"), REFUSED, 20, True),
        ("an event's data of 30 MiB in base64", post_gzip(PREDICT, text_body('{"specversion":"1.0","type":"a","source":"a","id":"1","data_base64":"', "QUJD", 30 * MIB, '"}'), content_type="application/cloudevents+json"), REFUSED, 20, True),
        ("an event's attributes, 2,000,000", post_gzip(PREDICT, numbered('{"specversion":"1.0","type":"a","source":"a","id":"1","data":{"instances":["a"]},', '"a#":"b"', MIB, "}"), content_type="application/cloudevents+json"), REFUSED, 20, True),
    ],
)  # fmt: skip


TEXTS = [
    *(
        case
        for name, letters in SLOW_TEXTS.items()
        for case in _cases(
            ServerKind.EMBEDDER,
            [
                (f"a text of 31 MiB of {name}", post_gzip(PREDICT, text_body('{"instances":["', letters, 31 * MIB, '"]}')), REFUSED, 120, name in _QUICK_TEXTS),
                # No more than a text may have, and no more of them than a request.
                (f"15 texts of 1,000,000 {name}", post_gzip(PREDICT, _texts(letters, 15, 1_000_000)), ANSWERED, 120, False),
            ],
        )
    ),
    *_cases(
        ServerKind.EMBEDDER,
        [
            ("8 MiB of CJK", post_gzip(PREDICT, text_body('{"instances":["', "漢", 8 * MIB, '"]}')), REFUSED, 60, True),
            ("8 MiB of CJK to embeddings", post_gzip(EMBEDDINGS, text_body('{"input":"', "漢", 8 * MIB, '"}')), REFUSED, 60, True),
            ("8 MiB of CJK to infer", post_gzip(INFER, text_body('{"inputs":[{"name":"a","shape":[1],"datatype":"BYTES","data":["', "漢", 8 * MIB, '"]}]}')), REFUSED, 60, True),
            ("500,000 letters, read to the end", post(PREDICT, text_body('{"parameters":{"truncation":false},"instances":["', "a", 500_000, '"]}')), ANSWERED, 30, False),
            ("30 texts of 500,000 letters, truncated tokens counted", post_gzip(PREDICT, lambda: b'{"parameters":{"return_truncated_tokens":true},' + _texts("a", 30, 500_000)()[1:]), ANSWERED, 60, False),
            ("4,096 long texts whose client leaves", post(PREDICT, _texts("word ", 4096, 2500), leaves=5), ANSWERED | {"pending"}, 6, False),
            ("20 clients with 4,096 long texts, who leave", post_gzip(PREDICT, _texts("word ", 4096, 2500), times=20, leaves=5), ANSWERED | {"pending"}, 6, False),
            ("512 queries of 60,000 characters with one document", post_gzip(SCORE, lambda: json.dumps({"text_1": ["a " * 30_000] * 512, "text_2": ["b"] * 512}).encode()), ANSWERED, 60, False),
        ],
    ),
]  # fmt: skip

_TENSOR_OF_4096 = '{"inputs":[{"name":"input-0","shape":[4096],"datatype":"BYTES","data":['
# As many texts as a request may have, which all are answered; a query is one of them.
MOST = _cases(
    ServerKind.EMBEDDER,
    [
        (f"4,096 texts to {name}", post(path, repeat(before, item, 4096 - (path in (SCORE, RERANK)), after)), frozenset({"200"}), 60, False)
        for name, path, before, item, after in [
            ("predict", PREDICT, '{"instances":[', '"a word"', "]}"),
            ("infer", INFER, _TENSOR_OF_4096, '"a word"', "]}]}"),
            ("infer, answered in binary", INFER, '{"parameters":{"binary_data_output":true},' + _TENSOR_OF_4096[1:], '"a word"', "]}]}"),
            ("embeddings", EMBEDDINGS, '{"input":[', '"a word"', "]}"),
            ("embeddings, answered in base64", EMBEDDINGS, '{"encoding_format":"base64","input":[', '"a word"', "]}"),
            ("embeddings, as tokens", EMBEDDINGS, '{"input":[', "[5,6]", "]}"),
            ("embed", EMBED, '{"inputs":[', '"a word"', "]}"),
            ("score", SCORE, '{"text_1":"a word","text_2":[', '"a word"', "]}"),
            ("rerank", RERANK, '{"query":"a word","documents":[', '"a word"', "]}"),
        ]
    ],
)  # fmt: skip

CASES = [*AMOUNTS, *FORMS, *TEXTS, *MOST]
