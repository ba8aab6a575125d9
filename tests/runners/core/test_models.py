"""Several models: their names and versions, their readiness, and loads that lose no request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runners.core.arguments import Arguments
from runners.core.declarations import ModelDeclaration
from runners.core.engine_arguments import EngineArgument
from runners.core.errors import (
    ArgumentsError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotReadyError,
    VersionNotFoundError,
)
from runners.core.models import Models, find_ready_model
from runners.core.sent_answers import collect_releases, release_all
from tests.instant_models import InstantRunner, declare
from tests.waiting import eventually


def make(*declarations: ModelDeclaration, **settings: Any) -> Models:
    create: Any = InstantRunner
    return Models(declarations, create, **settings)


async def load_all(models: Models) -> None:
    for model in models:
        if model.is_wanted:
            await models.load_at_start(model)


def states(models: Models) -> list[str]:
    return [str(model.state) for model in models]


@pytest.mark.parametrize(
    ("versions", "ascending"),
    [
        (["2", "1"], ["1", "2"]),
        (["10", "9"], ["9", "10"]),
        (["v1.10", "v1.9"], ["v1.9", "v1.10"]),
        (["1.0", "1", "2-beta"], ["1", "1.0", "2-beta"]),
    ],
)
async def test_the_highest_version_answers(versions: Sequence[str], ascending: list[str]) -> None:
    models = make(*(declare("ner", version) for version in versions))
    await load_all(models)
    assert models.versions("ner") == ascending
    assert find_ready_model(models, "ner").version == ascending[-1]
    for version in versions:
        assert find_ready_model(models, "ner", version).version == version


async def test_the_highest_version_that_is_ready_answers(tmp_path: Path) -> None:
    models = make(declare("ner", "1"), declare("ner", "2", load=False))
    await load_all(models)
    assert find_ready_model(models, "ner").version == "1"
    with pytest.raises(ModelNotReadyError):
        find_ready_model(models, "ner", "2")
    await models.load("ner")
    assert find_ready_model(models, "ner").version == "2"


async def test_unknown_names_and_versions() -> None:
    models = make(declare("ner"), declare("embedder", "3"), declare("embedder", "4"))
    with pytest.raises(ModelNotFoundError, match=r"^Model with name x does not exist. This server has ner, embedder.$"):
        models.find("x")
    with pytest.raises(VersionNotFoundError, match=r"^Model ner has no version 2; it has version 1.$"):
        models.find("ner", "2")
    with pytest.raises(VersionNotFoundError, match=r"^Model embedder has no version 1; it has versions 3, 4.$"):
        models.find("embedder", "1")
    for change in (models.load("x"), models.unload("x")):
        with pytest.raises(ModelNotFoundError):
            await change


def test_a_name_and_version_belong_to_one_model() -> None:
    with pytest.raises(ArgumentsError, match="there are two models ner of version 1"):
        make(declare("ner"), declare("ner"))


@pytest.mark.parametrize("any_suffices", [False, True])
async def test_readiness(any_suffices: bool) -> None:
    models = make(declare("a"), declare("b"), declare("c", load=False), is_ready_when_any=any_suffices)
    assert (models.ready, states(models)) == (False, ["LOADING", "LOADING", "UNAVAILABLE"])
    first, second, _ = models
    await models.load_at_start(first)
    assert models.ready is any_suffices
    await models.load_at_start(second)
    assert (models.ready, states(models)) == (True, ["READY", "READY", "UNAVAILABLE"])
    await models.unload("a")
    assert models.ready, "a model that was unloaded is not to be loaded"
    await models.load("c")
    assert (models.ready, states(models)) == (True, ["UNAVAILABLE", "READY", "READY"])
    for name in ("b", "c"):
        await models.unload(name)
    assert not models.ready, "nothing is left that could answer"


async def test_a_server_without_models_is_ready() -> None:
    assert make().ready
    assert make(declare("a", load=False)).ready


async def test_a_failed_load_leaves_the_model_before(tmp_path: Path) -> None:
    models = make(declare("a", folder=tmp_path), declare("b"))
    await load_all(models)
    before = models.find("a").runner
    (tmp_path / "broken").touch()
    with pytest.raises(ModelLoadError, match="a is broken"):
        await models.load("a")
    assert models.find("a").runner is before
    assert (models.ready, states(models)) == (True, ["READY", "READY"])
    await models.unload("a")
    with pytest.raises(ModelLoadError, match="a is broken"):
        await models.load("a")
    assert (models.find("a").state, models.find("a").reason) == ("UNAVAILABLE", "a is broken")
    assert models.ready, "the others serve"


async def test_only_a_changed_folder_is_loaded_again(tmp_path: Path) -> None:
    models = make(declare("a", folder=tmp_path))
    await load_all(models)
    first = models.find("a").runner
    await models.load("a")
    assert models.find("a").runner is first
    (tmp_path / "weights").write_text("new")
    await models.load("a")
    second = models.find("a").runner
    assert second is not first
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "weights").write_text("new")
    await models.load("a")
    assert models.find("a").runner is not second


async def test_requests_end_on_the_model_that_they_have_found(tmp_path: Path) -> None:
    models = make(declare("a", folder=tmp_path))
    await load_all(models)
    releases = collect_releases()
    old = find_ready_model(models, "a")
    (tmp_path / "weights").write_text("new")
    await models.load("a")
    assert find_ready_model(models, "a") is not old
    await asyncio.sleep(0.1)
    assert old.loaded, "a request still holds it"
    release_all(releases)
    await asyncio.sleep(0.1)
    assert not old.loaded


async def test_unload_waits_for_the_requests_that_hold_the_model() -> None:
    models = make(declare("a"))
    await load_all(models)
    releases = collect_releases()
    runner = find_ready_model(models, "a")
    unloading = asyncio.create_task(models.unload("a"))
    await asyncio.sleep(0.1)
    assert (states(models), runner.loaded, unloading.done()) == (["UNLOADING"], True, False)
    with pytest.raises(ModelNotReadyError):
        find_ready_model(models, "a")
    release_all(releases)
    await unloading
    assert (states(models), models.find("a").reason) == (["UNAVAILABLE"], "unloaded")


@pytest.mark.parametrize("verb", ["load", "unload"])
async def test_a_change_goes_on_without_its_caller(verb: str, tmp_path: Path) -> None:
    models = make(declare("a", folder=tmp_path))
    await load_all(models)
    before: Any = models.find("a").runner
    (tmp_path / "weights").write_text("new")
    asking = asyncio.create_task(models.load("a") if verb == "load" else models.unload("a"))
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: not before.loaded)
    after: Any = models.find("a").runner
    assert (after and after.loads) == (1 if verb == "load" else None)
    await models.load("a")
    assert models.find("a").ready


async def test_a_change_while_the_server_starts() -> None:
    models = make(declare("a"), declare("b"))
    models.create_runners()
    first, second = models
    loading = asyncio.create_task(models.load_at_start(first))
    await asyncio.gather(models.load("a"), loading)
    runner: Any = first.runner
    assert runner.loads == 1
    await models.unload("b")
    await models.load_at_start(second)
    assert (second.state, second.reason, second.runner) == ("UNAVAILABLE", "unloaded", None)


async def test_all_names_of_a_model_are_one() -> None:
    alias = EngineArgument("a b", "a test")
    models = make(ModelDeclaration(Arguments(model_name="a", engine={"served_model_name": alias})))
    await load_all(models)
    assert models.names == ["a", "b"]
    await asyncio.gather(models.unload("b"), models.load("a"), models.load("b"))
    assert models.find("a") is models.find("b")
    assert models.find("b").ready
    await models.unload("b")
    assert not models.find("a").ready


async def test_versions_that_a_repository_has_no_more() -> None:
    found = [declare("a", "1"), declare("a", "2")]
    models = make(*found, find_declarations=lambda name: [each for each in found if name in (None, each.name)])
    await load_all(models)
    first: Any = models.find("a", "1").runner
    found[:] = [declare("a", "2"), declare("a", "3")]
    await models.load("a")
    assert models.versions("a") == ["2", "3"]
    await eventually(lambda: not first.loaded)
    found.clear()
    with pytest.raises(ModelLoadError, match="the repository has no model a any more"):
        await models.load("a")
    assert find_ready_model(models, "a").version == "3", "it serves on"
    await models.unload("a")
    assert models.names == []


async def test_a_wrong_declaration_changes_nothing() -> None:
    found = [declare("a"), declare("b")]
    models = make(*found, find_declarations=lambda name: [each for each in found if name in (None, each.name)])
    await load_all(models)
    taken = EngineArgument("b a", "a test")
    found[1] = ModelDeclaration(Arguments(model_name="b", engine={"served_model_name": taken}))
    for change in (models.load("b"), models.refresh()):
        with pytest.raises(ArgumentsError, match="there are two models a of version 1"):
            await change
    assert (models.names, states(models)) == (["a", "b"], ["READY", "READY"])


async def test_a_model_that_dies_says_so() -> None:
    models = make(declare("a"))
    await load_all(models)
    runner: Any = models.find("a").runner
    runner.loaded = False
    assert (models.find("a").state, models.find("a").reason) == ("UNAVAILABLE", "it has died")
    await models.load("a")
    assert models.find("a").ready


async def test_a_replaced_model_that_is_not_unloaded_blocks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: InstantRunner) -> None:
        raise RuntimeError

    models = make(declare("a", folder=tmp_path))
    await load_all(models)
    with monkeypatch.context() as patch:
        patch.setattr(InstantRunner, "unload", fail)
        (tmp_path / "weights").write_text("new")
        await models.load("a")
        await asyncio.sleep(0.1)
    (tmp_path / "weights").write_text("newer")
    await models.load("a")
    assert models.find("a").ready
    assert "a replaced model was not unloaded: RuntimeError" in caplog.text


async def test_models_that_appear_in_a_repository(tmp_path: Path) -> None:
    found = [declare("a")]
    models = make(*found, find_declarations=lambda name: [each for each in found if name in (None, each.name)])
    await load_all(models)
    found.append(declare("b"))
    with pytest.raises(ModelNotFoundError):
        models.find("b")
    await models.refresh()
    assert (states(models), models.ready) == (["READY", "UNAVAILABLE"], True)
    found.append(declare("c"))
    await models.load("c")
    assert states(models) == ["READY", "UNAVAILABLE", "READY"]
    # Another declaration of a model counts as a change of its files.
    before = models.find("c").runner
    found[2] = ModelDeclaration(found[2].arguments.model_copy(update={"labels": True}))
    await models.load("c")
    assert models.find("c").runner is not before
