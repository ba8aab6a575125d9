"""Right requests of every route that has a body, which the fuzzers make wrong ones of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runners.core.answer_options import AnswerOptions, OverflowOptions

_TENSOR = {"name": "input-0", "shape": [2], "datatype": "BYTES", "data": ["a text", "another"]}
_TOKENS = [
    {"name": "input_ids", "shape": [1, 4], "datatype": "INT64", "data": [5, 6, 7, 8]},
    {"name": "attention_mask", "shape": [1, 4], "datatype": "INT64", "data": [1, 1, 1, 0]},
]
_GROUPS = (AnswerOptions(), OverflowOptions())
# By name with a right value: of encoders' answers, and of sampling.
ANSWERS: Sequence[tuple[str, Any]] = (
    *(item for group in _GROUPS for item in group.model_dump(mode="json").items()),
    ("return_probabilities", True), ("return_raw_logits", True), ("return_offsets_mapping", True), ("labels", True),
    ("top_k", 2), ("threshold", 0.1), ("function_to_apply", "sigmoid"), ("targets", ["the"]), ("stride", 3),
    ("aggregation_strategy", "simple"), ("candidate_labels", ["sports", "art"]), ("multi_label", True),
    ("max_answer_len", 5), ("handle_impossible_answer", True), ("truncation", False), ("binary_data_output", True),
    ("return_truncated_tokens", True), ("window_aggregation", "max"), ("dimensions", 8), ("max_active_dims", 8), ("hypothesis_template", "{}"),
)  # fmt: skip
SAMPLING: Sequence[tuple[str, Any]] = (
    ("max_tokens", 3), ("min_tokens", 1), ("temperature", 0.5), ("top_p", 0.9), ("top_k", 5), ("min_p", 0.1), ("seed", 1),
    ("n", 2), ("best_of", 2), ("stop", ["a", "b"]), ("include_stop_str_in_output", True), ("stop_token_ids", [7]),
    ("bad_words", ["the"]), ("allowed_token_ids", [7, 8, 9]), ("presence_penalty", 1), ("frequency_penalty", -1),
    ("repetition_penalty", 1.1), ("logit_bias", {"7": 5}), ("ignore_eos", True), ("skip_special_tokens", False),
    ("echo", True), ("logprobs", 2), ("top_logprobs", 2), ("logprob_token_ids", [7]), ("prompt_logprobs", 1),
    ("return_tokens_as_token_ids", True), ("return_token_ids", True), ("stream", True),
    ("stream_options", {"include_usage": True}), ("use_beam_search", True), ("length_penalty", 0.5),
    ("response_format", {"type": "json_object"}), ("structured_outputs", {"choice": ["yes", "no"]}),
    ("structured_outputs", {"regex": "[0-9]+"}), ("structured_outputs", {"json": {"type": "integer"}}),
    ("add_special_tokens", True), ("truncate_prompt_tokens", 2), ("truncation_side", "left"), ("request_id", "7"),
    ("chat_template_kwargs", {"mood": "good"}), ("add_generation_prompt", False), ("continue_final_message", True),
    ("tools", [{"type": "function", "function": {"name": "a", "parameters": {"type": "object"}}}]),
    ("tool_choice", "required"), ("parallel_tool_calls", False), ("documents", [{"text": "a"}]), ("reasoning_effort", "low"),
    ("user", "a"), ("metadata", {"a": "b"}), ("service_tier", "auto"), ("suffix", "a"), ("model", "model"),
)  # fmt: skip


@dataclass(frozen=True)
class Seed:
    """A right request of a route.

    Attributes:
        options: what may be given beside, or in `parameters`.
    """

    path: str
    body: Any
    options: Sequence[tuple[str, Any]] = ANSWERS


def _predict(*instances: Any, **parameters: Any) -> Seed:
    return Seed("/v1/models/model:predict", {"instances": [*instances], "parameters": parameters})


def _infer(**parameters: Any) -> Seed:
    asked = {"id": "1", "inputs": [_TENSOR], "outputs": [{"name": "output-0", "parameters": {"classification": 1}}]}
    return Seed("/v2/models/model/infer", {**asked, "parameters": parameters})


def _encoder(*seeds: Seed) -> tuple[Seed, ...]:
    """With what all encoders answer."""
    event = {"specversion": "1.0", "type": "a", "source": "b", "id": "1", "data": {"instances": ["a text"]}}
    return (
        *seeds,
        _predict("a text", "another"),
        _infer(),
        Seed("/v2/models/model/infer", {"inputs": [_TENSOR]}),
        Seed("/v2/models/model/versions/1/infer", {"inputs": _TOKENS, "parameters": {"binary_data_output": True}}),
        Seed("/v1/models/model:predict", event),
        Seed("/v2/repository/index", {"ready": True}),
        Seed("/v2/repository/models/model/load", {}),
    )


def _hub(inputs: Any, **parameters: Any) -> Seed:
    """Of Hugging Face's API."""
    return Seed("/models/model", {"inputs": inputs, "parameters": parameters})


_GENERATE = {"text_input": "a text", "id": "1", "max_tokens": 2, "parameters": {"temperature": 0}}
_CHAT = {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], "max_tokens": 2}
_CALLS = [{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}]
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}}, "required": ["a"]}
_GENERATOR = tuple(
    Seed(path, body, SAMPLING)
    for path, body in [
        ("/v1/completions", {"prompt": "a text", "max_tokens": 2}),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "logprobs": 1, "echo": True}),
        ("/v1/completions", {"prompt": [[5, 6, 7], [8]], "max_tokens": 2, "stream": True}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 4, "structured_outputs": {"json": _SCHEMA}}),
        ("/v1/chat/completions", _CHAT),
        ("/openai/v1/chat/completions", {**_CHAT, "stream": True, "logprobs": True, "top_logprobs": 1}),
        ("/v1/chat/completions", {**_CHAT, "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "tool_calls": _CALLS}, {"role": "tool", "content": "b", "tool_call_id": "1"}]}),
        ("/v1/chat/completions", {**_CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _SCHEMA}}}),
        ("/bentoml/generate", {"prompt": "a text", "max_tokens": 2}),
        ("/bentoml/chat", _CHAT),
        ("/v1/responses", {"input": "a text", "max_output_tokens": 2, "instructions": "b"}),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}], "max_output_tokens": 2, "stream": True}),
        ("/tokenize", {"prompt": "a text", "return_token_strs": True}),
        ("/tokenize", {"messages": _CHAT["messages"], "add_generation_prompt": True}),
        ("/detokenize", {"tokens": [5, 6, 7]}),
        ("/v2/models/model/generate", _GENERATE),
        ("/v2/models/model/generate_stream", _GENERATE),
        ("/v1/models/model:predict", {"instances": ["a text"], "parameters": {"max_tokens": 2}}),
        ("/v2/models/model/infer", {"inputs": [_TENSOR], "parameters": {"max_tokens": 2}}),
        ("/v2/models/model/infer", {"inputs": _TOKENS[:1], "parameters": {"max_tokens": 2}}),
        ("/", {"inputs": "a text", "parameters": {"max_new_tokens": 2, "details": True, "return_full_text": True, "top_n_tokens": 2}}),
        ("/models/model", {"inputs": "a text", "stream": True, "parameters": {"max_new_tokens": 2, "stop": ["a"], "truncate": 4}}),
        ("/models/model", {"inputs": ["a", "b"], "parameters": {"max_new_tokens": 4, "grammar": {"type": "json", "value": _SCHEMA}}}),
    ]
)  # fmt: skip

# By task: the family of its tiny model comes with tests/families.py.
SEEDS: Mapping[str, tuple[Seed, ...]] = {
    "text_embedding": _encoder(
        Seed("/bentoml/embed", {"texts": ["a text", "another"], "dimensions": 4, "truncation": True}),
        Seed("/v1/embeddings", {"input": ["a text", "another"], "model": "model", "encoding_format": "base64"}),
        Seed("/openai/v1/embeddings", {"input": [[101, 5, 102], [6]], "dimensions": 4, "user": "a"}),
        Seed("/embed", {"inputs": ["a text"], "truncate": True, "normalize": False, "truncation_direction": "right"}),
        Seed("/embed_all", {"inputs": [[101, 5, 102], [6]], "truncation_direction": "Left"}),
        Seed("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}, "parameters": {"truncate": True}}),
        Seed("/tokenize", {"inputs": ["a text", "another"], "add_special_tokens": False}),
        Seed("/decode", {"ids": [[101, 5, 102], [6]], "skip_special_tokens": False}),
        Seed("/v1/score", {"text_1": "a", "text_2": ["b", "c"], "truncate_prompt_tokens": None}),
        Seed("/", {"inputs": ["a text", "another"], "normalize": False, "truncate": True, "dimensions": 4}),
        _hub({"source_sentence": "a", "sentences": ["b", "c"]}),
    ),
    "sparse_embedding": _encoder(
        Seed("/embed_sparse", {"inputs": ["a text"], "truncate": True, "prompt_name": None}),
        _predict("a text", max_active_dims=3),
    ),
    "text_ranking": _encoder(
        Seed("/bentoml/rank", {"query": "a", "texts": ["b", "c"], "function_to_apply": "none"}),
        Seed("/v1/rerank", {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "return_documents": True}),
        Seed("/v2/rerank", {"model": "model", "query": "a", "documents": ["b"], "max_tokens_per_doc": 0}),
        Seed("/v1/score", {"queries": ["a", "b"], "documents": ["c", "d"], "use_activation": False}),
        Seed("/rerank", {"query": "a", "texts": ["b", "c"], "raw_scores": True, "return_text": True}),
        _hub([{"text": "a", "text_pair": "b"}], function_to_apply="none"),
        _predict(["a", "b"]),
    ),
    "sequence_classification": _encoder(
        Seed("/bentoml/classify", {"texts": ["a", "b"], "text_pairs": ["c", "d"], "top_k": 2, "stride": 3}),
        Seed("/predict", {"inputs": [["a"], ["a", "b"]], "raw_scores": True, "truncate": False}),
        _predict("a text", {"text": "a", "text_pair": "b"}, ["a", "b"], top_k=2),
        _predict("a text " * 200, stride=10, window_aggregation="max"),
        Seed("/", {"inputs": "a text", "parameters": {"top_k": 2, "function_to_apply": "sigmoid"}, "options": {"use_cache": False}}),
    ),
    "token_classification": _encoder(
        Seed("/bentoml/classify_tokens", {"texts": ["a text"], "aggregation_strategy": "max", "ignore_labels": []}),
        _predict({"words": ["a", "few", "words"]}, "a text", aggregation_strategy="simple", ignore_labels=[]),
        _infer(return_offsets_mapping=True),
        _hub(["a text", "another"], aggregation_strategy="max", ignore_labels=["O"], stride=3),
    ),
    "fill_mask": _encoder(
        Seed("/bentoml/fill_mask", {"texts": ["a [MASK]."], "top_k": 2, "truncation_side": "left"}),
        _predict("a [MASK].", "[MASK] and [MASK]", top_k=2),
        _predict("a [MASK].", targets=["the", "a"]),
        _hub("a [MASK].", targets=["the", "a"], top_k=2),
        Seed("/v2/models/model/infer", {"inputs": [{**_TENSOR, "data": ["a [MASK].", "b"]}], "outputs": [{"name": "logits"}]}),
    ),
    "question_answering": _encoder(
        Seed("/bentoml/answer", {"questions": ["who?"], "contexts": ["it was me " * 20], "top_k": 2}),
        _predict({"question": "who?", "context": "it was me " * 20}, ["who?", "me"], top_k=2, max_answer_len=4, stride=5),
        Seed("/v2/models/model/infer", {"inputs": [{**_TENSOR, "shape": [1, 2]}]}),
        _hub({"question": "who?", "context": "it was me " * 20}, top_k=2, max_answer_len=4, doc_stride=5, align_to_words=False),
    ),
    "zero_shot_classification": _encoder(
        Seed("/bentoml/classify_zero_shot", {"texts": ["a text"], "candidate_labels": ["a", "b"], "multi_label": True}),
        _predict("a text", candidate_labels=["a", "b"], hypothesis_template="It is {}.", multi_label=True),
        _infer(candidate_labels="a,b"),
        _hub(["a text"], candidate_labels=["a", "b"], hypothesis_template="It is {}.", multi_label=True),
    ),
    "text_generation": _GENERATOR,
}  # fmt: skip
