"""Generation: many outputs of one request, templates, constraints, tokens, streams whose clients leave."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tests.attack.case import (
    ANSWERED,
    INFER,
    PREDICT,
    REFUSED,
    Attack,
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
COMPLETIONS, CHATS, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
TOKENIZE, DETOKENIZE = "/tokenize", "/detokenize"
GENERATE, GENERATE_STREAM = "/v2/models/model/generate", "/v2/models/model/generate_stream"
# The first byte of three of a character: after five special tokens come the letters that stand for bytes, 188 in order.
_HALF = 167
SERVED_OR_LEFT = ANSWERED | {PENDING}
_LOOPS = "{% for a in range(10000) %}{% for b in range(10000) %}{{ a * b }}{% endfor %}{% endfor %}"


def _body(**body: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(body).encode()


def _chat(content: str = "a", **body: Any) -> Callable[[], bytes]:
    return _body(messages=[{"role": "user", "content": content}], **{"max_tokens": 1, **body})


def _complete(prompt: Any = "a", **body: Any) -> Callable[[], bytes]:
    return _body(prompt=prompt, **{"max_tokens": 1, **body})


def _schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {
            "oneOf": [{"type": "object", "properties": {"a": schema, "b": schema}}, {"type": "array", "items": schema}]
        }
    return schema


def _shared(bodies: Callable[[], Sequence[tuple[str, bytes]]], leaves: float | None = None) -> Callable[[], Attack]:
    """Bodies for some paths, at once."""
    return connections(
        lambda: [
            Plan(http_request("POST", path, body, {"content-type": "application/json"}), leaves=leaves)
            for path, body in bodies()
        ]
    )


def _wrong_among_innocent(wrong: list[int]) -> Callable[[], Attack]:
    """Nine prompts of tokens, and one with a token that there is not, over the Open Inference Protocol."""

    def body(ids: list[int]) -> bytes:
        tensor = {"name": "input_ids", "shape": [1, len(ids)], "datatype": "INT64", "data": ids}
        return _body(inputs=[tensor], parameters={"max_tokens": 8, "ignore_eos": True})()

    return _shared(
        lambda: [(INFER, body([5, 6, 7, 8]))] * 5 + [(INFER, body(wrong))] + [(INFER, body([5, 6, 7, 8]))] * 4
    )


def _prompts_among_innocent(wrong: dict[str, Any]) -> Callable[[], Attack]:
    """Nine completions, and one whose parameters fail."""
    good = _complete("a b c", max_tokens=8)()
    return _shared(
        lambda: [(COMPLETIONS, good)] * 5 + [(COMPLETIONS, _complete(**wrong)())] + [(COMPLETIONS, good)] * 4
    )


AMOUNTS = [
    ("500 prompts with n = 128", post(COMPLETIONS, _complete(["a"] * 500, n=128)), REFUSED),
    ("8,000 prompts", post(COMPLETIONS, _complete(["a"] * 8000)), REFUSED),
    ("8,000,000 prompts", post_gzip(COMPLETIONS, repeat('{"prompt":[', '"a"', 8_000_000, "]}")), REFUSED),
    ("7,000,000 prompts of a token", post_gzip(COMPLETIONS, repeat('{"prompt":[', "[5]", 7_000_000, "]}")), REFUSED),
    ("15,000,000 tokens of a prompt", post_gzip(COMPLETIONS, repeat('{"prompt":[', "5", 15_000_000, "]}")), REFUSED),
    ("n of 10^9", post(COMPLETIONS, _complete(n=10**9)), REFUSED),
    ("best_of of 10^9", post(COMPLETIONS, _complete(best_of=10**9)), REFUSED),
    ("max_tokens of 10^9", post(COMPLETIONS, _complete(max_tokens=10**9)), REFUSED),
    ("32 beams of 200 tokens", post(COMPLETIONS, _complete(n=32, use_beam_search=True, max_tokens=200, ignore_eos=True)), ANSWERED),
    ("8 requests of 32 beams, who leave", post(COMPLETIONS, _complete(n=32, use_beam_search=True, max_tokens=2000, ignore_eos=True), times=8, leaves=3), SERVED_OR_LEFT),
    ("1,024 outputs of 2,000 tokens, whose client leaves", post(COMPLETIONS, _complete(["a"] * 8, n=128, max_tokens=2000, ignore_eos=True), leaves=3), SERVED_OR_LEFT),
    ("100,000 instances", post_gzip(PREDICT, repeat('{"instances":[', '"a"', 100_000, "]}")), REFUSED),
    ("8,000,000 instances", post_gzip(PREDICT, repeat('{"instances":[', '"a"', 8_000_000, "]}")), REFUSED),
    ("8,000,000 stop strings", post_gzip(COMPLETIONS, repeat('{"prompt":"a","stop":[', '"a"', 8_000_000, "]}")), REFUSED),
    ("8,000,000 bad words", post_gzip(COMPLETIONS, repeat('{"prompt":"a","bad_words":[', '"a"', 8_000_000, "]}")), REFUSED),
    ("64 bad words of 1,000 letters", post(COMPLETIONS, _complete(bad_words=["a" * 1000] * 64)), ANSWERED),
    ("3,000,000 tokens of a bias", post_gzip(COMPLETIONS, repeat('{"prompt":"a","logit_bias":{', '"5":1', 3_000_000, "}}")), REFUSED),
    ("10,000,000 tokens that are allowed", post_gzip(COMPLETIONS, repeat('{"prompt":"a","allowed_token_ids":[', "5", 10_000_000, "]}")), REFUSED),
    ("1,000,000 messages", post_gzip(CHATS, repeat('{"messages":[', '{"role":"user","content":"a"}', 1_000_000, "]}")), REFUSED),
    ("2,048 messages of 10,000 letters", post_gzip(CHATS, repeat('{"max_tokens":1,"messages":[', '{"role":"user","content":"' + "a " * 5000 + '"}', 2048, "]}")), REFUSED),
    ("1,000,000 parts of a message", post_gzip(CHATS, repeat('{"messages":[{"role":"user","content":[', '{"type":"text","text":"a"}', 1_000_000, "]}]}")), REFUSED),
    ("500,000 tools", post_gzip(CHATS, repeat('{"messages":[{"role":"user","content":"a"}],"tools":[', '{"type":"function","function":{"name":"a"}}', 500_000, "]}")), REFUSED),
    ("1,000,000 items of a response's input", post_gzip(RESPONSES, repeat('{"input":[', '{"role":"user","content":"a"}', 1_000_000, "]}")), REFUSED),
    ("31 MiB to tokenize", post_gzip(TOKENIZE, text_body('{"prompt":"', "a", 31 * MIB, '"}')), REFUSED),
    ("1,000,000 characters to tokenize, 20 at once", post_gzip(TOKENIZE, text_body('{"prompt":"', "漢", MIB, '"}'), times=20), ANSWERED),
    ("15,000,000 tokens to detokenize", post_gzip(DETOKENIZE, repeat('{"tokens":[', "5", 15_000_000, "]}")), REFUSED),
    ("500,000 tokens to detokenize", post_gzip(DETOKENIZE, repeat('{"tokens":[', "3", 500_000, "]}")), ANSWERED),
    ("prompt of 31 MiB of one letter", post_gzip(COMPLETIONS, text_body('{"prompt":"', "a", 31 * MIB, '"}')), REFUSED),
    ("prompt of 31 MiB of spaces", post_gzip(COMPLETIONS, text_body('{"prompt":"', " ", 31 * MIB, '"}')), REFUSED),
    ("prompt of 1,000,000 ideographs", post_gzip(COMPLETIONS, text_body('{"prompt":"', "漢", 3_000_000, '"}')), REFUSED),
    ("prompt of 31 MiB to generate", post_gzip(GENERATE, text_body('{"text_input":"', "a", 31 * MIB, '"}')), REFUSED),
    ("1,000,000 parameters beside a text", post_gzip(GENERATE, repeat('{"text_input":"a",', '"a":1', 3_000_000, "}")), REFUSED),
]  # fmt: skip

TEMPLATES = [
    ("a chat template among its variables", post(CHATS, _chat(chat_template_kwargs={"chat_template": _LOOPS})), REFUSED),
    ("keywords of the template call among its variables", post(CHATS, _chat(chat_template_kwargs={"tokenize": True, "return_dict": True, "conversation": 1, "tools": 1, "padding": 1, "max_length": 10**9})), ANSWERED),
    ("a chat template", post(CHATS, _chat(chat_template=_LOOPS)), REFUSED),
    ("a chat template to tokenize", post(TOKENIZE, _chat(chat_template=_LOOPS)), REFUSED),
    ("a template of 10^11 letters", post(CHATS, _chat(chat_template_kwargs={"chat_template": "{{ 'x' * 10**11 }}"})), REFUSED),
    ("a variable of 30 MiB", post_gzip(CHATS, _chat(chat_template_kwargs={"mood": "a" * (30 * MIB)})), REFUSED),
    ("a role that the template refuses", _shared(lambda: [(CHATS, _body(messages=[{"role": "robot", "content": "a"}])())]), REFUSED),
    ("100,000 documents", post_gzip(CHATS, _chat(documents=[{"title": "a", "text": "b"}] * 100_000)), REFUSED),
]  # fmt: skip

CONSTRAINTS = [
    ("100,000 choices", post_gzip(COMPLETIONS, lambda: _complete(structured_outputs={"choice": [f"choice {each}" for each in range(100_000)]})()), REFUSED),
    ("1,000 choices of 1,000 letters", post_gzip(COMPLETIONS, lambda: _complete(structured_outputs={"choice": [f"{each}" + "a" * 1000 for each in range(1000)]})()), ANSWERED),
    ("oneOf nested deep", post_gzip(CHATS, lambda: _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": _schema(7)}})()), ANSWERED),
    ("regular expression of a million states", post(COMPLETIONS, _complete(structured_outputs={"regex": "((a{1000}){1000}){1000}"})), ANSWERED),
    ("regular expression that is ambiguous", post(COMPLETIONS, _complete(structured_outputs={"regex": "(a|a?)+(b|b?)+" * 50}, max_tokens=50)), ANSWERED),
    ("grammar that is ambiguous", post(COMPLETIONS, _complete(structured_outputs={"grammar": 'start: start start | "a" | ""'}, max_tokens=200)), ANSWERED),
    ("schema of 100,000 properties", post_gzip(CHATS, lambda: _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object", "properties": {f"p{each}": {"type": "string"} for each in range(100_000)}}}})()), REFUSED),
    ("schema that refers to itself", post(CHATS, _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#"}}})), ANSWERED),
    ("schema that refers to a file and a URL", post(CHATS, _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "file:///etc/passwd", "anyOf": [{"$ref": "http://localhost:1/"}]}}})), ANSWERED),
    ("strings of 10^9 letters by a schema", post(CHATS, _chat(response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "string", "minLength": 10**9, "pattern": "^(a|b){1000000}$"}}})), ANSWERED),
]  # fmt: skip

TOKENS = [
    ("4,000 special tokens", post(COMPLETIONS, _complete(max_tokens=4000, ignore_eos=True, logit_bias={"1": 100}, temperature=0)), ANSWERED),
    ("4,000 special tokens that are not shown, as a stream", post(COMPLETIONS, _complete(max_tokens=4000, ignore_eos=True, logit_bias={"1": 100}, temperature=0, stream=True)), ANSWERED),
    ("4,000 halves of a character", post(COMPLETIONS, _complete(max_tokens=4000, ignore_eos=True, allowed_token_ids=[_HALF], temperature=0)), ANSWERED),
    ("8,000 tokens of a prompt with their log probabilities", post(COMPLETIONS, _complete([5] * 8000, prompt_logprobs=20)), ANSWERED),
    ("echo of 8,000 tokens with log probabilities, 8 at once", post(COMPLETIONS, _complete([5] * 8000, echo=True, logprobs=5), times=8), ANSWERED),
]  # fmt: skip

STREAMS = [
    ("90 streams whose clients leave before they begin", post(COMPLETIONS, _complete("a " * 3000, max_tokens=1000, ignore_eos=True, stream=True), times=90, leaves=2), SERVED_OR_LEFT),
    ("90 chats whose clients leave", post(CHATS, _chat("a " * 3000, max_tokens=1000, ignore_eos=True), times=90, leaves=2), SERVED_OR_LEFT),
    ("600 streams at once, who leave", post(COMPLETIONS, _complete(max_tokens=1000, ignore_eos=True, stream=True), times=600, leaves=3), SERVED_OR_LEFT),
    ("90 streams that nobody reads", connections(lambda: [Plan(http_request("POST", COMPLETIONS, _complete(max_tokens=2000, ignore_eos=True, stream=True, logprobs=5)()), reads=False)] * 90), frozenset({PENDING})),
    ("streams of generate, who leave", post(GENERATE_STREAM, _body(text_input="a", parameters={"max_tokens": 2000, "ignore_eos": True}), times=90, leaves=2), SERVED_OR_LEFT),
]  # fmt: skip

TOGETHER = [
    ("a negative token beside nine prompts", _wrong_among_innocent([5, -1, 6]), Counter({"200": 9, "400": 1})),
    ("a token of 2^62 beside nine prompts", _wrong_among_innocent([5, 2**62, 6]), Counter({"200": 9, "400": 1})),
    ("a bias of no token beside nine prompts", _prompts_among_innocent({"logit_bias": {"999999999": 1}}), Counter({"200": 9, "400": 1})),
    ("a bias of token -1 beside nine prompts", _prompts_among_innocent({"logit_bias": {"-1": 1}}), Counter({"200": 9, "400": 1})),
    ("a token that is not allowed beside nine prompts", _prompts_among_innocent({"allowed_token_ids": [2**31 - 1]}), Counter({"200": 9, "400": 1})),
    ("a wrong grammar beside nine prompts", _prompts_among_innocent({"structured_outputs": {"grammar": "start: ("}}), Counter({"200": 9, "400": 1})),
]  # fmt: skip


_LENIENT = {"best_of of 10^9": ANSWERED}

CASES = [
    *(
        Case(name, ServerKind.GENERATOR, prepare, allowed, patience=60, quick=allowed is REFUSED)
        for name, prepare, allowed in (*AMOUNTS, *TEMPLATES, *CONSTRAINTS, *TOKENS, *STREAMS)
    ),
    *(
        Case(name, ServerKind.GENERATOR, prepare, frozenset(together), together=together)
        for name, prepare, together in TOGETHER
    ),
    *(
        # The same where vLLM's own application answers, which leaves out what it does not know.
        Case(f"vLLM: {name}", ServerKind.VLLM, prepare, _LENIENT.get(name, allowed), patience=60, quick=False)
        for name, prepare, allowed in (*AMOUNTS, *TEMPLATES, *CONSTRAINTS, *STREAMS[:2])
    ),
]
