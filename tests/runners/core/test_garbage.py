from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from contextlib import suppress

import pytest

from runners.core.garbage import collect_unloaded, importing
from tests.servers import ROOT

# A cycle keeps pieces of 200 MiB, and another piece keeps the heap from ending before them.
_KEPT = """
import sys
from runners.core import garbage
from runners.hosting.idle_memory import _resident, configure_heaps
configure_heaps()
pieces = [b"a" * 100_000 for _ in range(2100)]
last = b"a" * 100_000
pieces.append(pieces)
before = _resident()
del pieces
getattr(garbage, sys.argv[1])()
print((before - _resident()) // 2**20)
"""


_MODULE = "a_module_that_is_not_imported"


class Imported:
    """An object that the collector tracks."""

    itself: Imported


def test_what_is_imported_is_no_matter_for_later_collections() -> None:
    with importing(_MODULE):
        assert not gc.isenabled()
        imported = Imported()
    assert gc.isenabled()
    assert not any(each is imported for each in gc.get_objects())
    collect_unloaded()
    assert not any(each is imported for each in gc.get_objects())


def test_later_loads_exclude_no_objects_of_requests() -> None:
    with importing("gc"):
        assert gc.isenabled()
        request = Imported()
    assert any(each is request for each in gc.get_objects())


def test_what_is_unloaded_is_collected_although_it_was_excluded() -> None:
    unloaded = Imported()
    unloaded.itself = unloaded
    gone = weakref.ref(unloaded)
    gc.freeze()
    del unloaded
    collect_unloaded()
    assert gone() is None


def test_no_full_collection_for_a_model_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gc, "collect", lambda: pytest.fail("a full collection"))
    collect_unloaded(lambda: True)


def test_after_a_failed_import_there_are_collections_again() -> None:
    with suppress(ImportError), importing(_MODULE):
        raise ImportError
    assert gc.isenabled()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give memory back themselves")
@pytest.mark.parametrize("step", ["freeze_objects", "collect_unloaded"])
def test_loading_and_unloading_return_memory(step: str) -> None:
    """In a process of its own, whose heap has no holes that the pieces would fill."""
    run = subprocess.run([sys.executable, "-c", _KEPT, step], cwd=ROOT, capture_output=True, check=True)
    assert int(run.stdout) > 150
