from __future__ import annotations

import gc
from contextlib import suppress

from runners.core.garbage import collect_unloaded, importing


class Imported:
    """An object that the collector tracks."""


def test_what_is_imported_is_no_matter_for_later_collections() -> None:
    with importing():
        assert not gc.isenabled()
        imported = Imported()
    assert gc.isenabled()
    assert not any(each is imported for each in gc.get_objects())
    collect_unloaded()
    assert any(each is imported for each in gc.get_objects())


def test_after_a_failed_import_there_are_collections_again() -> None:
    with suppress(ImportError), importing():
        raise ImportError
    assert gc.isenabled()
