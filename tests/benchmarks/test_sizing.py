from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.models import make_sized_model
from benchmarks.sizing import MARK, PAGE, Sizing, count_parameters, main, make_table, write_page

FOUND = Sizing("BERT-base", 109_483_778, 812.4, 902.6, 33.21, 950.4, 1310.7)


def test_table() -> None:
    lines = make_table("a machine", [FOUND], "float32").splitlines()
    assert lines[0] == "a machine"
    assert lines[-1] == "| BERT-base | 109 million | 812 MB | 903 MB | 33.2 | 950 ms | 1311 ms |"
    assert len({line.count("|") for line in lines[-3:]}) == 1


def test_parameters(tmp_path: Path) -> None:
    assert count_parameters(make_sized_model("BERT-tiny", tmp_path)) == 4_386_178


def test_the_page_has_a_place_for_the_table(tmp_path: Path) -> None:
    assert PAGE.read_text(encoding="utf-8").count(MARK) == 1
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{MARK}\nold\n")
    write_page(page, "new\n")
    assert page.read_text() == f"# Title\n\n{MARK}\nnew\n"
    page.write_text("# Title\n")
    with pytest.raises(ValueError, match="has no line"):
        write_page(page, "new\n")


@pytest.mark.slow
def test_a_small_model_is_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(MARK)
    main(["--sizes", "BERT-tiny", "--seconds", "1", "--write"], page)
    [row] = re.findall(
        r"^\| BERT-tiny \| 4 million \| (\d+) MB \| (\d+) MB \| ([\d.]+) \|", page.read_text(), re.MULTILINE
    )
    ready, under_load, texts_a_second = map(float, row)
    assert 100 < ready < 5000
    assert 100 < under_load < 5000
    assert texts_a_second > 1
