"""What grpcurl does, which no registry has: call a server by its reflection, knowing its port only."""

from __future__ import annotations

import json
from typing import Any

import grpc
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


def list_services(channel: grpc.Channel) -> list[str]:
    """The names of all services."""
    return sorted(ProtoReflectionDescriptorDatabase(channel).get_services())


def call(channel: grpc.Channel, service: str, method: str, body: dict[str, Any]) -> dict[str, Any]:
    """Call a method with a request in JSON; its answer in JSON, where bytes are base64."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    described = pool.FindServiceByName(service).FindMethodByName(method)
    request, response = (
        message_factory.GetMessageClass(kind) for kind in (described.input_type, described.output_type)
    )
    remote = channel.unary_unary(
        f"/{service}/{method}", request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )
    answer = remote(json_format.ParseDict(body, request(), descriptor_pool=pool), timeout=30)
    found: dict[str, Any] = json.loads(
        json_format.MessageToJson(answer, preserving_proto_field_name=True, descriptor_pool=pool)
    )
    return found
