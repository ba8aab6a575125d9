"""The log of a command, which goes to the standard error."""

from __future__ import annotations

import logging
import os

from runners.core.arguments import Arguments
from runners.core.log_lines import make_json_renderer, make_text_renderer
from runners.hosting.log_output import LogHandler


def configure_log(arguments: Arguments) -> LogHandler:
    """Send the log to the standard error: warnings, and what this command itself says."""
    is_json = arguments.log_format == "json"
    render = make_json_renderer({"pid": os.getpid()}) if is_json else make_text_renderer(lambda: "predict")
    handler = LogHandler(render, 2)
    root = logging.getLogger()
    root.handlers = [handler]
    level = arguments.log_level or "warning"
    # vLLM sets up a log of its own.
    os.environ.setdefault("VLLM_LOGGING_LEVEL", level.upper())
    for name in ("runners", "protocol"):
        logging.getLogger(name).setLevel(level.upper())
    for name in ("predict", "protocol.bulk"):
        logging.getLogger(name).setLevel(logging.INFO if arguments.log_level is None else level.upper())
    return handler
