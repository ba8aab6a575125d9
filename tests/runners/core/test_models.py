"""Several models: their names and versions, their readiness, and loads that lose no request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from runners.core.declarations import ModelDeclaration
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


def make(*declarations: ModelDeclaration, **settings: Any) -> Models:
    create: Any = InstantRunner
    return Models(declarations, create, **settings)


async def load_all(models: Models) -> None:
    for model in models:
        if model.is_wanted:
            await models.load_first(model)


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
    await models.load_first(first)
    assert models.ready is any_suffices
    await models.load_first(second)
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
