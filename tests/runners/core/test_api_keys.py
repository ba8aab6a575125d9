from __future__ import annotations

import logging
import os
import time
from pathlib import Path

import pytest

from runners.core import file_watch
from runners.core.api_keys import KeyFile, check_key_file, digest_key, digest_keys, read_key_file
from runners.core.argument_sources import forget_keys, read_arguments
from runners.core.errors import ArgumentsError


@pytest.fixture(autouse=True)
def checked_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "_CHECK_SECONDS", 0)


def digests(*keys: str) -> tuple[bytes, ...]:
    return tuple(digest_key(key.encode()) for key in keys)


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ("a", ["a"]),
        (" a , b,", ["a", "b"]),
        (("a", "b"), ["a", "b"]),
        (["a,b"], ["a,b"]),
        (123, ["123"]),
        ("a=", ["a="]),
    ],
)
def test_keys_of_an_argument(value: object, keys: list[str]) -> None:
    assert digest_keys(value) == digests(*keys)


_UNSENDABLE = "has a space or a character that is not ASCII, which no Authorization header carries"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("api_key", ",", "argument api_key (from RUNTIME_API_KEY) is wrong: it holds no key"),
        ("api_key", " ", "argument api_key (from RUNTIME_API_KEY) is wrong: it holds no key"),
        ("api_key", "s3cret,s3crèt", f"argument api_key (from RUNTIME_API_KEY) is wrong: key 2 {_UNSENDABLE}"),
        ("admin_api_key", "s3 cret", f"argument admin_api_key (from RUNTIME_ADMIN_API_KEY) is wrong: key 1 {_UNSENDABLE}"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_not_shown(name: str, value: str, message: str) -> None:
    with pytest.raises(ArgumentsError) as raised:
        read_arguments({}, {f"RUNTIME_{name.upper()}": value}, {})
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("environment", "line", "expected"),
    [
        ({"VLLM_API_KEY": "vllm"}, {}, digests("vllm")),
        ({"VLLM_API_KEY": "vllm", "RUNTIME_API_KEY": "own"}, {}, digests("own")),
        ({"VLLM_API_KEY": "vllm", "RUNTIME_ARGS": "--api-key own"}, {}, digests("own")),
        ({"RUNTIME_API_KEY": "own"}, {"api_key": "line"}, digests("line")),
        ({"VLLM_API_KEY": ""}, {}, None),
    ],
)
def test_where_keys_come_from(
    environment: dict[str, str], line: dict[str, str], expected: tuple[bytes, ...] | None
) -> None:
    """vLLM's own variable means the same as its argument, for all protocols."""
    assert read_arguments(line, environment, {}).api_key == expected


def test_a_worker_forgets_keys() -> None:
    environment = {
        "RUNTIME_API_KEY": "a", "RUNTIME_ADMIN_API_KEY": "b", "RUNTIME_ARGS": "--api_key=c", "VLLM_API_KEY": "d",
        "RUNTIME_COMMAND_LINE": '{"api_key": "e"}', "RUNTIME_API_KEY_FILE": "/keys", "HOME": "/root",
    }  # fmt: skip
    forget_keys(environment)
    assert environment == {"RUNTIME_API_KEY_FILE": "/keys", "HOME": "/root"}


# Files


def test_lines_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# comment\n\n first\t\r\n#second\nthird#\n")
    assert read_key_file(file) == digests("first", "third#")


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "it holds no key"),
        (b"# none\n", "it holds no key"),
        (b"good\nb d\n", f"key 2 {_UNSENDABLE}"),
        (b"\xff\xfe", "it is not UTF-8"),
    ],
)
def test_wrong_files(contents: bytes | None, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """At start an error, later one line in the log, and the keys stay."""
    file = tmp_path / "keys"
    file.write_text("old")
    keys = KeyFile(str(file))
    assert keys.digests == digests("old")
    file.unlink()
    if contents is not None:
        file.write_bytes(contents)
    with pytest.raises(ArgumentsError) as raised:
        check_key_file("api_key_file", str(file))
    assert str(raised.value) == f"api_key_file is {file}, which cannot be used: {reason}"
    with caplog.at_level(logging.INFO, "runners"):
        assert [keys.digests for _ in range(3)] == [digests("old")] * 3
        assert caplog.messages == [f"{file} cannot be used, the keys stay as they are: {reason}"]
        file.write_text("new\nnewer")
        assert keys.digests == digests("new", "newer")
        assert caplog.messages[1:] == [f"{file} has changed: 2 keys"]


def test_a_file_is_looked_at_once_a_second_and_read_when_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(file_watch, "_CHECK_SECONDS", 1.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    file = tmp_path / "keys"
    file.write_text("a")
    keys = KeyFile(str(file))
    assert keys.digests == digests("a")
    file.write_text("b")
    os.utime(file, ns=(1, 1))
    now += 0.9
    assert keys.digests == digests("a")
    now += 0.2
    assert keys.digests == digests("b")
