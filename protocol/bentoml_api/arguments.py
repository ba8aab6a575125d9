"""The arguments of BentoML's methods: their types and schemas, for BentoML's own and for this server's parser.

BentoML knows of an option only the schema: the runner checks its value, by the same rules for all protocols.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, Signature
from types import NoneType
from typing import Annotated, Any, get_args

import msgspec
from msgspec import Meta
from pydantic import Field, TypeAdapter, WithJsonSchema
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict

from protocol.openapi.schemas import Schema, object_of, or_null, to_sentence
from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.sampling_parameters import SamplingParameters

# Another name of `max_tokens`.
_ALIAS = "max_new_tokens"
_BOUNDS = ("ge", "gt", "le", "lt")


# pydantic takes typing's own only from Python 3.12 on.
class ChatMessage(TypedDict):
    """A message of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument of a method.

    Attributes:
        kind: the type of its value for BentoML; None may stand for a value that is not required.
        decoded: the type of its value for this server's parser, where it is another.
    """

    name: str
    kind: Any
    description: str = ""
    is_required: bool = True
    decoded: Any = None

    @property
    def schema(self) -> Schema:
        """The schema of a value, without references."""
        schema = TypeAdapter(self.kind).json_schema()
        inlined = dict(_inline(schema, schema.pop("$defs", {})))
        return {**inlined, "description": self.description} if self.description else inlined


MODEL = Argument("model", str, "The model that answers; needed only if several models can.", is_required=False)


def encoder_options(*names: str) -> list[Argument]:
    """The encoders' options with these names."""
    schemas = _encoder_schemas()
    fields = {**AnswerOptions.model_fields, **OverflowOptions.model_fields}
    return [_option(name, schemas[name], _decoded_type(fields[name])) for name in names]


def _decoded_type(field: FieldInfo) -> Any:
    """The type of an option's value other than None, with its bounds as msgspec knows them."""
    kinds = get_args(field.annotation)
    kind = next(each for each in kinds if each is not NoneType) if NoneType in kinds else field.annotation
    bounds = {name: getattr(each, name) for each in field.metadata for name in _BOUNDS if hasattr(each, name)}
    return Annotated[kind, Meta(**bounds)] if bounds else kind


def sampling_options() -> list[Argument]:
    """All sampling parameters."""
    _, schemas = msgspec.json.schema_components((SamplingParameters,), ref_template="#/$defs/{name}")
    sampling = schemas["SamplingParameters"]["properties"]
    return [
        _option(field.name, dict(_inline(sampling[field.name], schemas)), field.type)
        for field in msgspec.structs.fields(SamplingParameters)
        if field.name != _ALIAS
    ]


def _option(name: str, schema: Schema, decoded: Any) -> Argument:
    return Argument(name, Annotated[Any, WithJsonSchema(schema)], is_required=False, decoded=decoded)


@cache
def _encoder_schemas() -> Mapping[str, Schema]:
    found: dict[str, Schema] = {}
    for kind in (AnswerOptions, OverflowOptions):
        schema = kind.model_json_schema()
        for name, option in schema["properties"].items():
            described = {**option, "description": to_sentence(option["description"])}
            found[name] = dict(_inline(described, schema.get("$defs", {})))
    return found


def sign(arguments: Sequence[Argument], answer: Any) -> Signature:
    """The signature of a method, from which BentoML makes its schema and the types of its calls."""
    parameters = [Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)]
    for argument in arguments:
        kind = argument.kind if argument.is_required else argument.kind | None
        if argument.description:
            kind = Annotated[kind, Field(description=argument.description)]
        default = Parameter.empty if argument.is_required else None
        parameters.append(Parameter(argument.name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind))
    return Signature(parameters, return_annotation=answer)


def create_body_type(name: str, arguments: Sequence[Argument]) -> type[msgspec.Struct]:
    """The type of a call's body, which refuses unknown arguments."""
    kinds = {each.name: each.kind if each.decoded is None else each.decoded for each in arguments}
    fields: list[Any] = [
        (each.name, kinds[each.name]) if each.is_required else (each.name, kinds[each.name] | None, None)
        for each in arguments
    ]
    return msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)


def describe_body(arguments: Sequence[Argument]) -> Schema:
    """The schema of a call's body, for the OpenAPI document."""
    required = {each.name: each.schema for each in arguments if each.is_required}
    optional = {each.name: or_null(each.schema) for each in arguments if not each.is_required}
    return {**object_of(required, optional), "additionalProperties": False}


def _inline(schema: Schema, definitions: Mapping[str, Schema]) -> Iterator[tuple[str, Any]]:
    """The members of a schema, with those of the schemas that it refers to in place of references.

    Titles and defaults are left out, and null as one of several types.
    """
    for key, value in schema.items():
        match key, value:
            case ("title" | "default", _):
                continue
            case ("$ref", str()):
                yield from _inline(definitions[value.rpartition("/")[2]], definitions)
            case ("anyOf", list()):
                kinds = [dict(_inline(each, definitions)) for each in value if each != {"type": "null"}]
                yield from kinds[0].items() if len(kinds) == 1 else [("anyOf", kinds)]
            case ("items" | "additionalProperties", dict()):
                yield key, dict(_inline(value, definitions))
            case ("properties", dict()):
                yield key, {name: dict(_inline(each, definitions)) for name, each in value.items()}
            case _:
                yield key, value
