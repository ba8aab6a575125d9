"""The `parameters` of requests of V1 and the Open Inference Protocol: the protocol's own, and the model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A protocol reads these itself; they are no options of the model.
PROTOCOL_PARAMETERS = frozenset(
    {"binary_data_output", "content_type", "headers", "stream", "triton_enable_empty_final_response"}
)


def select_model_parameters(parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters that set options of the model; the protocol's own are left out."""
    return {name: value for name, value in (parameters or {}).items() if name not in PROTOCOL_PARAMETERS}
