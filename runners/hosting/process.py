"""Settings of the process, before it starts threads."""

from __future__ import annotations

import os

from runners.hosting.idle_memory import configure_heaps
from runners.hosting.logs import configure_logging
from runners.hosting.working_folder import enter_launch_folder


def configure_process() -> None:
    """Set the working folder, the log and the heaps of BentoML's parent process or of a worker."""
    enter_launch_folder(os.environ)
    configure_logging()
    configure_heaps()
