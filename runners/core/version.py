"""The version of this project, for the package's metadata, `--version`, OpenAPI and the servers' metadata."""

from __future__ import annotations

VERSION = "0.2.0"
