"""Errors of runners, independent of HTTP; `protocol/http/errors.py` maps each to a status."""

from __future__ import annotations

import contextlib
import logging
import secrets
from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

# Names that an error lists.
_MOST_NAMES = 20


class RunnerError(Exception):
    """Base of the errors of runners; the message may be shown to clients."""


class ArgumentsError(RunnerError):
    """The operator's arguments are wrong: the server does not start."""


class ModelLoadError(RunnerError):
    """The model cannot be loaded: the server stops."""


class NonFiniteModelError(ModelLoadError):
    """The model's weights or scores have NaN or infinity in a data type.

    Attributes:
        found: which of them, and in which data type.
    """

    def __init__(self, found: str, advice: str = "") -> None:
        """
        Args:
            advice: the end of the message, which says what the operator may set.
        """
        super().__init__(found + advice)
        self.found = found


class InputError(RunnerError):
    """The caller's input cannot be served; `param` is the option that causes the error, if one does."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class EmptyInputError(InputError):
    """The request has no text, or an empty one where there must be a character or a token."""


class UnsupportedError(InputError):
    """The request asks for something that vLLM has and this server does not."""

    def __init__(self, what: str, param: str, on_vllm: bool = True, advice: str = "") -> None:
        """
        Args:
            on_vllm: whether OpenAI's API has it where vLLM runs the model.
            advice: what the request may ask for.
        """
        where = ", only by OpenAI's API where vLLM runs the model" if on_vllm else ""
        super().__init__(f"{what} is not supported here{where}{'; ' if advice else ''}{advice}", param)


class LimitExceededError(InputError):
    """The caller's input exceeds a limit of the server."""

    def __init__(self, count: int, what: str, argument: str, limit: int, param: str | None = None) -> None:
        """
        Args:
            count: the amount in the request.
            what: what is counted, as a plural: "texts".
            argument: the argument of the server that sets the limit.
        """
        super().__init__(f"{count} {what} are more than the {limit} that --{argument} allows", param)


class NonFiniteScoresError(RunnerError):
    """The model's scores of a text contain NaN or infinity, so that there is no answer."""


class GenerationFailedError(RunnerError):
    """One output cannot be generated because of a fault of the server; it is logged, and other outputs continue."""


class OverloadedError(RunnerError):
    """Too many requests are running; the caller may try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelNotFoundError(RunnerError):
    """The server has no model of this name; the text is KServe's, whose clients look for it."""

    param = "model"

    def __init__(self, name: str, names: Sequence[str] = ()) -> None:
        """
        Args:
            names: the names that there are.
        """
        known = f" This server has {list_names(names)}." if names else ""
        super().__init__(f"Model with name {name} does not exist.{known}")


class VersionNotFoundError(RunnerError):
    """The model has no such version."""

    def __init__(self, name: str, version: str, versions: Sequence[str]) -> None:
        """
        Args:
            versions: the versions that there are.
        """
        listed = f"version {versions[0]}" if len(versions) == 1 else f"versions {', '.join(versions)}"
        super().__init__(f"Model {name} has no version {version}; it has {listed}.")


class ModelNotReadyError(RunnerError):
    """The model is still loading, or has stopped."""

    @classmethod
    def of_model(cls, name: str) -> ModelNotReadyError:
        """The error with KServe's text, which clients of KServe look for."""
        return cls(f"Model with name {name} is not ready.")

    @classmethod
    def of_shutdown(cls) -> ModelNotReadyError:
        """The error of requests that wait when their model's threads are closed."""
        return cls("the server is shutting down")


class EngineDeadError(RunnerError):
    """The engine that ran the model has died; the server stops."""

    @classmethod
    def of_server(cls) -> EngineDeadError:
        """The error of requests that wait when an engine of this process dies, and of those that come after."""
        return cls("the engine has died: the server stops")


class PredictorError(RunnerError):
    """The predictor (the remote server that runs the model) has failed to answer a batch."""


class PredictorUnavailableError(PredictorError):
    """The predictor is unreachable or not ready; the same batch may succeed later."""


class PredictorTimeoutError(PredictorError):
    """The predictor has not answered in time."""


class PredictorAnswerError(PredictorError):
    """The predictor's answer does not have the tensors of the model."""


class PredictorRefusalError(PredictorError):
    """The predictor refuses the tensors of this batch; it may accept those of a smaller one."""


class OutputClosedError(RunnerError):
    """The reader of the standard output has closed it."""


class UnexpectedError(Exception):
    """An unexpected error in the form that is logged; the message is the type's name."""


def list_names(names: Sequence[str], most: int = _MOST_NAMES) -> str:
    """Names in a message, which leaves out those after the first ones."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def without_message(error: Exception) -> UnexpectedError:
    """The error with its traceback, for the log; its message, or that of its cause, may contain a request's text."""
    return UnexpectedError(type(error).__name__).with_traceback(error.__traceback__)


def refer_to(error: Exception) -> str:
    """The reference number of an error: its line in the log and its clients' answers have the same."""
    reference: str | None = getattr(error, "runtime_reference", None)
    if reference is None:
        reference = secrets.token_hex(4)
        error.runtime_reference = reference  # type: ignore[attr-defined]
    return reference


def log_failure(error: Exception, what: str = "a request failed") -> None:
    """Log an unexpected error with its reference number, once: several requests may fail by the error of one batch."""
    if getattr(error, "runtime_is_logged", False):
        return
    reference = refer_to(error)
    error.runtime_is_logged = True  # type: ignore[attr-defined]
    logger.error(
        "%s: %s (reference %s)", what, type(error).__name__, reference,
        exc_info=without_message(error), extra={"reference": reference},
    )  # fmt: skip


def brief(error: Exception) -> str:
    """The message of a library's error in one line of at most 200 characters."""
    return one_line(error)[:200] or type(error).__name__


def describe_os_error(error: OSError) -> str:
    """The file, if the error names one, and the reason."""
    reason = error.strerror or one_line(error)
    return f"{error.filename}: {reason}" if error.filename else reason


def one_line(error: Exception) -> str:
    """The message of a library's error in one line."""
    return " ".join(str(error).split())


def add_text_position(error: InputError, position: int) -> InputError:
    """The error, of the same kind, with the position of the text in its request."""
    kind = type(error)
    named = kind.__new__(kind, f"text {position} cannot be served: {error}")
    named.param = error.param
    return named


def describe_text_error(position: int, error: Exception) -> Exception:
    """The error of a text for its caller: an InputError gets the text's position, any other error stays as it is."""
    return add_text_position(error, position) if isinstance(error, InputError) else error


@contextlib.contextmanager
def with_text_position(position: int) -> Iterator[None]:
    """Say which text of the request an error is about.

    Raises:
        InputError: the error, with the text's position.
    """
    try:
        yield
    except InputError as error:
        raise add_text_position(error, position) from error
