from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bulk import Work, make_table, measure_predict
from tests.conftest import ModelFolder

TABLE = """\
| | texts/s | texts/s with the start | CPU of a text |
|---|--:|--:|--:|
| server | 100.0 | 66.7 | 20.00 ms |
| predict | 125.0 | 83.3 | 18.00 ms |
| predict --ray --workers=1 | 100.0 | 50.0 |  |
| predict --ray --workers=2 | 111.1 | 52.6 |  |

- predict / server: 1.25, with the start 1.25
- predict --ray --workers=1 / server: 1.00, with the start 0.75
- predict --ray --workers=2 / server: 1.11, with the start 0.79
- predict --ray --workers=2 / predict --ray --workers=1: 1.11, with the start 1.05
"""


def test_the_table_has_the_ratios_of_texts_a_second() -> None:
    measured = {
        "server": [Work(10.0, 15.0, 20.0)],
        "predict": [Work(8.0, 12.0, 18.0)],
        "predict --ray --workers=1": [Work(10.0, 20.0, None)],
        "predict --ray --workers=2": [Work(9.0, 19.0, None)],
    }
    assert make_table(measured, 1000) == TABLE


@pytest.mark.slow
def test_the_work_of_predict_is_a_part_of_its_time(model_folder: ModelFolder, tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text('{"text": "one"}\n' * 3)
    work = measure_predict(model_folder("bert", "sequence_classification"), source)
    assert 0 <= work.processing < work.whole
    assert (work.cpu or 0) > 0
    with pytest.raises(SystemExit, match="predict ended with 1"):
        measure_predict(tmp_path, source)
