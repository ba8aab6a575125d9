from __future__ import annotations

from benchmarks.start import Start, make_table

FAST, SLOW = Start(2.0, 6.0, 8.0, 60.0, 680.0, 750.0), Start(4.0, 12.0, 16.0, 90.0, 850.0, 1000.0)


def test_one_checkout_has_no_ratio() -> None:
    lines = make_table({"here": [SLOW]}, {"here": [FAST, FAST, SLOW]}).splitlines()
    assert lines[0] == "| | first answer | ready | cpu | parent | worker | under load |"
    assert lines[2] == "| first start, here | 4.0 | 12.0 | 16.0 | 90.0 | 850.0 | 1000.0 |"
    assert lines[3] == "| later starts, here | 2.0 | 6.0 | 8.0 | 60.0 | 680.0 | 750.0 |"
    assert len(lines) == 4


def test_ratios_are_those_of_pairs() -> None:
    table = make_table({"here": [FAST], "there": [SLOW]}, {"here": [FAST, SLOW], "there": [SLOW, SLOW]})
    assert "| later starts / there | 0.75 (0.50-1.00) | 0.75 (0.50-1.00) |" in table
