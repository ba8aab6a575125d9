"""The gRPC server: the Open Inference Protocol, health checks and reflection."""

from __future__ import annotations

import logging

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from protocol.http.connections.descriptors import reserve_descriptors
from protocol.http.middleware.authentication import Access
from protocol.open_inference.grpc.authentication import RefuseForbidden
from protocol.open_inference.grpc.calls import BoundCalls
from protocol.open_inference.grpc.credentials import read_grpc_credentials
from protocol.open_inference.grpc.health import Health
from protocol.open_inference.grpc.intake import Intake
from protocol.open_inference.grpc.methods import MESSAGES, SERVICE
from protocol.open_inference.grpc.service import InferenceService
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from runners.core.arguments import Arguments
from runners.core.models import Models

logger = logging.getLogger(__name__)

_GRPC_LOGGER = "grpc._cython.cygrpc"


class GrpcServer:
    """The gRPC server of one worker; several workers share the port."""

    def __init__(self, models: Models, arguments: Arguments) -> None:
        self._models = models
        self._arguments = arguments
        self._server: grpc.aio.Server | None = None
        self._health = Health(models)

    async def start(self) -> None:
        """Listen.

        Raises:
            ArgumentsError: the port cannot be used, or the certificate cannot be read.
        """
        arguments = self._arguments
        logging.getLogger(_GRPC_LOGGER).addFilter(_is_fault)
        intake = Intake(arguments)
        access_check = RefuseForbidden(Access(arguments), arguments)
        calls = BoundCalls(access_check, intake, arguments, MESSAGES)
        add_GRPCInferenceServiceServicer_to_server(  # type: ignore[no-untyped-call]
            InferenceService(self._models, arguments, intake), calls
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, calls)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(_create_reflection(), calls)
        calls.check_complete()
        server = grpc.aio.server(options=_server_options(arguments))
        server.add_generic_rpc_handlers([calls])
        address = f"[::]:{arguments.grpc_port}"
        credentials = read_grpc_credentials(arguments)
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
        await server.start()
        self._server = server
        logger.info("gRPC listens on port %d", arguments.grpc_port)

    async def stop(self, seconds: float) -> None:
        """Take no more calls, and return when those under way have ended, after this time at most."""
        if self._server is not None:
            await self._server.stop(seconds)


def _server_options(arguments: Arguments) -> list[tuple[str, int]]:
    return [
        ("grpc.so_reuseport", 1),
        ("grpc.max_send_message_length", arguments.grpc_max_send_message_length),
        ("grpc.max_receive_message_length", arguments.grpc_max_receive_message_length),
        # Clients may ping over idle connections.
        ("grpc.keepalive_permit_without_calls", 1),
        # Without this, gRPC reads more of a message before its turn.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.max_concurrent_streams", arguments.max_concurrent_requests),
        # Otherwise a client within that limit gets UNAVAILABLE while its earlier calls are freed.
        ("grpc.http.overload_protection", 0),
        ("grpc.max_metadata_size", arguments.max_header_bytes),
        ("grpc.max_allowed_incoming_connections", reserve_descriptors(arguments.max_connections)),
        ("grpc.server_handshake_timeout_ms", round(1000 * arguments.header_timeout)),
        ("grpc.http2.settings_timeout", round(1000 * arguments.header_timeout)),
        ("grpc.max_connection_idle_ms", 1000 * arguments.timeout_keep_alive),
        ("grpc.keepalive_time_ms", round(1000 * arguments.answer_timeout)),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ]


def _create_reflection() -> reflection.aio.ReflectionServicer:
    pool = messages.DESCRIPTOR.pool
    for file in (health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        pool.AddSerializedFile(file.serialized_pb)
    return reflection.aio.ReflectionServicer((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), pool)


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether a log record is about more than a client that disconnected before its message or status was sent."""
    error = record.exc_info[1] if record.exc_info else None
    return type(error).__name__ != "ExecuteBatchError"
