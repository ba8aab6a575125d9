"""The folder that relative paths in arguments start from."""

from __future__ import annotations

import os
from collections.abc import Mapping

# The console script of an installed package sets it.
LAUNCH_FOLDER = "HUGGINGFACE_RUNTIME_FOLDER"


def enter_launch_folder(environment: Mapping[str, str]) -> None:
    """Change to the folder that the console script was started in.

    BentoML runs workers in the folder of service.py, which is the one of all packages after `pip install`.
    """
    if (folder := environment.get(LAUNCH_FOLDER)) is not None:
        os.chdir(folder)
