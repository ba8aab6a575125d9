from __future__ import annotations

import logging
import resource

import pytest

from protocol.http.connections.descriptors import reserve_descriptors

INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "raised", "connections"),
    [
        (1024, 524288, 4096, 65536, 4096),
        (1024, 4096, 4096, 4096, 1920),
        (1024, 1024, 4096, None, 384),
        (100, 100, 4096, None, 25),
        (1024, INFINITY, 100_000, 200_256, 100_000),
        (1_000_000, 1_000_000, 4096, None, 4096),
        (INFINITY, INFINITY, 4096, None, 4096),
    ],
)
def test_limits(
    soft: int, hard: int, wanted: int, raised: int | None, connections: int,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    with caplog.at_level(logging.WARNING):
        assert reserve_descriptors(wanted) == connections
    assert set_to == ([] if raised is None else [(raised, hard)])
    assert len(caplog.messages) == (connections < wanted)
