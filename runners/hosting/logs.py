"""The log of the server, as part of BentoML's."""

from __future__ import annotations

import logging
import os

from bentoml import server_context

# BentoML's parent and every worker read the arguments, and would repeat the warnings of these loggers.
_ARGUMENT_LOGGERS = tuple(
    f"runners.core.{module}" for module in ("arguments", "argument_sources", "argument_values", "model_repository")
)


def configure_logging() -> None:
    """Send the records of this project to BentoML's handlers, at BentoML's level, or at debug with BENTOML_DEBUG=true.

    `bentoml serve` itself ignores that variable, and its `--verbose` cannot be set in a container.
    """
    bentoml_logger = logging.getLogger("bentoml")
    is_debug = os.environ.get("BENTOML_DEBUG", "").lower() == "true"
    for package in ("runners", "protocol"):
        package_logger = logging.getLogger(package)
        package_logger.handlers = bentoml_logger.handlers
        package_logger.setLevel(logging.DEBUG if is_debug else bentoml_logger.getEffectiveLevel())
        package_logger.propagate = False
    # Only the first worker warns about arguments, so that each warning appears once.
    if server_context.worker_index != 1:
        for name in _ARGUMENT_LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
