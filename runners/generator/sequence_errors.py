"""Errors of one sequence, as its caller and the log get them."""

from __future__ import annotations

from runners.core.errors import GenerationFailedError, RunnerError, log_failure, refer_to


def as_runner_error(error: Exception) -> RunnerError:
    """A RunnerError as it is. Any other error is logged without its message, which may repeat a request's text."""
    if isinstance(error, RunnerError):
        return error
    log_failure(error, "an output has failed")
    return GenerationFailedError(
        f"this output has failed: {type(error).__name__}; the server's log says where (reference {refer_to(error)})"
    )
