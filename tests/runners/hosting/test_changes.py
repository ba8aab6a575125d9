"""Several workers load and unload models together: all of them, or none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runners.core.errors import ModelLoadError, ModelNotFoundError
from runners.core.models import Models
from runners.hosting.change_client import ChangeClient
from runners.hosting.change_server import ChangeServer
from tests.instant_models import InstantRunner, declare


@contextlib.asynccontextmanager
async def start_worker(path: Path, folder: Path) -> AsyncIterator[Models]:
    """A worker with two models, in this process; `folder` is that of the first."""
    create: Any = InstantRunner
    models = Models([declare("a", folder=folder), declare("b", load=False)], create)
    client = await ChangeClient.connect(str(path), models)
    running = asyncio.create_task(client.run())
    for model in models:
        if model.is_wanted:
            await models.load_at_start(model)
    try:
        yield models
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "socket"
    ChangeServer(path, [("a", "1"), ("b", "1")], 2)
    return path


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


async def test_all_workers_load_and_unload(path: Path, tmp_path: Path) -> None:
    async with start_worker(path, tmp_path) as first, start_worker(path, tmp_path) as second:
        await first.load("b")
        assert [models.find("b").state for models in (first, second)] == ["READY", "READY"]
        await second.unload("a")
        assert [models.find("a").state for models in (first, second)] == ["UNAVAILABLE", "UNAVAILABLE"]
        async with start_worker(path, tmp_path) as late:
            assert [model.state for model in late] == ["UNAVAILABLE", "READY"], "it begins with the latest state"


async def test_no_worker_loads_what_one_cannot_load(path: Path, tmp_path: Path) -> None:
    folders = [make_folder(tmp_path / name) for name in ("first", "second")]
    async with start_worker(path, folders[0]) as first, start_worker(path, folders[1]) as second:
        runners = [models.find("a").runner for models in (first, second)]
        for folder in folders:
            (folder / "weights").touch()
        (folders[1] / "broken").touch()
        for models in (first, second):
            with pytest.raises(ModelLoadError, match=r"^a is broken$"):
                await models.load("a")
        assert [models.find("a").runner for models in (first, second)] == runners
        (folders[1] / "broken").unlink()
        await second.load("a")
        assert all(models.find("a").runner not in runners for models in (first, second))


async def test_a_name_that_nobody_has(path: Path, tmp_path: Path) -> None:
    async with start_worker(path, tmp_path) as first, start_worker(path, tmp_path):
        for change in (first.load("x"), first.unload("x")):
            with pytest.raises(ModelNotFoundError, match=r"Model with name x does not exist\. This server has a, b\."):
                await change


async def test_changes_at_the_same_time(path: Path, tmp_path: Path) -> None:
    async with start_worker(path, tmp_path) as first, start_worker(path, tmp_path) as second:
        changes = [
            models.load("b") if turn % 2 else models.unload("b") for turn in range(20) for models in (first, second)
        ]
        await asyncio.gather(*changes)
        assert first.find("b").state == second.find("b").state
        await first.load("b")
        assert [models.find("b").state for models in (first, second)] == ["READY", "READY"]


async def test_a_worker_that_ends_does_not_hold_up_the_others(path: Path, tmp_path: Path) -> None:
    async with start_worker(path, tmp_path) as first:
        reader, writer = await asyncio.open_unix_connection(str(path))
        await reader.readline()
        loading = asyncio.create_task(first.load("b"))
        assert b'"do": "stage"' in await reader.readline()
        assert not loading.done(), "the other worker has not answered"
        writer.close()
        await loading
        assert first.find("b").ready


async def test_a_change_while_a_worker_starts_reaches_it(path: Path, tmp_path: Path) -> None:
    async with start_worker(path, tmp_path) as first:
        reader, writer = await asyncio.open_unix_connection(str(path))
        await reader.readline()
        loading = asyncio.create_task(first.load("b"))
        assert b'"do": "stage"' in await reader.readline()
        async with start_worker(path, tmp_path) as late:
            assert not late.find("b").ready
            writer.close()
            await loading
            assert late.find("b").ready


async def test_a_worker_that_replaces_another_loads_no_model_that_was_declared_later(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    ChangeServer(path, [("a", "1")], 1)
    create: Any = InstantRunner
    first = Models([declare("a")], create)
    assert not (await ChangeClient.connect(str(path), first)).is_replacement
    second = Models([declare("a"), declare("a", "2"), declare("b")], create)
    assert (await ChangeClient.connect(str(path), second)).is_replacement
    assert [model.is_wanted for model in second] == [True, False, False]


async def test_changes_after_the_end_of_the_parent_fail_at_once(tmp_path: Path) -> None:
    path = tmp_path / "socket"

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b'{"declared": [["a", "1"]], "loaded": {}, "is_replacement": false}\n')
        writer.close()

    create: Any = InstantRunner
    models = Models([declare("a")], create)
    async with await asyncio.start_unix_server(answer, path):
        client = await ChangeClient.connect(str(path), models)
        await client.run()
        with pytest.raises(ModelLoadError, match="its parent process has ended"):
            await models.load("a")
    with pytest.raises(ModelLoadError, match="the server's parent process does not answer"):
        await ChangeClient.connect(str(tmp_path / "nothing"), models)


async def test_long_names(path: Path, tmp_path: Path) -> None:
    create: Any = InstantRunner
    name = "n" * 100_000
    models = Models([declare(name, load=False)], create)
    client = await ChangeClient.connect(str(path), models)
    running = asyncio.create_task(client.run())
    await models.load(name)
    assert models.find(name).ready
    running.cancel()
