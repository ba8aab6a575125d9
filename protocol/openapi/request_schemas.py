"""Schemas of the bodies that this server parses itself, by the types that parse them, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from protocol.kserve_v1.routes import PredictRequest
from protocol.open_inference.repository import IndexRequest
from protocol.open_inference.rest import InferRequest
from protocol.openai.chats import ChatRequest
from protocol.openai.completions import CompletionRequest
from protocol.openai.embeddings import EmbeddingRequest
from protocol.openai.parameters import MEANINGS
from protocol.openai.ranking import SIDES, RerankRequest, ScoreRequest
from protocol.openai.responses import ResponsesRequest
from protocol.openai.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from protocol.openapi.schemas import BOOLEAN, STRING, Schema, event_schema, or_null, reference
from protocol.tei.routes import TeiEmbedRequest, TeiPredictRequest, TeiRerankRequest
from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.request_options import OPTION_FLAGS
from runners.core.runner import Runner
from runners.core.sampling_parameters import PROTOCOL_PARAMETERS, SamplingParameters

_REFERENCE = "#/components/schemas/{name}"
# Each field of these has its meaning in one table.
_GENERATION = (CompletionRequest, ChatRequest, ResponsesRequest, SamplingParameters)


def request_schemas(runner: Runner) -> dict[str, Schema]:
    """Of all bodies, and of the `parameters` that the model takes."""
    types = (
        PredictRequest, InferRequest, IndexRequest, *_GENERATION, EmbeddingRequest, RerankRequest, ScoreRequest,
        TeiEmbedRequest, TeiPredictRequest, TeiRerankRequest, TokenizeTextRequest, TokenizeChatRequest,
        DetokenizeRequest,
    )  # fmt: skip
    _, schemas = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    for kind in _GENERATION:
        for name, schema in schemas[kind.__name__]["properties"].items():
            schema["description"] = MEANINGS[name]
    schemas["TokenizeRequest"] = {"anyOf": [reference("TokenizeTextRequest"), reference("TokenizeChatRequest")]}
    sampling = schemas["SamplingParameters"]
    sampling["properties"] |= {name: {} for name in sorted(PROTOCOL_PARAMETERS)}
    answers, definitions = _answer_schemas(runner.supported_options.names)
    schemas |= definitions
    options = {"type": "object", "properties": dict.fromkeys(OPTION_FLAGS, BOOLEAN) | answers}
    schemas["Parameters"] = options if runner.generator is None else sampling
    predict = schemas["PredictRequest"]
    predict["properties"]["parameters"] = or_null(reference("Parameters"))
    predict["anyOf"] = [{"required": ["inputs"]}, {"required": ["instances"]}]
    schemas["ScoreRequest"]["anyOf"] = [{"required": [*names]} for names in SIDES]
    instance = schemas["Instance"]
    no_pair = {"properties": {"text_pair": {"type": "null"}}}
    instance["oneOf"] = [
        {"required": ["text"], "not": {"anyOf": [{"required": ["question"]}, {"required": ["context"]}]}},
        {"required": ["words"], "not": {"anyOf": [{"required": ["question"]}, {"required": ["context"]}]}, **no_pair},
        {"required": ["question", "context"], **no_pair},
    ]
    schemas["PredictEvent"] = event_schema(reference("PredictRequest"))
    binary = {"type": "object", "properties": {"binary_data_output": BOOLEAN}}
    schemas["InferRequest"]["properties"]["parameters"] = or_null({"allOf": [reference("Parameters"), binary]})
    generate = {
        "text_input": STRING,
        "id": {"description": "comes back if it is a string"},
        "parameters": or_null(reference("SamplingParameters")),
        **sampling["properties"],
    }
    schemas["GenerateRequest"] = {
        "description": "A body of `generate`; `parameters` wins over what stands beside it.",
        "type": "object", "properties": generate, "required": ["text_input"], "additionalProperties": False,
    }  # fmt: skip
    return schemas


def _answer_schemas(names: Collection[str]) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """The options of answers by name, and what their schemas refer to."""
    template = _REFERENCE.format(name="{model}")
    answers, readings = (kind.model_json_schema(ref_template=template) for kind in (AnswerOptions, OverflowOptions))
    schema = {key: answers[key] | readings[key] for key in ("properties", "$defs")}
    # A comma list does for a list: parameters of tensors have none.
    lists = {
        name
        for name, each in schema["properties"].items()
        if any(one.get("type") == "array" for one in each.get("anyOf", [each]))
    }
    properties = {
        name: {"anyOf": [each, STRING]} if name in lists else each for name, each in schema["properties"].items()
    }
    return {name: properties[name] for name in sorted(names)}, schema["$defs"]
