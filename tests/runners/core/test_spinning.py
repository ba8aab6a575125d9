from __future__ import annotations

import os
import subprocess
import sys
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from runners.core import spinning
from runners.core.spinning import (
    Contention,
    SpinControl,
    ThreadTimes,
    inherit_short_spinning,
    prepare_spin_control,
    read_times,
)
from tests.waiting import wait_until

_LONG = {"GOMP_SPINCOUNT": "300000", "OMP_WAIT_POLICY": "ACTIVE"}
_SHORT = {"GOMP_SPINCOUNT": "1000"}
_MS = 1_000_000

# As an operator's process: torch, one generator's control, and a second team that comes and goes.
_REAL = """
from runners.core.spinning import SpinControl, prepare_spin_control
prepare_spin_control()
import threading, torch
torch.set_num_threads(2)
inputs = torch.randn(64, 512), torch.randn(512, 512)
alone = inputs[0] @ inputs[1]
control = SpinControl.start(2)
assert control is not None
release = threading.Event()
holder = threading.Thread(target=control._hold_team, args=(release,))
holder.start()
assert torch.equal(inputs[0] @ inputs[1], alone)
release.set()
holder.join()
assert torch.equal(inputs[0] @ inputs[1], alone)
control.close()
"""


@pytest.mark.parametrize(
    ("waited", "shortly"),
    [
        ([0, 0], False),
        # A single sample of others that want the cores is enough.
        ([0, 60], True),
        ([20, 20], False),
        # Between the two limits it stays as it is.
        ([60, *[20] * 20], True),
        ([20] * 20, False),
        # It must have been alone on average of four samples.
        ([60, *[0] * 3], True),
        ([60, *[0] * 4], False),
        ([60, 4, 4, 4, 20], False),
        ([60, 4, 20, 4, 20], True),
        ([60, *[0] * 3, 60, *[0] * 3], True),
    ],
)
def test_decides_by_the_time_that_threads_wait_for_cores(waited: list[int], shortly: bool) -> None:
    """Each sample: 200 ms of threads, of which some milliseconds were waited."""
    contention, ran, total = Contention(), 0, 0
    decided = contention.update(ThreadTimes(0, 0))
    for part in waited:
        ran, total = ran + (200 - part) * _MS, total + part * _MS
        decided = contention.update(ThreadTimes(ran, total))
    assert decided is shortly


def test_an_idle_process_says_nothing() -> None:
    contention = Contention()
    contention.update(ThreadTimes(0, 0))
    assert not contention.update(ThreadTimes(5 * _MS, 40 * _MS))


def test_threads_that_end_take_their_times_with_them() -> None:
    contention = Contention()
    contention.update(ThreadTimes(900 * _MS, 900 * _MS))
    assert not contention.update(ThreadTimes(100 * _MS, 100 * _MS))


def test_holds_a_second_team_while_others_want_the_cores(tmp_path: Path) -> None:
    """One thread, whose schedstat says that it waits more and more, and then no longer."""
    schedstat = tmp_path / "1/schedstat"
    schedstat.parent.mkdir()
    held = threading.Event()

    def hold(release: threading.Event) -> None:
        held.set()
        release.wait()
        held.clear()

    def write(ran: int, waited: int) -> None:
        schedstat.with_suffix(".new").write_text(f"{ran * _MS} {waited * _MS} 1\n")
        schedstat.with_suffix(".new").rename(schedstat)

    write(100, 0)
    control = SpinControl(hold, tmp_path)
    time = 100

    def contended() -> bool:
        nonlocal time
        time += 1000
        write(time, time)
        return held.is_set()

    wait_until(contended)
    assert control.spins_shortly
    control.close()
    wait_until(lambda: not held.is_set())
    assert not control.spins_shortly


def test_takes_no_samples_while_the_process_idles(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has used 8 ms more at each look, so that every second look has a sample."""
    taken: list[float] = []
    looks = 0

    def process_time() -> float:
        nonlocal looks
        looks += 1
        return 0.008 * looks

    monkeypatch.setattr("runners.core.spinning._SECONDS", 0.001)
    monkeypatch.setattr("runners.core.spinning.time.process_time", process_time)
    monkeypatch.setattr("runners.core.spinning.read_times", lambda _: taken.append(looks))
    control = SpinControl(lambda _: None)
    wait_until(lambda: looks >= 6)
    control.close()
    assert taken[:3] == [2, 4, 6]


@pytest.mark.parametrize(
    ("given", "own", "inherited"),
    [
        ({}, _LONG, _SHORT),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_the_environment_unless_the_operator_sets_it(
    given: dict[str, str], own: dict[str, str], inherited: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    monkeypatch.setattr(spinning, "_inherited", threading.Event())
    prepare_spin_control()
    assert os.environ == own
    # Several engines may be started.
    for _ in range(2):
        inherit_short_spinning()
        assert os.environ == inherited


def test_control_goes_on_after_other_processes_were_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(_LONG))
    monkeypatch.setattr(spinning, "_inherited", threading.Event())
    inherit_short_spinning()
    control = SpinControl.start(2)
    assert control is not None
    control.close()


@pytest.mark.parametrize(("library", "own"), [("libgomp.so.1", _LONG), ("libiomp5.so", _SHORT), (None, _SHORT)])
def test_spins_long_only_with_the_libgomp_of_torch(
    library: str | None, own: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lib").mkdir()
    if library is not None:
        (tmp_path / "lib" / library).touch()
    torch = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: torch)
    monkeypatch.setattr(os, "environ", {})
    prepare_spin_control()
    assert os.environ == own


def test_warns_if_the_threads_cannot_be_controlled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "environ", dict(_LONG))
    monkeypatch.setattr("runners.core.spinning._GOMP", "libgomp-of-nobody.so")
    assert SpinControl.start(2) is None
    assert "GOMP_SPINCOUNT=1000 lets them spin shortly" in caplog.text


def test_threads_that_end_while_they_are_read(tmp_path: Path) -> None:
    for thread in ("1", "2"):
        (tmp_path / thread).mkdir()
    (tmp_path / "2/schedstat").write_text("7 3 1\n")
    assert read_times(tmp_path) == ThreadTimes(7, 3)


def test_a_kernel_that_does_not_count_waiting(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/schedstat").write_text("0 0 0\n")
    assert read_times(tmp_path) is None


def test_a_second_team_changes_no_numbers() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in _LONG}
    subprocess.run([sys.executable, "-c", _REAL], check=True, env=environment)
