"""The calls of clouds in the OpenAPI document: those of other protocols, at one path."""

from __future__ import annotations

from protocol.clouds.invocations import FORMS, PIPELINES
from protocol.clouds.sagemaker import INVOCATIONS, TEXT
from protocol.clouds.vertex import VertexRequest, serves_path
from protocol.huggingface.openapi import add_pipelines
from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import json_answer, json_body
from protocol.openapi.schemas import STRING, array_of, object_of, reference

_SAGEMAKER, _VERTEX = "SageMaker", "Vertex AI"


def describe(document: OpenApiDocument) -> None:
    """Add SageMaker's and Vertex AI's paths, with the bodies and answers of the calls that some model serves."""
    document.add_tag(_SAGEMAKER, "The call of SageMaker's containers: the body of another protocol, or a text.")
    _add_invocations(document, INVOCATIONS, _SAGEMAKER)
    operation = document.paths.items[INVOCATIONS]["post"]
    if "requestBody" in operation:
        operation["requestBody"]["content"][TEXT] = {"schema": STRING}
    path = document.context.predict_route
    if path is not None and serves_path(path):
        document.add_tag(_VERTEX, "The call of Vertex AI's containers: instances, or the body of another protocol.")
        _add_invocations(document, path, _VERTEX)
        document.add_types(VertexRequest)
        document.schemas["VertexResponse"] = object_of({"predictions": array_of({})})
        answers, body = {200: json_answer("VertexResponse")}, json_body(reference("VertexRequest"))
        document.paths.add("post", path, _VERTEX, "Predict", answers, document.errors, body)


def _add_invocations(document: OpenApiDocument, path: str, tag: str) -> None:
    """Add the operation of a path for all bodies that clouds pass on."""
    add_pipelines(document, path, tag)
    for source in dict.fromkeys(target.path for targets in FORMS.values() for target in targets):
        if source != PIPELINES.path:
            document.paths.repeat(path, source, tag)
