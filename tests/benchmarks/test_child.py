from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import child
from benchmarks.child import start_child

_PROGRAM = """
print("a line of the log")
print("ready", flush=True)
while (word := input()) != "die":
    print(word.upper(), flush=True)
"""


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(child, "_ROOT", tmp_path)
    (tmp_path / "shouting.py").write_text(_PROGRAM)
    return ["shouting"]


def test_answers_line_by_line(words: list[str]) -> None:
    with start_child(words, "it ended") as ask:
        assert [ask("a"), ask("b")] == ["A\n", "B\n"]


@pytest.mark.parametrize("before", [False, True])
def test_a_child_that_dies_ends_the_run(before: bool, words: list[str], tmp_path: Path) -> None:
    if before:
        (tmp_path / "shouting.py").write_text('print("ready")')
    with pytest.raises(SystemExit, match="error: it ended"), start_child(words, "it ended") as ask:
        ask("die")


def test_a_child_that_does_not_start_ends_the_run() -> None:
    with pytest.raises(SystemExit, match="error: it ended"), start_child(["nothing_of_this_name"], "it ended"):
        pass
