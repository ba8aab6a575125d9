"""The log of a process of the server: its own records and those of its libraries, in one form on standard output."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType

from bentoml import server_context

from runners.core.access_log import log_latency, make_access_log
from runners.core.arguments import Arguments
from runners.core.errors import without_message
from runners.core.log_lines import Render, make_json_renderer, make_text_renderer, render_end
from runners.core.log_settings import LogSettings
from runners.core.request_record import add_observer
from runners.hosting.log_output import LogHandler, StrayLines, open_output

logger = logging.getLogger(__name__)

_PACKAGES = ("runners", "protocol", "service")
# BentoML's parent and every worker read the arguments, and would repeat the warnings of these loggers.
_ARGUMENT_LOGGERS = tuple(
    f"runners.core.{module}" for module in ("arguments", "argument_sources", "argument_values", "model_repository")
)
# These have handlers of their own, which BentoML has given them.
_WITH_HANDLERS = ("bentoml", "circus", "uvicorn", "uvicorn.error")
# These set up handlers of their own when they are imported.
_SELF_CONFIGURED = ("huggingface_hub", "transformers", "vllm")
_VLLM_CONFIGURATION = Path(__file__).with_name("vllm_logging.json")


class _Adopted(logging.Logger):
    """The logger of a library, whose records this server's handler gets whatever the library sets up."""

    propagate = property(lambda _: True, lambda *_: None)

    def addHandler(self, hdlr: logging.Handler) -> None:  # noqa: N802
        pass


class ServerLog:
    """The log of this process.

    Attributes:
        is_json: whether each line is a JSON object.
    """

    def __init__(self) -> None:
        self.is_json = False
        self._handler: LogHandler | None = None
        self._stray: StrayLines | None = None

    def configure(self, settings: LogSettings, serves: bool) -> None:
        """Set the form and the levels; may be called again once all arguments are read.

        Args:
            serves: whether this is BentoML's parent process of a server or a worker; another one, which builds a Bento,
                keeps BentoML's handlers.
        """
        self.is_json = settings.is_json
        level = _find_level(settings)
        if serves:
            self._take_over(_level_of_libraries(level))
        for package in _PACKAGES:
            package_logger = logging.getLogger(package)
            package_logger.setLevel(level)
            if not serves:
                package_logger.handlers = logging.getLogger("bentoml").handlers
                package_logger.propagate = False
        if serves and settings.level is not None:
            logging.getLogger("bentoml").setLevel(level)
        # Only the first worker warns about arguments, so that each warning appears once.
        if server_context.worker_index != 1:
            for name in _ARGUMENT_LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)

    def observe_requests(self, arguments: Arguments) -> None:
        """In a worker: log requests as the arguments say."""
        if arguments.access_log and self._handler is not None:
            writer, logs_probes = self._handler.writer, logging.getLogger("runners").isEnabledFor(logging.DEBUG)
            add_observer(
                make_access_log(writer.write, _describe_process(), self.is_json, _name_component(), logs_probes)
            )
        if arguments.enable_latency_logging:
            add_observer(log_latency)

    def report_end(self, reason: str) -> None:
        """Say in one line on the standard error why the server ends."""
        sys.stderr.write(render_end(reason, self.is_json))
        sys.stderr.flush()

    def end(self) -> None:
        """Write what waits; the process ends, perhaps by `os._exit`."""
        if self._stray is not None:
            self._stray.end()
        if self._handler is not None:
            self._handler.flush()

    def _take_over(self, level: int) -> None:
        """Send the records of all loggers through one handler.

        Args:
            level: the level of libraries.
        """
        render = make_json_renderer(_describe_process()) if self.is_json else make_text_renderer(_name_component)
        if self._handler is None:
            self._open(render)
        assert self._handler is not None
        self._handler.render = render
        root = logging.getLogger()
        root.handlers = [self._handler]
        root.setLevel(level)
        for name in (*_WITH_HANDLERS, *_PACKAGES):
            taken = logging.getLogger(name)
            taken.handlers, taken.propagate = [], True
            if name not in ("bentoml", *_PACKAGES):
                taken.setLevel(level)
        # The access line says the same, without the query.
        logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
        _adopt(level, self.is_json)
        if self.is_json:
            sys.excepthook = _log_uncaught
            if server_context.worker_index is None and self._stray is None:
                self._stray = StrayLines(self._handler.writer)

    def _open(self, render: Render) -> None:
        self._handler = LogHandler(render, open_output(server_context.worker_index is not None))
        logging.captureWarnings(True)
        threading.excepthook = _log_uncaught_in_thread
        atexit.register(self.end)


server_log = ServerLog()


def create_engine_handler() -> logging.Handler:
    """For vllm_logging.json: the handler of the processes that vLLM starts, which run beside the server's."""
    return LogHandler(make_json_renderer({"pid": os.getpid()}), 1)


def _find_level(settings: LogSettings) -> int:
    """`bentoml serve` itself ignores BENTOML_DEBUG, and its `--verbose` cannot be set in a container."""
    if settings.level is not None:
        return logging.getLevelNamesMapping()[settings.level.upper()]
    if os.environ.get("BENTOML_DEBUG", "").lower() == "true":
        return logging.DEBUG
    return logging.getLogger("bentoml").getEffectiveLevel()


def _level_of_libraries(level: int) -> int:
    """Libraries say little that matters at their info, and may say texts at their debug."""
    return logging.INFO if level <= logging.DEBUG else max(level, logging.WARNING)


def _describe_process() -> dict[str, object]:
    worker = server_context.worker_index
    return {"pid": os.getpid()} if worker is None else {"worker": worker, "pid": os.getpid()}


def _name_component() -> str:
    """This process as BentoML's log names it, such as entry_service:huggingface_runtime:1."""
    parts = (server_context.service_type, server_context.service_name, server_context.worker_index)
    return ":".join(str(part) for part in parts if part)


def _adopt(level: int, is_json: bool) -> None:
    for name in _SELF_CONFIGURED:
        library = logging.getLogger(name)
        library.__class__ = _Adopted
        library.handlers = []
    name = logging.getLevelName(level)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", name.lower())
    os.environ.setdefault("HF_HUB_VERBOSITY", name.lower())
    # vLLM says at its info what others say at their warnings: which kernels it takes, and why.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", name if level > logging.WARNING else "INFO")
    if is_json:
        os.environ.setdefault("VLLM_LOGGING_CONFIG_PATH", str(_VLLM_CONFIGURATION))


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        traceback.print_exception(kind, error, trace)
        return
    logger.critical("uncaught error", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    error = args.exc_value
    if isinstance(error, Exception):
        name = "a thread" if args.thread is None else f"thread {args.thread.name}"
        logger.critical("%s has ended: %s", name, type(error).__name__, exc_info=without_message(error))
