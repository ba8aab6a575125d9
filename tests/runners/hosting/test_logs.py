from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from runners.core.log_settings import LogSettings
from runners.hosting.logs import _ARGUMENT_LOGGERS, ServerLog

_PACKAGES = ("runners", "protocol")


@pytest.fixture(autouse=True)
def loggers_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("bentoml", "service", *_PACKAGES, *_ARGUMENT_LOGGERS)]
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    yield
    for logger, (level, handlers, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        # Beside what the attribute says, loggers remember which levels are enabled.
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("bentoml_level", "variable", "asked", "level"),
    [
        (logging.INFO, None, None, logging.INFO),
        (logging.INFO, "false", None, logging.INFO),
        # `bentoml serve` leaves its own level at INFO, whatever this variable says.
        (logging.INFO, "True", None, logging.DEBUG),
        # --quiet and --verbose
        (logging.ERROR, None, None, logging.ERROR),
        (logging.DEBUG, None, None, logging.DEBUG),
        # --log_level wins
        (logging.INFO, "true", "error", logging.ERROR),
        (logging.ERROR, None, "debug", logging.DEBUG),
    ],
)
def test_logs_at_the_level_asked_for(
    monkeypatch: pytest.MonkeyPatch, bentoml_level: int, variable: str | None, asked: str | None, level: int
) -> None:
    logging.getLogger("bentoml").setLevel(bentoml_level)
    monkeypatch.delenv("BENTOML_DEBUG", raising=False)
    if variable is not None:
        monkeypatch.setenv("BENTOML_DEBUG", variable)
    ServerLog().configure(LogSettings(level=asked), serves=False)
    assert {logging.getLogger(name).getEffectiveLevel() for name in _PACKAGES} == {level}
