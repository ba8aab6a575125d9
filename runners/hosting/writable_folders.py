"""Chooses folders that this user can write to, before a library that writes to its home is imported.

A container may run as a user without a name and a home, or on a file system that is read-only. BentoML fails when it is
imported and cannot write to BENTOML_HOME; caches of other libraries follow HOME. launch.py calls `choose_folders`. In
an image bash does before BentoML's entry point (deploy/bento): `python writable_folders.py` writes lines for a shell.
So this module imports the standard library alone.
"""

from __future__ import annotations

import os
import pwd
import shlex
import stat
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

# What was chosen because something else cannot be written, for the log.
CHOSEN_VARIABLE = "HUGGINGFACE_RUNTIME_CHOSEN_FOLDERS"
_SHARED = ("/tmp", "/var/tmp", "/dev/shm")
_NAME = "huggingface-runtime-home"


class NoWritableFolderError(Exception):
    """There is no folder that this user can write to; the message is one line."""


def choose_folders(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that replace those which name folders that cannot be written; none if all can.

    BENTOML_HOME and HOME get folders of their own in the first of TMPDIR, /tmp, /var/tmp, /dev/shm and the working
    folder that can be written; the models and Bentos of an unwritable BENTOML_HOME are linked into the new one, and an
    unwritable cache of the hub that has models stays in use.

    Raises:
        NoWritableFolderError: nothing can be written.
    """
    chosen: dict[str, str] = {}
    places = _list_places(environment)
    if not any(place.is_dir() and _is_writable(place) for place in _list_temporary(environment)):
        if not places:
            raise NoWritableFolderError(_explain_nothing(environment))
        chosen["TMPDIR"] = str(places[0])
    # Libraries call getpass.getuser, which fails for a user without a name.
    if not any(environment.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")) and _find_passwd() is None:
        chosen["LOGNAME"] = str(os.getuid())
    home = Path(environment.get("HOME") or _find_home()).absolute()
    bentoml_home = Path(os.path.expandvars(environment.get("BENTOML_HOME") or home / "bentoml")).expanduser().absolute()
    unwritable = {
        name: path for name, path in (("HOME", home), ("BENTOML_HOME", bentoml_home)) if not _is_writable(path)
    }
    if unwritable:
        if not places:
            raise NoWritableFolderError(_explain_nothing(environment))
        base = _make_private_folder(places)
        if "HOME" in unwritable:
            chosen |= {"HOME": str(base), **_keep_hub_cache(environment, home)}
        if "BENTOML_HOME" in unwritable:
            chosen["BENTOML_HOME"] = str(_link_stores(bentoml_home, base / "bentoml"))
    caches = Path(environment.get("XDG_CACHE_HOME", ""))
    if caches.is_absolute() and not _is_writable(caches):
        unwritable["XDG_CACHE_HOME"] = caches
        chosen["XDG_CACHE_HOME"] = str(Path(chosen.get("HOME", home)) / ".cache")
    if unwritable:
        named = ", ".join(f"{name}={path}" for name, path in unwritable.items())
        changed = ", ".join(f"{name}={chosen[name]}" for name in unwritable)
        chosen[CHOSEN_VARIABLE] = f"{named} cannot be written; instead {changed}"
    return chosen


def _list_temporary(environment: Mapping[str, str]) -> list[Path]:
    """Where Python and C libraries make temporary files."""
    names = (environment.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    # Python itself also takes the working folder; sockets and locks do not belong there.
    return [Path(name) for name in (*names, "/tmp", "/var/tmp", "/usr/tmp") if name]


def _list_places(environment: Mapping[str, str]) -> list[Path]:
    """The folders in which files may be kept, the best first."""
    paths = [*_list_temporary(environment), *map(Path, _SHARED), *_list_working()]
    return [path for path in dict.fromkeys(paths) if path.is_dir() and _is_writable(path)]


def _list_working() -> list[Path]:
    """The working folder; none if it was removed."""
    with suppress(FileNotFoundError):
        return [Path.cwd()]
    return []


def _is_writable(path: Path) -> bool:
    """Whether files can be made in a folder, or the folder itself can be made."""
    try:
        while not path.exists():
            path = path.parent
    except OSError:
        return False
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _find_passwd() -> pwd.struct_passwd | None:
    with suppress(KeyError):
        return pwd.getpwuid(os.getuid())
    return None


def _find_home() -> str:
    entry = _find_passwd()
    return "/" if entry is None else entry.pw_dir


def _make_private_folder(places: Iterable[Path]) -> Path:
    """A folder of this user alone, the same at the next start, so that a download is found again."""
    for place in places:
        folder = place / f"{_NAME}-{os.getuid()}"
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        # Others may make it first in a folder that all can write to.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
            return folder
        last = place
    return Path(tempfile.mkdtemp(prefix=f"{_NAME}-", dir=last))


def _keep_hub_cache(environment: Mapping[str, str], home: Path) -> dict[str, str]:
    """HF_HOME, if the cache in an unwritable home has models, as that of an image may."""
    if any(environment.get(name) for name in ("HF_HOME", "HF_HUB_CACHE", "XDG_CACHE_HOME")):
        return {}
    cache = home / ".cache" / "huggingface"
    with suppress(OSError):
        if any((cache / "hub").glob("models--*")):
            return {"HF_HOME": str(cache)}
    return {}


def _link_stores(unwritable: Path, folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    for name in ("models", "bentos"):
        link, store = folder / name, unwritable / name
        linked = _read_link(link)
        if not store.is_dir():
            if linked is not None:
                link.unlink(missing_ok=True)
        elif linked != store and (linked is not None or not link.exists()):
            # Other servers of this user start or run: the link is replaced at once.
            with tempfile.TemporaryDirectory(dir=folder) as made:
                new = Path(made) / name
                new.symlink_to(store)
                new.replace(link)
    return folder


def _read_link(path: Path) -> Path | None:
    """Where a link leads; None if there is no link."""
    with suppress(OSError):
        return path.readlink()
    return None


def _explain_nothing(environment: Mapping[str, str]) -> str:
    tried = ", ".join(dict.fromkeys(map(str, [*_list_temporary(environment), *_SHARED, Path.cwd()])))
    return (
        f"there is no folder that user {os.getuid()} can write to (tried {tried}): mount one, such as an emptyDir at "
        "/tmp, or set TMPDIR to one"
    )


def main() -> None:
    """Write `export` lines for a shell."""
    try:
        chosen = choose_folders(os.environ)
    except NoWritableFolderError as error:
        raise SystemExit(f"error: {error}") from None
    sys.stdout.writelines(f"export {name}={shlex.quote(value)}\n" for name, value in chosen.items())


if __name__ == "__main__":
    main()
