"""Black box: one started server with several models, which are loaded and unloaded while requests come."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
import tritonclient.http

from tests.conftest import GeneratorFolder, ModelFolder
from tests.families import MINILM
from tests.servers import BENTOML, ServerProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

TEXT = "Maria flew to [MASK]"
Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start("--arg=...", ...)`: a server, which may end at once."""
    servers: list[ServerProcess] = []

    def start(*words: str) -> ServerProcess:
        servers.append(ServerProcess([*BENTOML, "serve", ".", "--port={port}", *words], tmp_path))
        return servers[-1]

    yield start
    for server in servers:
        server.terminate()


@pytest.fixture
def repository(model_folder: ModelFolder, generator_folder: GeneratorFolder, tmp_path: Path) -> Path:
    """Models of different families and tasks: one with two versions, one with arguments, one that is elsewhere."""
    folder = tmp_path / "repository"
    shutil.copytree(model_folder("bert", "sequence_classification"), folder / "topics" / "1")
    shutil.copytree(model_folder("electra", "sequence_classification", num_labels=3), folder / "topics" / "2")
    shutil.copytree(model_folder("distilbert", "token_classification"), folder / "ner")
    (folder / "ner" / "model.yaml").write_text("labels: true\n")
    shutil.copytree(model_folder("albert", "fill_mask"), folder / "mask")
    (folder / "minilm").mkdir()
    (folder / "minilm" / "model.yaml").write_text(f"model_dir: {MINILM}\nload: false\n")
    shutil.copytree(generator_folder("llama"), folder / "chat")
    (folder / "chat" / "model.yaml").write_text("backend: huggingface\n")
    return folder


@pytest.fixture
def server(start: Start, repository: Path) -> ServerProcess:
    server = start(f"--arg=model_repository={repository}", "--arg=enable_repository=true")
    server.wait_until("/v2/health/ready", 200)
    return server


def predict(server: ServerProcess, model: str, text: str = TEXT) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/models/{model}:predict", json={"instances": [text]}, timeout=60)


def change(server: ServerProcess, model: str, verb: str) -> httpx.Response:
    return httpx.post(f"{server.url}/v2/repository/models/{model}/{verb}", timeout=60)


def index(server: ServerProcess) -> dict[tuple[str, str], tuple[str, str]]:
    """The state and the reason of each name and version."""
    listed = httpx.post(f"{server.url}/v2/repository/index").json()
    return {(each["name"], each["version"]): (each["state"], each["reason"]) for each in listed}


def rename_labels(folder: Path, prefix: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {index: f"{prefix}{index}" for index in config["id2label"]}
    config["label2id"] = {label: int(index) for index, label in config["id2label"].items()}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_repository(server: ServerProcess, repository: Path, model_folder: ModelFolder) -> None:
    assert index(server) == {
        ("chat", "1"): ("READY", ""),
        ("mask", "1"): ("READY", ""),
        ("minilm", "1"): ("UNAVAILABLE", "not loaded"),
        ("ner", "1"): ("READY", ""),
        ("topics", "1"): ("READY", ""),
        ("topics", "2"): ("READY", ""),
    }
    client = tritonclient.http.InferenceServerClient(f"localhost:{server.port}", network_timeout=60)
    assert client.get_model_metadata("topics")["versions"] == ["1", "2"]
    assert client.get_model_metadata("ner")["versions"] == ["1"]
    # Version 2 has three classes, version 1 has five.
    body = {
        "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": [TEXT]}],
        "outputs": [{"name": "logits"}],
    }
    shapes = {}
    for version in ("/versions/1", "/versions/2", ""):
        answer = httpx.post(f"{server.url}/v2/models/topics{version}/infer", json=body).json()
        shapes[version] = (answer["model_version"], answer["outputs"][0]["shape"])
    assert shapes == {"/versions/1": ("1", [1, 5]), "/versions/2": ("2", [1, 3]), "": ("2", [1, 3])}

    # A model that is declared, and one that appears while the server runs.
    client.load_model("minilm")
    assert len(predict(server, "minilm").json()["predictions"][0]) == 384
    shutil.copytree(model_folder("roberta", "text_embedding"), repository / "new")
    assert index(server)["new", "1"] == ("UNAVAILABLE", "not loaded")
    assert predict(server, "new").status_code == 503
    client.load_model("new")
    assert predict(server, "new").status_code == 200
    client.unload_model("new")
    assert index(server)["new", "1"] == ("UNAVAILABLE", "unloaded")
    assert httpx.get(f"{server.url}/v2/health/ready").status_code == 200

    # A model that cannot be loaded hurts nobody.
    (repository / "broken").mkdir()
    (repository / "broken" / "config.json").write_text("{")
    refused = change(server, "broken", "load")
    assert refused.status_code == 500
    assert "broken/config.json" in refused.json()["error"]
    assert index(server)["broken", "1"] == ("UNAVAILABLE", refused.json()["error"])
    assert predict(server, "ner").status_code == 200
    # Its arguments are checked as those of a models file.
    (repository / "wrong").mkdir()
    (repository / "wrong" / "model.yaml").write_text("model_dir: /nowhere\ntsak: fill_mask\n")
    refused = change(server, "wrong", "load")
    assert refused.status_code == 500
    assert refused.json()["error"].endswith(
        "wrong/model.yaml:2: unknown argument 'tsak' of model 'wrong': did you mean task?"
    )
    assert len(index(server)) == 8
    client.close()
    # Log lines that do not name the model get its label, the batches of other models do not.
    for model in ("ner, version=1", "topics, version=2", "new, version=1"):
        assert re.search(rf"texts are run in packed batches: .* \(model={model}\)$", server.output, re.MULTILINE), model


def test_openai_and_tei(server: ServerProcess) -> None:
    assert change(server, "minilm", "load").status_code == 200
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        cards = {card.id: card.model_dump() for card in client.models.list()}
        assert [*cards] == ["chat", "mask", "minilm", "ner", "topics"]
        assert (cards["minilm"]["task"], cards["minilm"]["max_model_len"]) == ("text_embedding", 256)
        assert "embeddings" in cards["minilm"]["capabilities"]
        embedded = client.embeddings.create(model="minilm", input=TEXT).data[0].embedding
        completed = client.completions.create(model="chat", prompt=TEXT, max_tokens=3, temperature=0)
        assert (completed.model, completed.usage and completed.usage.completion_tokens) == ("chat", 3)
        with pytest.raises(openai.NotFoundError, match="This server has chat, mask, minilm, ner, topics"):
            client.embeddings.create(model="gpt-4", input=TEXT)
        with pytest.raises(openai.BadRequestError, match="ner does not serve /v1/embeddings"):
            client.embeddings.create(model="ner", input=TEXT)
    assert embedded == pytest.approx(predict(server, "minilm").json()["predictions"][0], abs=1e-6)
    for path in ("/embed", "/embed?model=minilm"):
        answer = httpx.post(server.url + path, json={"inputs": TEXT})
        assert answer.json()[0] == pytest.approx(embedded, abs=1e-6)
    assert httpx.post(f"{server.url}/predict?model=topics", json={"inputs": TEXT}).status_code == 200


def test_changes_under_load_lose_no_request(server: ServerProcess, repository: Path) -> None:
    ended = threading.Event()
    failures: list[httpx.Response] = []
    labels: set[str] = set()

    def ask(model: str) -> int:
        asked = 0
        with httpx.Client(timeout=60) as client:
            while not ended.is_set():
                url = f"{server.url}/v1/models/{model}:predict"
                answer = client.post(url, json={"instances": [TEXT] * (1 + asked % 7)})
                asked += 1
                if answer.status_code != 200:
                    failures.append(answer)
                elif model == "ner":
                    # Each answer is of one model, before its reload or after.
                    found = {
                        token["label"].partition("-")[0] for text in answer.json()["predictions"] for token in text
                    }
                    assert len(found) == 1, found
                    labels.update(found)
        return asked

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(ask, model) for model in ("ner", "ner", "ner", "topics", "mask", "chat")]
        try:
            for turn in range(4):
                rename_labels(repository / "ner", f"turn{turn}-")
                assert change(server, "ner", "load").status_code == 200
                assert change(server, "minilm", "load").status_code == 200
                assert change(server, "minilm", "unload").status_code == 200
        finally:
            ended.set()
        counts = [each.result() for each in asking]
    assert not failures, failures[0].text
    assert min(counts) > 4
    assert labels >= {"turn0", "turn1", "turn2", "turn3"}


def test_unloading_returns_the_memory(server: ServerProcess) -> None:
    [worker] = [each for each in psutil.Process(server.pid).children(recursive=True) if "--worker-id" in each.cmdline()]
    sizes = []
    for _ in range(12):
        assert change(server, "minilm", "load").status_code == 200
        assert predict(server, "minilm").status_code == 200
        assert change(server, "minilm", "unload").status_code == 200
        sizes.append(worker.memory_full_info().uss)
    # The first cycles fill caches that stay.
    assert sizes[-1] < 1.03 * sizes[1], [size // 2**20 for size in sizes]


def test_workers_change_together(start: Start, repository: Path) -> None:
    words = [f"--arg=model_repository={repository}", "--arg=enable_repository=true", "--arg=workers=2"]
    server = start(*words)
    server.wait_until("/v2/health/ready", 200)
    assert change(server, "ner", "unload").status_code == 200
    assert change(server, "minilm", "load").status_code == 200
    statuses = {model: {predict(server, model).status_code for _ in range(20)} for model in ("ner", "minilm", "mask")}
    assert statuses == {"ner": {503}, "minilm": {200}, "mask": {200}}
    # A worker that replaces another has the same models, whatever has been put into the repository.
    (repository / "wrong").mkdir()
    (repository / "wrong" / "model.yaml").write_text("tsak: fill_mask\n")
    shutil.copytree(repository / "mask", repository / "new")
    workers = [each for each in psutil.Process(server.pid).children(recursive=True) if "--worker-id" in each.cmdline()]
    os.kill(workers[0].pid, signal.SIGKILL)
    wait_until(lambda: server.output.count("minilm is ready") == 3, 60)
    statuses = {model: {predict(server, model).status_code for _ in range(20)} for model in ("ner", "minilm")}
    assert statuses == {"ner": {503}, "minilm": {200}}
    assert "new is ready" not in server.output


@pytest.mark.parametrize("policy", ["exit", "serve_others"])
def test_a_model_that_fails_at_the_start(start: Start, model_folder: ModelFolder, tmp_path: Path, policy: str) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    models: list[dict[str, Any]] = [
        {"model_id": "broken", "task": "fill_mask"}, {"name": "ner", "model_dir": str(model_folder("bert", "fill_mask"))}
    ]  # fmt: skip
    (tmp_path / "models.json").write_text(json.dumps({"on_load_failure": policy, "models": models}))
    server = start(f"--arg=models_file={tmp_path}/models.json")
    if policy == "exit":
        assert server.wait_for_exit() == 1
        assert (
            f"error: cannot serve broken ({tmp_path}/models.json:1): {tmp_path}/broken has no weights" in server.output
        )
        return
    server.wait_until("/v2/health/ready", 200)
    state, reason = index(server)["broken", "1"]
    assert state == "UNAVAILABLE"
    assert f"broken is not served: {reason}" in server.output
    assert predict(server, "broken").status_code == 503
    assert predict(server, "ner", "a [MASK]").status_code == 200
