"""What the runners count, for /metrics."""

from __future__ import annotations

from prometheus_client import Counter

TRUNCATED_TEXTS = Counter(
    "runtime_truncated_texts",
    "Texts longer than the model's limit, of which only the beginning was read",
    ["model_name"],
)
