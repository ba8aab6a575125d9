from __future__ import annotations

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2_grpc

from protocol.http.middleware.authentication import Access
from protocol.open_inference.grpc.authentication import RefuseForbidden
from protocol.open_inference.grpc.calls import BoundCalls
from protocol.open_inference.grpc.intake import Intake
from runners.core.arguments import Arguments


@pytest.fixture
def calls() -> BoundCalls:
    arguments = Arguments()
    return BoundCalls(RefuseForbidden(Access(arguments), arguments), Intake(arguments), arguments, {})


def test_services_come_with_their_methods(calls: BoundCalls) -> None:
    health_pb2_grpc.add_HealthServicer_to_server(health_pb2_grpc.HealthServicer(), calls)
    calls.check_complete()


def test_old_stubs_name_no_methods(calls: BoundCalls) -> None:
    """Those of gRPC before 1.65 add the generic handler only."""
    methods: dict[str, Any] = {}
    calls.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("a.Service", methods)])
    with pytest.raises(RuntimeError, match=r"gRPC's stubs of a\.Service name no methods"):
        calls.check_complete()
