"""BentoML's own clients, and a service that depends on this one, against started servers."""

from __future__ import annotations

import asyncio
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import bentoml
import httpx
import numpy as np
import pytest
from bentoml.exceptions import BentoMLException
from sentence_transformers import SentenceTransformer
from transformers import pipeline

from protocol.bentoml_api.methods import METHODS
from runners.core.task import Task
from tests.conftest import GeneratorFolder, ModelFolder
from tests.families import MINILM, name_classes
from tests.generators import generate_greedily
from tests.servers import BENTOML, ROOT, ServerProcess

pytestmark = pytest.mark.slow

TEXTS = ["Hello, my dog is cute", "Maria flew to Munich"]
MESSAGES = [{"role": "user", "content": "Hello dog"}]
GREEDY = {"max_tokens": 6, "temperature": 0}
# The arguments of a call of each method.
CALLS: dict[str, dict[str, Any]] = {
    "classify": {"texts": TEXTS, "top_k": 2},
    "classify_tokens": {"texts": TEXTS, "ignore_labels": []},
    "classify_zero_shot": {"texts": TEXTS, "candidate_labels": ["pets", "cities"]},
    "fill_mask": {"texts": ["The [MASK] is [MASK]."], "top_k": 2},
    "answer": {"questions": ["Who flew?"], "contexts": TEXTS[1:]},
    "embed": {"texts": TEXTS},
    "embed_sparse": {"texts": TEXTS, "max_active_dims": 5},
    "rank": {"query": "Where is Maria?", "texts": TEXTS},
    "generate": {"prompt": "Hello my dog", **GREEDY},
    "chat": {"messages": MESSAGES, **GREEDY},
}


@dataclass(frozen=True)
class Models:
    """The folder of the model of each task."""

    folders: dict[Task, Path]

    def check(self, method: str, answer: Any) -> None:
        """Compare an answer with that of `transformers` or sentence-transformers, where these have the same call."""
        call = CALLS[method]
        match method:
            case "classify":
                reference: Any = pipeline("text-classification", model=str(self.folders[Task.SEQUENCE_CLASSIFICATION]))
                for one, expected in zip(answer, reference(call["texts"], top_k=call["top_k"]), strict=True):
                    assert [each["label"] for each in one] == [each["label"] for each in expected]
                    assert [each["score"] for each in one] == pytest.approx(
                        [each["score"] for each in expected], abs=1e-4
                    )
            case "embed":
                assert isinstance(answer, np.ndarray)
                assert answer.dtype == np.float32
                reference = SentenceTransformer(str(self.folders[Task.TEXT_EMBEDDING]), device="cpu")
                np.testing.assert_allclose(answer, reference.encode(call["texts"]), atol=1e-5)
            case "generate" | "chat":
                prompt = call.get("prompt") or call["messages"]
                assert "".join(answer) == generate_greedily(self.folders[Task.TEXT_GENERATION], prompt, 6)


@pytest.fixture(scope="module")
def models(model_folder: ModelFolder, generator_folder: GeneratorFolder) -> Models:
    folders = {
        task: model_folder("bert", task)
        for task in Task
        if task not in (Task.TEXT_EMBEDDING, Task.TEXT_GENERATION, Task.TEXT2TEXT_GENERATION)
    }
    classes = name_classes(["negative", "mixed", "positive"])
    return Models(
        folders
        | {
            Task.SEQUENCE_CLASSIFICATION: model_folder("bert", Task.SEQUENCE_CLASSIFICATION, **classes),
            Task.TEXT_EMBEDDING: MINILM,
            Task.TEXT_GENERATION: generator_folder("llama"),
        }
    )


@pytest.fixture(scope="module")
def server(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server of all tasks, which asks for a key."""
    home = tmp_path_factory.mktemp("bentoml-clients")
    declared = [
        {"name": task, "model_dir": str(folder), "task": task, "backend": "huggingface"}
        for task, folder in models.folders.items()
    ]
    (home / "models.json").write_text(
        json.dumps({"models": declared, "api_key": "secret", "max_text_characters": 1000})
    )
    command = [*BENTOML, "serve", ".", "--port={port}", f"--arg=models_file={home}/models.json"]
    started = ServerProcess(command, home)
    try:
        yield started
    finally:
        assert started.terminate() == 0


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[bentoml.SyncHTTPClient]:
    """It waits until the server is ready, and learns then which methods there are."""
    with bentoml.SyncHTTPClient(server.url, token="secret", server_ready_timeout=120) as connected:
        yield connected


@pytest.mark.parametrize("method", METHODS)
def test_sync_client(method: str, client: bentoml.SyncHTTPClient, models: Models) -> None:
    assert client.is_ready()
    answer = getattr(client, method)(**CALLS[method])
    if method in ("generate", "chat"):
        answer = list(answer)
        assert len(answer) > 1, "the pieces come one by one"
    models.check(method, answer)


@pytest.mark.parametrize("method", METHODS)
async def test_async_client(method: str, server: ServerProcess, client: bentoml.SyncHTTPClient, models: Models) -> None:
    async with bentoml.AsyncHTTPClient(server.url, token="secret") as connected:
        answer: Any = getattr(connected, method)(**CALLS[method])
        if method in ("generate", "chat"):
            models.check(method, [piece async for piece in answer])
            return
        found = await answer
        models.check(method, found)
        np.testing.assert_equal(found, client.call(method, **CALLS[method]))


@pytest.mark.parametrize(
    ("method", "arguments", "status", "message"),
    [
        ("embed", {"texts": []}, 400, "texts is empty; give at least one"),
        ("embed", {"texts": ["a"], "dimensions": 0}, 400, "Expected `int` >= 1 - at `$.dimensions`"),
        ("embed", {"texts": ["a"], "model": "nothing"}, 404, "Model with name nothing does not exist."),
        ("embed", {"texts": ["a" * 1001]}, 413, "1001 characters of a text are more than the 1000"),
    ],
)
def test_errors(
    method: str, arguments: dict[str, Any], status: int, message: str, client: bentoml.SyncHTTPClient
) -> None:
    with pytest.raises(BentoMLException) as error:
        client.call(method, **arguments)
    assert error.value.error_code == HTTPStatus(status)
    assert message in str(error.value)


def test_a_client_without_the_key(server: ServerProcess, client: bentoml.SyncHTTPClient) -> None:
    with (
        bentoml.SyncHTTPClient(server.url) as other,
        pytest.raises(BentoMLException, match="this server asks for a key") as error,
    ):
        other.embed(texts=["a"])
    assert error.value.error_code == HTTPStatus.UNAUTHORIZED


GATEWAY = """
import json
import bentoml
from service import Runtime

async def collect(runtime, calls):
    embedded = await runtime.embed(**calls["embed"])
    return {
        "classify": [[each.model_dump() for each in one] for one in await runtime.classify(**calls["classify"])],
        "embed": [str(embedded.dtype), embedded.tolist()],
        "generate": [piece async for piece in runtime.generate(**calls["generate"])],
    }

@bentoml.service
class Gateway:
    runtime = bentoml.depends(Runtime)

    @bentoml.api
    async def everything(self, calls: dict) -> dict:
        return await collect(self.runtime, calls)

    @bentoml.api
    async def label(self, text: str) -> str:
        [[best]] = await self.runtime.classify(texts=[text])
        return best.label

    @bentoml.api
    async def fails(self) -> list:
        try:
            await self.runtime.rank(query="a", texts=["b"])
        except bentoml.exceptions.BentoMLException as error:
            return [error.error_code, str(error)]
        return []
"""
REMOTE = """
import bentoml

@bentoml.service
class Remote:
    runtime = bentoml.depends(url="{url}")

    @bentoml.api
    async def vectors(self, texts: list[str]) -> list:
        return (await self.runtime.to_async.embed(texts=texts)).tolist()

    @bentoml.api
    def pieces(self, prompt: str) -> list[str]:
        return list(self.runtime.to_sync.generate(prompt=prompt, max_tokens=6, temperature=0))
"""


def start_service(name: str, source: str, folder: Path, environment: dict[str, str]) -> ServerProcess:
    """A server of a service of its own, in its own folder."""
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    command = [*BENTOML, "serve", f"{name}:{name.title()}", "--port={port}"]
    return ServerProcess(command, folder, {"PYTHONPATH": str(ROOT), **environment}, folder)


def test_depends(models: Models, tmp_path: Path) -> None:
    """BentoML runs both in one server, and calls this one over a socket of its own, with pickles."""
    tasks = [Task.SEQUENCE_CLASSIFICATION, Task.TEXT_EMBEDDING, Task.TEXT_GENERATION]
    declared = [{"name": task, "model_dir": str(models.folders[task]), "backend": "huggingface"} for task in tasks]
    (tmp_path / "models.json").write_text(json.dumps({"models": declared}))
    gateway = start_service("gateway", GATEWAY, tmp_path, {"RUNTIME_MODELS_FILE": str(tmp_path / "models.json")})
    try:
        gateway.wait_until("/readyz", 200)
        post = httpx.Client(base_url=gateway.url, timeout=60).post
        found = post("/everything", json={"calls": CALLS}).raise_for_status().json()
        models.check("classify", found["classify"])
        dtype, vectors = found["embed"]
        models.check("embed", np.array(vectors, dtype=dtype))
        models.check("generate", found["generate"])
        code, message = post("/fails").raise_for_status().json()
        assert code == 400
        assert "no model of this server serves /bentoml/rank; it has sequence_classification" in message

        async def call_often() -> list[int]:
            async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as caller:
                statuses = []
                for _ in range(20):
                    calls = (caller.post("/label", json={"text": TEXTS[0]}) for _ in range(16))
                    statuses += [answer.status_code for answer in await asyncio.gather(*calls)]
                return statuses

        # By itself, the proxy breaks the calls under way each time that it has made 100.
        assert {*asyncio.run(call_often())} == {200}
        # Clients do not reach this service's own paths.
        assert httpx.get(f"{gateway.url}/v1/models").status_code == 404
        [worker] = [each for each in gateway.worker_environments() if "HUGGINGFACE_RUNTIME_CHANNEL" in each]
        assert worker
    finally:
        assert gateway.terminate() == 0


def test_depends_on_a_url(server: ServerProcess, models: Models, tmp_path: Path) -> None:
    """It has nothing of this project, and learns the methods from the server; the key is that of BentoML's proxies."""
    source = REMOTE.replace("{url}", server.url)
    remote = start_service("remote", source, tmp_path, {"PYTHONPATH": "", "BENTO_CLOUD_API_KEY": "secret"})
    try:
        remote.wait_until("/readyz", 200)
        post = httpx.Client(base_url=remote.url, timeout=60).post
        vectors = post("/vectors", json={"texts": TEXTS}).raise_for_status().json()
        models.check("embed", np.array(vectors, dtype=np.float32))
        models.check("generate", post("/pieces", json={"prompt": "Hello my dog"}).raise_for_status().json())
    finally:
        assert remote.terminate() == 0


def test_the_schema_has_the_methods_of_the_served_models(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("bert", Task.FILL_MASK)
    command = [*BENTOML, "serve", ".", "--port={port}", f"--arg=model_dir={folder}"]
    started = ServerProcess(command, tmp_path)
    try:
        started.wait_until("/v2/health/ready", 200)
        assert [each["name"] for each in httpx.get(f"{started.url}/schema.json").json()["routes"]] == ["fill_mask"]
        with bentoml.SyncHTTPClient(started.url) as connected:
            assert [*connected.endpoints] == ["fill_mask"]
    finally:
        assert started.terminate() == 0
