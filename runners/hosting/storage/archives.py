"""Unpacks archives of models: only plain files, only into their folder, and only if the disk has room."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from runners.core.errors import ModelLoadError
from runners.core.machine import format_size
from runners.hosting.storage.disk import find_room

MAX_MEMBERS = 100_000
ZIP = "application/zip"
TAR = "application/x-tar"
_MAX_DEPTH = 64
_CHUNK = 256 * 2**10
# Bytes of the headers of one member of a tar, and of the directory of a zip.
_TAR_HEADERS = 2**20
_ZIP_HEADERS = 16 * 2**20
# `zipfile` limits the memory of decompression only for these.
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 1
_OPENERS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


def unpack_archive(archive: Path, kind: str, folder: Path, redacted_uri: str) -> None:
    """Unpack an archive into `folder`, and delete the archive; if it is refused, delete the whole folder.

    Args:
        kind: the media type: `application/zip`, or `application/x-tar`, which may be compressed by gzip, bzip2 or xz.
        redacted_uri: the URI of the archive without credentials, for errors.

    Raises:
        ModelLoadError: a member is not a plain file or folder, lies outside of the folder or is encrypted, or there are
            too many members, or more bytes than the disk has room for; the message names the member.
        Exception: `tarfile`, `zipfile` or a decompressor cannot read the archive.
    """
    target = _Target(archive, folder, redacted_uri)
    try:
        if kind == ZIP:
            with archive.open("rb") as stream:
                _unpack_zip(stream, target)
        else:
            with _open_tar(archive) as stream:
                _unpack_tar(stream, target)
        archive.unlink()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def refuse_links(folder: Path, redacted_uri: str) -> None:
    """Refuse a download with links to files outside of it; git repositories and images may contain such links.

    Raises:
        ModelLoadError: there is such a link.
    """
    inside = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise ModelLoadError(
                f"{redacted_uri} holds {_short(str(path.relative_to(folder)))}, a link out of its folder"
            )


class _Target:
    """The folder that members are written to."""

    def __init__(self, archive: Path, folder: Path, redacted_uri: str) -> None:
        self._archive = archive
        self._folder = folder
        self._redacted_uri = redacted_uri
        self._room = find_room(folder)
        self._members = 0

    def check_count(self, count: int) -> None:
        if count > MAX_MEMBERS:
            raise ModelLoadError(
                f"{self._redacted_uri} holds more than {MAX_MEMBERS} files and folders: it is not unpacked"
            )

    def refuse(self, name: str, reason: str) -> ModelLoadError:
        return ModelLoadError(f"{self._redacted_uri} holds {_short(name)}, {reason}: it is not unpacked")

    def make_folder(self, name: str) -> None:
        self._place(name).mkdir(parents=True, exist_ok=True)

    def write(self, name: str, declared: int, read: Callable[[int], bytes]) -> None:
        """Write a file; the bytes that are read count, not only those that the archive declares."""
        path = self._place(name)
        room = self._room
        too_large = f"which is larger than the {format_size(room)} that the disk has room for"
        if declared > room:
            raise self.refuse(name, too_large)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The modes and owners in the archive are ignored: no file of a model must be executable, or another user's.
        with path.open("wb") as out:
            while chunk := read(_CHUNK):
                self._room -= len(chunk)
                if self._room < 0:
                    raise self.refuse(name, too_large)
                out.write(chunk)

    def _place(self, name: str) -> Path:
        self._members += 1
        self.check_count(self._members)
        path = PurePosixPath(name)
        if "\0" in name:
            raise self.refuse(name, "whose name has a NUL")
        if path.is_absolute():
            raise self.refuse(name, "an absolute path")
        if ".." in path.parts:
            raise self.refuse(name, "a path with '..'")
        if len(path.parts) > _MAX_DEPTH:
            raise self.refuse(name, f"which lies in more than {_MAX_DEPTH} folders")
        placed = self._folder / path
        # For a local archive this is a link to the operator's file, which must not be written.
        if placed == self._archive:
            raise self.refuse(name, "which has the name of the archive")
        return placed


class _Metered(io.RawIOBase):
    """A stream that limits the bytes between two members: `tarfile` and `zipfile` keep headers in memory."""

    def __init__(self, stream: IO[bytes], limit: int, target: _Target) -> None:
        super().__init__()
        self._stream = stream
        self._limit = self._left = limit
        self._target = target
        self._member = "a member"

    def allow(self, member: str) -> None:
        """Start to count again.

        Args:
            member: the member that comes before the next headers, for errors.
        """
        self._left = self._limit
        self._member = member

    def read(self, count: int = -1) -> bytes:
        # One byte more than the limit shows that the limit is exceeded.
        data = self._stream.read(min(count, self._left + 1) if count >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise self._target.refuse(self._member, f"with or before headers of more than {format_size(self._limit)}")
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True


def _open_tar(archive: Path) -> IO[bytes]:
    """The tar in an archive, decompressed as its first bytes require."""
    with archive.open("rb") as stream:
        start = stream.read(8)
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    opened: IO[bytes] = archive.open("rb") if opener is None else opener(archive)
    return opened


def _unpack_tar(stream: IO[bytes], target: _Target) -> None:
    metered = _Metered(stream, _TAR_HEADERS, target)
    with tarfile.open(fileobj=metered, mode="r:", encoding="utf-8") as archive:
        while (member := archive.next()) is not None:
            # `tarfile` would keep all members and their headers in memory.
            archive.members.clear()  # type: ignore[attr-defined]
            if member.issym() or member.islnk():
                raise target.refuse(member.name, "a link (`tar --dereference --hard-dereference` stores files instead)")
            if member.isdir():
                target.make_folder(member.name)
            elif member.isreg():
                _copy(archive.extractfile(member), member.name, member.size, metered, target)
            else:
                raise target.refuse(member.name, "which is neither a file nor a folder")
            metered.allow(member.name)


def _unpack_zip(stream: IO[bytes], target: _Target) -> None:
    metered = _Metered(stream, _ZIP_HEADERS, target)
    with zipfile.ZipFile(metered) as archive:
        members = archive.infolist()
        target.check_count(len(members))
        for member in members:
            name = member.orig_filename
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind == stat.S_IFLNK:
                raise target.refuse(name, "a link (`zip` without --symlinks stores files instead)")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise target.refuse(name, "which is neither a file nor a folder")
            if member.flag_bits & _ENCRYPTED:
                raise target.refuse(name, "which is encrypted")
            if member.compress_type not in _ZIP_METHODS:
                raise target.refuse(name, f"compressed by method {member.compress_type}, where only deflate is known")
            if member.is_dir():
                target.make_folder(name)
            else:
                metered.allow(name)
                _copy(archive.open(member), name, member.file_size, metered, target)


def _copy(source: IO[bytes] | None, name: str, declared: int, metered: _Metered, target: _Target) -> None:
    assert source is not None

    def read(count: int) -> bytes:
        metered.allow(name)
        return source.read(count)

    with source:
        target.write(name, declared, read)


def _short(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")
