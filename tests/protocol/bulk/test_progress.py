"""What is said of a job that has no bar."""

from __future__ import annotations

import pytest

from protocol.bulk import progress
from protocol.bulk.progress import Progress


@pytest.mark.parametrize(
    ("seconds", "shows_bar", "said"),
    [
        (60.0, True, ["3 rows, 1 of which are answered already", "2 rows in", "1 row has an error instead of"]),
        (0.0, True, ["3 rows, 1", "1 row answered, ", "2 rows answered, ", "2 rows in", "1 row has"]),
        # The answers on the terminal say enough.
        (0.0, False, ["3 rows, 1", "2 rows in", "1 row has"]),
    ],
)
def test_lines(
    seconds: float,
    shows_bar: bool,
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", seconds)
    caplog.set_level("INFO")
    own = Progress()
    own.start(3, 1, shows_bar=shows_bar)
    own.add(1, 0)
    own.add(1, 1)
    own.conclude()
    assert len(caplog.messages) == len(said)
    for message, start in zip(caplog.messages, said, strict=True):
        assert message.startswith(start)
