"""The models that the operator declares: by the command line alone, in a models file, or in a model repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runners.core.arguments import Arguments
from runners.core.file_watch import FolderState, describe_folder

# A model whose operator names no version has that of Triton's first.
FIRST_VERSION = "1"


@dataclass(frozen=True, slots=True)
class ModelDeclaration:
    """One version of a model.

    Attributes:
        arguments: the model's arguments, with those of the server, which are the same in each declaration.
        load: whether the model is loaded when the server starts; otherwise only through the repository API.
        origin: where the model is declared, for messages: "the command line", "models.yaml:12" or a folder.
    """

    arguments: Arguments
    version: str = FIRST_VERSION
    load: bool = True
    origin: str = "the command line"

    @property
    def name(self) -> str:
        """The model's name in URLs."""
        return self.arguments.model_name

    def describe_files(self) -> FolderState:
        """The state of the model's files, which changes with them; empty for a model of the hub or at a URI."""
        return describe_folder(self.arguments.model)


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a server runs.

    Attributes:
        arguments: the arguments of the server.
        models: at least one, in the order of their declaration; names and versions together are unique.
        repository: the folder in which models may appear while the server runs; None without one.
    """

    arguments: Arguments
    models: tuple[ModelDeclaration, ...]
    repository: Path | None = None
