"""Chat templates, rendered under limits: a template is a program whose run time depends on a request's messages."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from runners.core.errors import InputError, one_line
from runners.generator.template_sizes import bound_sizes, start_counting

T = TypeVar("T")

# Time limit of a rendering; templates of real models take some ms for a thousand messages.
SECONDS = 2.0
# After these words, an error message of `transformers` repeats text of the request.
_QUOTE_MARKER = "Final message to continue:"


class _RenderTimeoutError(BaseException):
    """Raised inside a template that has run for too long; no filter's `except Exception` catches it."""


class TimedJob(Generic[T]):
    """Python code that runs in one thread, and that another thread can interrupt."""

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
            InputError: the work took too long.
        """
        try:
            try:
                with self._lock:
                    self._thread, self._deadline = threading.get_ident(), time.monotonic() + self._seconds
                return self._work()
            finally:
                self._end()
        except _RenderTimeoutError:
            # The interrupt may have come within `_end`; there is no second one.
            self._end()
            raise InputError(f"the chat template takes longer than {self._seconds:g} seconds") from None

    def interrupt(self) -> float:
        """Raise an error in the work if its time is over.

        Returns:
            Seconds after which to call this again; 0 for never. Before the work begins, that is all of its time.
        """
        with self._lock:
            if self._thread is None:
                return self._seconds
            remaining = self._deadline - time.monotonic()
            if remaining <= 0 and not self._interrupted:
                self._interrupted = True
                _raise_in(self._thread, _RenderTimeoutError)
            return max(0.0, remaining)

    def _end(self) -> None:
        with self._lock:
            if self._thread is not None and self._interrupted:
                # A pending interrupt would otherwise reach other work of this thread.
                _raise_in(self._thread, None)
            self._thread = None


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Set or clear the pending asynchronous exception of a thread."""
    pending = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), pending)


def render_template(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    variables: Mapping[str, Any],
    max_characters: int,
) -> str:
    """Render a chat.

    Args:
        variables: further variables of the template, and options of `transformers`' `render_jinja_template`.
        max_characters: most characters of the rendered text.

    Raises:
        InputError: the template raises an error, or writes too much.
    """
    start_counting()
    try:
        # `transformers` searches the text of its template for names: this one has the text, and is not executed.
        carrier = f"{{% raw %}}{template.replace('endraw', '')}{{% endraw %}}"
        carried: Any = _compile_jinja_template(carrier)
        carried.render = partial(_render_bounded, _compile(template), max_characters)
        conversations: Any = [messages]
        rendered: Any = render_jinja_template(conversations, tools=tools, chat_template=carrier, **variables)  # type: ignore[arg-type]
    except InputError:
        raise
    except Exception as error:
        # Any error of a template counts as an error of its input.
        reason = one_line(error).partition(_QUOTE_MARKER)[0].strip() or type(error).__name__
        raise InputError(f"the chat template refuses the messages: {reason}") from error
    return str(rendered[0][0])


def _render_bounded(template: jinja2.Template, max_characters: int, **variables: Any) -> str:
    pieces = []
    written = 0
    for piece in template.generate(**variables):
        pieces.append(piece)
        written += len(piece)
        if written > max_characters:
            raise InputError(f"the chat template writes more than {max_characters} characters")
    return "".join(pieces)


@lru_cache(maxsize=1)
def _environment() -> SandboxedEnvironment:
    """The environment of `transformers`' templates, with limits of the sizes of texts and lists."""
    environment: SandboxedEnvironment = _compile_jinja_template("").environment
    bound_sizes(environment)
    return environment


@lru_cache(maxsize=16)
def parse_template(template: str) -> nodes.Template:
    """The syntax tree of a template.

    Raises:
        TemplateError: the text is no template.
    """
    return _environment().parse(template)


@lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
    return _environment().from_string(parse_template(template))


@lru_cache(maxsize=16)
def find_variables(template: str) -> frozenset[str]:
    """The names that a template reads and does not set.

    Raises:
        TemplateError: the text is no template.
    """
    return frozenset(jinja2.meta.find_undeclared_variables(parse_template(template)))
