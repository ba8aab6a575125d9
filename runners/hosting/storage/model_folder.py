"""The model in a folder that was downloaded."""

from __future__ import annotations

import mimetypes
import re
import shutil
from pathlib import Path

from runners.core.errors import ModelLoadError
from runners.hosting.storage.archives import TAR, ZIP

# boto3 writes to a file of such a name beside the final one, and renames it once it is complete.
_S3_TEMPORARY = re.compile(r"\.[0-9A-Fa-f]{8}$")


def find_config_folder(folder: Path, redacted_uri: str) -> Path:
    """The folder itself, or the one in it that contains all files: archives often have a folder around their files.

    Args:
        redacted_uri: the URI without credentials, for messages.

    Raises:
        ModelLoadError: there is no config.json, or none beside all other files.
    """
    if (folder / "config.json").is_file():
        return folder
    # Git and huggingface_hub keep hidden files.
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    folders = [name.parent for name in files if name.name == "config.json"]
    # Parts of a model, such as 1_Pooling, have a config.json too, but other files outside of their folder.
    around = [parent for parent in folders if all(name.is_relative_to(parent) for name in files)]
    if around:
        return folder / around[0]
    if folders:
        raise ModelLoadError(
            f"{redacted_uri} holds a config.json not for all its files but in {_list(folders)}: name a model"
        )
    raise ModelLoadError(
        f"{redacted_uri} holds no config.json, so it is not a Hugging Face model; it holds {_list(files)}"
    )


def _list(names: list[Path]) -> str:
    return ", ".join([*map(str, names[:5]), *(["..."] if len(names) > 5 else [])]) or "nothing"


def keep_complete_files(folder: Path) -> list[tuple[str, int]]:
    """The names and bytes of the files that an interrupted download from S3 has completed; deletes the others.

    All files are deleted if one is an archive, which may be half unpacked.
    """
    files = [path for path in folder.rglob("*") if path.is_file()]
    if any(mimetypes.guess_type(path.name)[0] in (TAR, ZIP) for path in files):
        shutil.rmtree(folder)
        folder.mkdir()
        return []
    for path in files:
        if _S3_TEMPORARY.search(path.name):
            path.unlink()
    complete = [(str(path.relative_to(folder)), path.stat().st_size) for path in files if path.exists()]
    # The smallest file is downloaded again: KServe raises an error if there is nothing to download.
    return sorted(complete, key=lambda file: file[1])[1:]
