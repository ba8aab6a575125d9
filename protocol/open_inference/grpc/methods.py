"""The methods of the gRPC server: their messages, and which need a key."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import Message

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from runners.core.probe_paths import HEALTH_METHODS

SERVICE = "inference.GRPCInferenceService"
# Calls that need no key: probes and discovery.
OPEN_CALLS = frozenset(
    {
        *HEALTH_METHODS,
        f"/{SERVICE}/ServerMetadata",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    }
)
# Calls that load or unload a model.
CHANGING_CALLS = frozenset({f"/{SERVICE}/RepositoryModelLoad", f"/{SERVICE}/RepositoryModelUnload"})
# Their messages may be large, and are decoded where they are answered.
_DECODED_LATER = frozenset({"ModelInfer", "ModelStreamInfer"})
_METHODS = messages.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
# By method: the message that it takes; None for a method that decodes its own.
MESSAGES: Mapping[str, type[Message] | None] = {
    f"/{SERVICE}/{method.name}": None if method.name in _DECODED_LATER else getattr(messages, method.input_type.name)
    for method in _METHODS
}
# The calls that this server answers.
KNOWN_CALLS = frozenset({*MESSAGES, *OPEN_CALLS})
