"""schemathesis against started servers, by the documents of the Open Inference Protocol's owners.

Our own document says more (tests/test_schemathesis.py), so only what these say of answers is checked: the statuses that
they name for errors are others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocol.openapi.operations import EVENTS
from protocol.openapi.schemas import event_of
from tests.conftest import GeneratorFolder, ModelFolder
from tests.servers import ROOT, ServerProcess, serve

# Where they are beside the project.
DOCUMENTS = ROOT.parent / "shared" / "data"
VALUES = {"MODEL_NAME": "model", "MODEL_VERSION": "1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not DOCUMENTS.exists(), reason="the protocols' documents are not beside the project"),
]


@pytest.fixture(params=["open_inference_rest.yaml", "generate_rest.yaml"])
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def server(
    name: str, model_folder: ModelFolder, generator_folder: GeneratorFolder, tmp_path: Path
) -> Iterator[ServerProcess]:
    """An encoder, or a generator with so short a context that its outputs do not take long."""
    arguments = [f"model_dir={model_folder('bert', 'sequence_classification')}"]
    if name == "generate_rest.yaml":
        arguments = [f"model_dir={generator_folder('llama')}", "backend=huggingface", "max_length=32"]
    with serve(tmp_path, *arguments) as server:
        yield server


def test_answers_are_as_documented(name: str, server: ServerProcess, tmp_path: Path) -> None:
    document = tmp_path / "document.json"
    document.write_text(json.dumps(read_document(DOCUMENTS / name)))
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", str(document), f"--url={server.url}"),
        "--checks=not_a_server_error,content_type_conformance,response_schema_conformance",
        *("--max-examples=100", "--seed=1", "--generation-database=none", "--continue-on-failure"),
        *("--request-timeout=60", "--warnings=off", "--no-color"),
    ]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Traceback" not in server.output


def read_document(path: Path) -> dict[str, Any]:
    """The document, as schemathesis reads it, with the names of the model that is served.

    Its paths have a `$` before each variable, and it describes the data of an event in place of the event.
    """
    text = path.read_text(encoding="utf-8").replace("${", "{")
    document: dict[str, Any] = yaml.safe_load(text)
    for item in document["paths"].values():
        operations = [value for value in item.values() if isinstance(value, dict)]
        for answer in [answer for each in operations for answer in each["responses"].values()]:
            if (events := answer.get("content", {}).get(EVENTS)) is not None:
                events["schema"] = event_of(events["schema"])
        for parameters in [item.get("parameters", ()), *(each.get("parameters", ()) for each in operations)]:
            for parameter in parameters:
                parameter["schema"] = {"enum": [VALUES[parameter["name"]]]}
    return document
