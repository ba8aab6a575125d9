"""Schemas of a request's `parameters`, which V1 and the Open Inference Protocol share."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from protocol.openapi.schemas import BOOLEAN, STRING, Schema, reference, to_sentence
from protocol.request_parameters import PROTOCOL_PARAMETERS
from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.request_options import OPTION_FLAGS
from runners.core.runner import Runner

_REFERENCE = "#/components/schemas/{model}"


def describe_parameters(runners: Sequence[Runner], sampling: Schema) -> dict[str, Schema]:
    """The schemas of the parameters that some model takes.

    Args:
        sampling: the schema of the sampling parameters, which gets those of the protocols too.
    """
    sampling["properties"] |= {name: {} for name in sorted(PROTOCOL_PARAMETERS)}
    encoders = [runner for runner in runners if runner.generator is None]
    names = {name for runner in encoders for name in runner.supported_options.names}
    options, definitions = _option_schemas(names)
    parameters: Schema = {"type": "object", "properties": dict.fromkeys(OPTION_FLAGS, BOOLEAN) | options}
    if runners and not encoders:
        parameters = sampling
    elif len(encoders) < len(runners):
        parameters = {"anyOf": [parameters, reference("SamplingParameters")]}
    return {**definitions, "SamplingParameters": sampling, "Parameters": parameters}


def _option_schemas(names: Collection[str]) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """The schemas of an encoder's options by name, and the schemas that they refer to."""
    answer, overflow = (kind.model_json_schema(ref_template=_REFERENCE) for kind in (AnswerOptions, OverflowOptions))
    schema = {key: answer[key] | overflow[key] for key in ("properties", "$defs")}
    # A parameter of gRPC cannot be a list, so a string with commas is accepted too.
    lists = {
        name
        for name, option in schema["properties"].items()
        if any(one.get("type") == "array" for one in option.get("anyOf", [option]))
    }
    properties = {
        name: {"anyOf": [option, STRING]} if name in lists else option for name, option in schema["properties"].items()
    }
    for option in schema["properties"].values():
        option["description"] = to_sentence(option["description"])
    return {name: properties[name] for name in sorted(names)}, schema["$defs"]
