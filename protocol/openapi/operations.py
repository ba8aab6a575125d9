"""Operations of the OpenAPI document: parameters, bodies, answers and errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from protocol.http.middleware.authentication import Access
from protocol.http.open_paths import is_open
from protocol.openapi.merging import merge_operations
from protocol.openapi.schemas import ERROR_HEADERS, ERRORS, STRING, Schema, one_of, reference
from runners.core.task import Task

# The statuses of a body that is refused, of a model that is missing, and of any call of a model.
BODY = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
MODEL = (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)
CALL = (*BODY, *MODEL, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR)
# Further statuses of a call that a predictor runs.
PREDICTOR = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
# The statuses of a call that no model serves, whose path names none.
UNSERVED = (HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE)

JSON, EVENTS, BINARY, TEXT = "application/json", "text/event-stream", "application/octet-stream", "text/plain"


@dataclass(frozen=True, slots=True)
class Example:
    """A request and its answer; None where the answer is too long, or differs by model."""

    summary: str
    request: Any
    answer: Any = None


# The examples of one operation, by their names.
Examples = Mapping[str, Example]


@dataclass(frozen=True, slots=True)
class ExampleModel:
    """The model that examples are of.

    Attributes:
        task: None if it is unknown; there are no examples then.
        mask: the mask token of a model that fills masks.
    """

    name: str
    version: str
    task: Task | None
    mask: str


@dataclass(frozen=True, slots=True)
class ErrorForm:
    """The form of a protocol's errors.

    Attributes:
        name: a prefix of the names of its responses; empty for the form of V1 and the Open Inference Protocol.
        schema: the schema of an error's body.
        example: makes an example of the body from a status and a message; None for no example.
    """

    name: str
    schema: Schema
    example: Callable[[HTTPStatus, str], Any] | None = None
    media_type: str = JSON


KSERVE_ERRORS = ErrorForm("", reference("Error"), lambda _, message: {"error": message})


class Paths:
    """The operations, and the errors that they share."""

    def __init__(self, names: Sequence[str], versions: Sequence[str], access: Access) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.responses: dict[str, Any] = {}
        self._access = access
        self._parameters: dict[str, Schema] = {
            "name": {"type": "string", **one_of(*names)},
            "version": {"type": "string", **one_of(*versions)},
        }

    def describe_parameter(self, name: str, schema: Schema) -> None:
        """Set the schema of a parameter in paths that are added from now on."""
        self._parameters[name] = schema

    def add(
        self,
        method: str,
        path: str,
        tag: str,
        summary: str,
        answers: Mapping[int, dict[str, Any]],
        errors: Iterable[HTTPStatus] = (),
        body: dict[str, Any] | None = None,
        headers: Mapping[str, Schema] | None = None,
        query: Mapping[str, Schema] | None = None,
        form: ErrorForm = KSERVE_ERRORS,
        is_change: bool = False,
    ) -> None:
        """Add an operation; at a path that has one of another protocol, the two are merged.

        Args:
            answers: the successful answers by status.
            headers: the schemas of the request's headers by name.
            query: the schemas of the parameters of the request's query by name.
            form: the form of the errors.
            is_change: whether the operation loads or unloads a model, so that it needs an admin's key.
        """
        failures = [*errors, HTTPStatus.METHOD_NOT_ALLOWED]
        responses = {str(status): answer for status, answer in answers.items()}
        responses |= {f"{status:d}": self._error(form, status) for status in failures}
        if is_change:
            responses["403"] = self._error(form, HTTPStatus.FORBIDDEN)
        needs_admin, needs_none = is_change and self._access.asks_admins, is_open(method.upper(), path)
        if needs_admin or (self._access.asks_clients and not needs_none):
            # The client's key is checked before the path is, so this error has KServe's form.
            responses["401"] = self._error(
                KSERVE_ERRORS if self._access.asks_clients else form, HTTPStatus.UNAUTHORIZED
            )
        in_path = [
            _parameter("path", name, self._parameters.get(name, STRING)) for name in re.findall(r"{(\w+)}", path)
        ]
        in_query = [_parameter("query", name, schema) for name, schema in (query or {}).items()]
        in_headers = [_parameter("header", name, schema) for name, schema in (headers or {}).items()]
        operation = {
            "operationId": _name_operation(method, path),
            "tags": [tag],
            "summary": summary,
            "parameters": [*in_path, *in_query, *in_headers],
            "responses": dict(sorted(responses.items())),
            **({} if body is None else {"requestBody": body}),
            **({"security": [{"admin": []}]} if needs_admin else {"security": []} if needs_none else {}),
        }
        self._put(method, path, operation)

    def repeat(self, path: str, source: str, tag: str) -> None:
        """Add the POST of a path at another path too, unless no model answers it."""
        operation = self.items.get(source, {}).get("post", {})
        if "requestBody" in operation:
            self._put("post", path, {**operation, "operationId": _name_operation("post", path), "tags": [tag]})

    def _put(self, method: str, path: str, operation: dict[str, Any]) -> None:
        operations = self.items.setdefault(path, {})
        if method in operations:
            operation = merge_operations(operations[method], operation, self.responses)
        operations[method] = operation

    def _error(self, form: ErrorForm, status: HTTPStatus) -> dict[str, str]:
        name = f"{form.name}{status.name.title().replace('_', '')}"
        self.responses[name] = _describe_error(form, status)
        return {"$ref": f"#/components/responses/{name}"}


def _name_operation(method: str, path: str) -> str:
    return re.sub(r"\W+", "_", f"{method}{path}").strip("_")


def _describe_error(form: ErrorForm, status: HTTPStatus) -> dict[str, Any]:
    description, message = ERRORS[status]
    content = {"schema": form.schema}
    if form.example is not None:
        content["example"] = form.example(status, message)
    response: dict[str, Any] = {"description": description, "content": {form.media_type: content}}
    if status in ERROR_HEADERS:
        header, schema = ERROR_HEADERS[status]
        response["headers"] = {header: {"required": True, "schema": schema}}
    return response


def _parameter(where: str, name: str, schema: Schema) -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def json_answer(name: str, examples: Examples | None = None, description: str = "OK") -> dict[str, Any]:
    """An answer in JSON, with the examples' answers."""
    return {"description": description, "content": {JSON: content_of(reference(name), answers_of(examples or {}))}}


def text_answer(content_type: str = TEXT, description: str = "OK") -> dict[str, Any]:
    return {"description": description, "content": {content_type: {"schema": STRING}}}


def json_body(schema: Schema, examples: Examples | None = None, required: bool = True) -> dict[str, Any]:
    """A body in JSON, with the examples' requests."""
    return {"required": required, "content": {JSON: content_of(schema, requests_of(examples or {}))}}


def content_of(schema: Schema, examples: Mapping[str, Any]) -> dict[str, Any]:
    return {"schema": schema, "examples": examples} if examples else {"schema": schema}


def requests_of(examples: Examples) -> dict[str, Any]:
    return {key: {"summary": each.summary, "value": each.request} for key, each in examples.items()}


def answers_of(examples: Examples) -> dict[str, Any]:
    answered = {key: each for key, each in examples.items() if each.answer is not None}
    return {key: {"summary": each.summary, "value": each.answer} for key, each in answered.items()}
