"""Errors of one sequence, as its caller and the log get them."""

from __future__ import annotations

import logging

from runners.core.errors import GenerationFailedError, RunnerError, without_message

logger = logging.getLogger(__name__)


def as_runner_error(error: Exception) -> RunnerError:
    """A RunnerError as it is. Any other error is logged without its message, which may repeat a request's text."""
    if isinstance(error, RunnerError):
        return error
    logger.error("an output has failed: %s", type(error).__name__, exc_info=without_message(error))
    return GenerationFailedError(f"this output has failed: {type(error).__name__}; the server's log says where")
