from __future__ import annotations

import pytest

from runners.hosting.life.deaths import classify_death


@pytest.mark.parametrize(
    ("exit_code", "was_frozen", "reason", "description"),
    [
        (-9, False, "killed", "was ended by SIGKILL, as the kernel does when memory runs out"),
        (-11, False, "killed", "was ended by SIGSEGV"),
        (-63, False, "killed", "was ended by signal 63"),
        (3, False, "failed", "has ended with exit code 3"),
        (0, False, "failed", "has ended with exit code 0"),
        (None, False, "failed", "has ended"),
        (-9, True, "frozen", "was killed because its event loop had stopped"),
    ],
)
def test_the_reason_of_a_death(exit_code: int | None, was_frozen: bool, reason: str, description: str) -> None:
    assert classify_death(exit_code, was_frozen) == (reason, description)
