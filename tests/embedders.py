"""Embedders that sentence-transformers saves, and what this server makes of texts with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.texts import docstrings
from tests.conftest import Serve

TEXTS = ["Hello world", "x", *docstrings()[:20:5], "a long one " * 300]


def embed(serve: Serve, folder: Path, texts: list[str] = TEXTS, **arguments: Any) -> Any:
    response = serve(model_dir=folder, **arguments).client.post("/v1/models/model:predict", json={"instances": texts})
    assert response.status_code == 200, response.text
    return np.array(response.json()["predictions"])


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; a value of None takes the key away."""
    written = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))
