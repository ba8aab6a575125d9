"""One started server of a model of each task, and visits of its playground in a real browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.browser import Visit, open_browser
from tests.demo_models import FOLDER, make_demo_models
from tests.playground.workbench import Workbench
from tests.servers import ServerProcess, serve_models

# Beside other tests a server may be slow.
expect.set_options(timeout=30_000)

MODELS: dict[str, dict[str, Any]] = {
    "sentiment": {"model_dir": FOLDER / "sentiment"},
    "ner": {"model_dir": FOLDER / "token_classification", "aggregation_strategy": "simple"},
    "bert": {"model_dir": FOLDER / "fill_mask"},
    "qa": {"model_dir": FOLDER / "question_answering"},
    "nli": {"model_dir": FOLDER / "zero_shot_classification"},
    "embed": {"model_dir": FOLDER / "minilm"},
    "rerank": {"model_dir": FOLDER / "text_ranking"},
    "splade": {"model_dir": FOLDER / "fill_mask", "task": "sparse_embedding"},
    "translator": {"model_dir": FOLDER / "translator"},
    "chat": {"model_dir": FOLDER / "smollm", "max_length": 2048, "backend": "huggingface"},
}

# Each model with each of its views, or "" for its only one; test_views.py tells whether one is missing.
VIEWS = [
    ("sentiment", ""),
    ("ner", ""),
    ("bert", ""),
    ("qa", ""),
    ("nli", "zero-shot"),
    ("nli", "classification"),
    ("embed", "similarity"),
    ("embed", "rerank"),
    ("rerank", "rerank"),
    ("rerank", "classification"),
    ("splade", ""),
    ("translator", ""),
    ("chat", "chat"),
    ("chat", "completion"),
]

OpenWorkbench = Callable[..., Workbench]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """It serves a model of each task, under the names of `MODELS`."""
    make_demo_models(model["model_dir"].name for model in MODELS.values())
    with serve_models(tmp_path_factory.mktemp("home"), MODELS) as server:
        yield server


# Of a module, because no other event loop can run while it is open.
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def workbenches(browser: Browser) -> Iterator[OpenWorkbench]:
    """New visitors of a server's playground, at its own URL or a proxy's: `workbenches(server, viewport=...)`.

    At the end of the test none may have noted a fault that the test did not expect.
    """
    opened: list[Visit] = []

    def visit(server: ServerProcess, path: str = "/playground", *, url: str = "", **options: Any) -> Workbench:
        opened.append(Visit(browser, url or server.url, **options))
        return Workbench(opened[-1], path)

    yield visit
    faults = [fault for visit in opened for fault in visit.faults]
    for each in opened:
        each.context.close()
    assert faults == []
