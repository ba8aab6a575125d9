"""The models that the operator declares: by the command line alone, in a models file, or in a model repository."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from runners.core.argument_values import GivenValues
from runners.core.arguments import SERVER_NAMES, Arguments
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


# Finds what a repository declares now, under a name or, for None, under all names; it reads files.
FindDeclarations = Callable[[str | None], Sequence[ModelDeclaration]]


@dataclass(frozen=True, slots=True)
class Configuration:
    """What a server runs.

    Attributes:
        arguments: the arguments of the server.
        models: in the order of their declaration; names and versions together are unique. There is none if the
            repository is empty, or while a Bento is built with a file or repository that is not on this machine.
        repository: the folder in which models may appear while the server runs; None without one.
        defaults: the values of arguments that a model in the repository has unless its model.yaml has others.
        environment: the variables that a model.yaml may name.
    """

    arguments: Arguments
    models: tuple[ModelDeclaration, ...]
    repository: Path | None = None
    defaults: GivenValues = field(default_factory=dict, repr=False, compare=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def parallel_size(self) -> int:
        """The GPUs that the model with the most uses on this machine.

        Raises:
            ArgumentsError: a size is not a positive integer.
        """
        return max((model.arguments.parallel_size for model in self.models), default=1)

    def replace_server_arguments(self, arguments: Arguments) -> Configuration:
        """The configuration with other arguments of the server, for the server and for all models."""
        models = tuple(
            replace(model, arguments=copy_server_arguments(arguments, model.arguments)) for model in self.models
        )
        return replace(self, arguments=arguments, models=models)


def copy_server_arguments(server: Arguments, model: Arguments) -> Arguments:
    """The arguments of a model with those of the server that are the same for all models."""
    return model.model_copy(update={name: getattr(server, name) for name in SERVER_NAMES})
