"""The table of paths against what is derived from it."""

from __future__ import annotations

import pytest

from protocol.context import make_context
from protocol.openai.call_table import CALLS
from protocol.openai.openapi import describe
from protocol.openai_paths import AT_ROOT, OPENAI_PATHS, changes_models, is_for_clients
from protocol.openapi.document import OpenApiDocument
from runners.core.arguments import Arguments
from runners.core.task import GENERATION
from runners.hosting.selection import create_runner
from tests.conftest import ModelFolder
from tests.served import models_of


@pytest.mark.parametrize("path", OPENAI_PATHS)
def test_a_path_is_answered_here_for_some_task_or_by_vllm_alone(path: str) -> None:
    entry = OPENAI_PATHS[path]
    assert bool(entry.tasks) == (entry.call in CALLS)
    # Whether a generator that is not loaded answers a path does not depend on its task.
    assert entry.tasks.isdisjoint(GENERATION) or entry.tasks >= GENERATION


def test_calls_of_one_name_are_one_call() -> None:
    for name in {entry.call for entry in OPENAI_PATHS.values()}:
        assert len({entry.tasks for entry in OPENAI_PATHS.values() if entry.call == name}) == 1


def test_every_call_has_a_path_and_its_schemas(model_folder: ModelFolder) -> None:
    assert {*CALLS} <= {entry.call for entry in OPENAI_PATHS.values()}
    arguments = Arguments(model_dir=str(model_folder("bert", "text_embedding")))
    document = OpenApiDocument(make_context(models_of(create_runner(arguments)), arguments, "/openai"))
    describe(document)
    assert {name for call in CALLS.values() for name in (call.request, call.response)} <= {*document.schemas}


def test_the_root_has_vllms_paths_for_clients() -> None:
    assert {*AT_ROOT} == {path for path in OPENAI_PATHS if is_for_clients(path)}


@pytest.mark.parametrize(
    ("path", "for_clients"),
    [
        ("/v1/chat/completions", True), ("/v1/chat/completions/render", True), ("/v1/models/a", True),
        ("/v1/audio/transcriptions", True), ("/rerank", True), ("/tokenize", True), ("/v1/load_lora_adapter", False),
        ("/v1/unload_lora_adapter", False), ("/v1/pause", False), ("/pause", False), ("/sleep", False), ("/v1", False),
        ("/server_info", False),
    ],
)  # fmt: skip
def test_paths_of_vllm(path: str, for_clients: bool) -> None:
    assert is_for_clients(path) == for_clients
    assert changes_models(path) == path.endswith("lora_adapter")
