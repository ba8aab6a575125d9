"""Chat templates under limits: a template is a program, and what it is given decides how long it runs."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

import jinja2
import jinja2.meta
from jinja2.sandbox import SandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from runners.core.errors import InputError, one_line
from runners.generator.template_sizes import bound_sizes, start_counting

T = TypeVar("T")

# Templates of real models take some ms for a thousand messages.
SECONDS = 2.0
# Where `transformers` goes on with a text that may be the prompt's.
_QUOTED_FROM = "Final message to continue:"


class _RenderTimeoutError(BaseException):
    """Raised inside of a template that has run for too long; no filter's `except Exception` keeps it."""


class TimedJob(Generic[T]):
    """Python code that runs in one thread and is interrupted by another."""

    def __init__(self, work: Callable[[], T], seconds: float) -> None:
        self._work = work
        self._seconds = seconds
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._deadline = 0.0
        self._interrupted = False

    def run(self) -> T:
        """Do the work in this thread.

        Raises:
            InputError: it took too long.
        """
        try:
            try:
                with self._lock:
                    self._thread, self._deadline = threading.get_ident(), time.monotonic() + self._seconds
                return self._work()
            finally:
                self._end()
        except _RenderTimeoutError:
            # It may have come within `_end`; there is no second one.
            self._end()
            raise InputError(f"the chat template takes longer than {self._seconds:g} seconds") from None

    def interrupt(self) -> float:
        """Raise an error in the work if its time is over; in how many seconds to look again, 0 for never.

        Before the work has begun it has all of its time left.
        """
        with self._lock:
            if self._thread is None:
                return self._seconds
            left = self._deadline - time.monotonic()
            if left <= 0 and not self._interrupted:
                self._interrupted = True
                _raise_in(self._thread, _RenderTimeoutError)
            return max(0.0, left)

    def _end(self) -> None:
        with self._lock:
            if self._thread is not None and self._interrupted:
                # One that has not come yet would come in other work of this thread.
                _raise_in(self._thread, None)
            self._thread = None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    given = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), given)


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    most: int,
) -> str:
    """The text of a chat.

    Args:
        variables: of the template, and those that `transformers` knows.
        most: characters of the text.

    Raises:
        InputError: the template refuses what it is given, or fails, or writes too much.
    """
    start_counting()
    try:
        # `transformers` looks for names in what it renders: this is the template's text, which is not run.
        carrier = f"{{% raw %}}{template.replace('endraw', '')}{{% endraw %}}"
        carried: Any = _compile_jinja_template(carrier)
        carried.render = partial(_render_bounded, _compile(template), most)
        conversations: Any = [messages]
        rendered: Any = render_jinja_template(conversations, tools=tools, chat_template=carrier, **variables)  # type: ignore[arg-type]
    except InputError:
        raise
    except Exception as error:
        # Whatever goes wrong in a program is about what it was given.
        reason = one_line(error).partition(_QUOTED_FROM)[0].strip() or type(error).__name__
        raise InputError(f"the chat template refuses the messages: {reason}") from error
    return str(rendered[0][0])


def _render_bounded(template: jinja2.Template, most: int, **variables: Any) -> str:
    pieces = []
    written = 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        written += len(piece)
        if written > most:
            raise InputError(f"the chat template writes more than {most} characters")
    return "".join(pieces)


@lru_cache(maxsize=1)
def make_environment() -> SandboxedEnvironment:
    """What `transformers` gives templates, where nothing large can be made of something small."""
    environment: SandboxedEnvironment = _compile_jinja_template("").environment
    bound_sizes(environment)
    return environment


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    return make_environment().from_string(template)


@lru_cache(maxsize=16)
def find_variables(template: str) -> frozenset[str]:
    """The names that a template reads and does not set.

    Raises:
        TemplateError: it is none.
    """
    return frozenset(jinja2.meta.find_undeclared_variables(make_environment().parse(template)))
