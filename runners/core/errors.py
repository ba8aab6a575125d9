"""What can go wrong in a runner, without a word about HTTP; `protocol/http/errors.py` gives each its status."""

from __future__ import annotations

import contextlib
import logging
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

# What git leaves in place of a large file where its LFS extension is not installed; they have some 130 bytes.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_LFS_BYTES = 1024


class RunnerError(Exception):
    """Base of everything a runner tells its caller; the message is meant to be shown."""


class ArgumentsError(RunnerError):
    """The operator's arguments are wrong: the server does not start."""


class ModelLoadError(RunnerError):
    """The model cannot be loaded: the server stops."""


class InputError(RunnerError):
    """The caller's input cannot be served as it is; `param` names the option that it is about, if it is about one."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnsupportedError(InputError):
    """The request asks for something that vLLM has and this server does not."""

    def __init__(self, what: str, param: str, on_vllm: bool = True) -> None:
        """
        Args:
            on_vllm: whether OpenAI's API has it where vLLM runs the model.
        """
        where = ", only by OpenAI's API where vLLM runs the model" if on_vllm else ""
        super().__init__(f"{what} is not supported here{where}", param)


class LimitExceededError(InputError):
    """The caller's input has more of something than the operator allows."""

    def __init__(self, count: int, what: str, argument: str, limit: int, param: str | None = None) -> None:
        """
        Args:
            count: how many there are.
            what: of what, as a plural: "texts".
            argument: the argument of the server that sets the limit.
        """
        super().__init__(f"{count} {what} are more than the {limit} that --{argument} allows", param)


class NonFiniteScoresError(RunnerError):
    """What the model says of a text is NaN or infinity, of which no answer can be made."""


class GenerationFailedError(RunnerError):
    """One output cannot be generated, by a fault of the server; it is logged, and others go on."""


class OverloadedError(RunnerError):
    """Too much is under way; the caller may try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ModelNotFoundError(RunnerError):
    """The server has no model of this name; the text is KServe's, whose clients look for it."""

    param = "model"

    def __init__(self, name: str) -> None:
        super().__init__(f"Model with name {name} does not exist.")


class ModelNotReadyError(RunnerError):
    """The model is still loading, or has stopped."""


class EngineDeadError(RunnerError):
    """The engine that ran the model has died; the server stops."""


class PredictorError(RunnerError):
    """The predictor, the server that runs the model for this one, has failed a batch."""


class PredictorUnavailableError(PredictorError):
    """It cannot be reached, or takes nothing now; the same may succeed later."""


class PredictorTimeoutError(PredictorError):
    """It did not answer in time."""


class PredictorAnswerError(PredictorError):
    """What it answered is not what the model's answer is made of."""


class PredictorRefusalError(PredictorError):
    """It refuses the tensors of this batch; it may take those of a smaller one."""


class UnexpectedError(Exception):
    """An error that nothing foresaw, as the log has it; the message is the type's name."""


def without_message(error: Exception) -> UnexpectedError:
    """An error with its frames, for the log: its own message, or that of its cause, may repeat a request's text."""
    return UnexpectedError(type(error).__name__).with_traceback(error.__traceback__)


def brief(error: Exception) -> str:
    """An error of another library in one line of at most 200 characters."""
    return one_line(error)[:200] or type(error).__name__


def one_line(error: Exception) -> str:
    """All of an error of another library in one line."""
    return " ".join(str(error).split())


def add_text_position(error: InputError, position: int) -> InputError:
    """The error, of the same kind, with the position of the text in its request."""
    kind = type(error)
    named = kind.__new__(kind, f"text {position} cannot be served: {error}")
    named.param = error.param
    return named


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


@contextlib.contextmanager
def load_errors(model: str) -> Iterator[None]:
    """Whatever goes wrong while a model loads, as a RunnerError of one line.

    Raises:
        ModelLoadError: instead of an error that is no RunnerError.
    """
    try:
        yield
    except RunnerError:
        raise
    except Exception as error:
        logger.debug("loading failed", exc_info=True)
        raise ModelLoadError(f"{model} cannot be loaded: {_explain(Path(model), error)}") from error


def _explain(folder: Path, error: Exception) -> str:
    """Why a model cannot be loaded, in one line; in the words of the library where nothing better is known."""
    if pointers := sorted({*_find_pointers(folder)}):
        names = ", ".join(pointers[:4]) + (", ..." if len(pointers) > 4 else "")
        return f"there are Git LFS pointers in place of {names}; `git lfs pull` fetches the files themselves"
    if isinstance(error, pickle.UnpicklingError):
        # PyTorch's own message advises to run the code.
        found = re.search(r"GLOBAL (\S+)", str(error))
        return "its .bin weights are no pickle of tensors alone" + (f": they call {found[1]}" if found else "")
    return f"{type(error).__name__}: {one_line(error)}"


def _find_pointers(folder: Path) -> Iterator[str]:
    """Names of files that are Git LFS pointers, in a local folder and the folders in it."""
    for pattern in ("*", "*/*"):
        for path in folder.glob(pattern):
            if path.is_file() and path.stat().st_size <= _LFS_BYTES and path.read_bytes().startswith(_LFS_POINTER):
                yield str(path.relative_to(folder))
