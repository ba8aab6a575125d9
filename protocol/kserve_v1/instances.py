"""The instances of V1: a text, a pair of texts, or an object that names its texts."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from runners.core.errors import InputError
from runners.core.predictions import TextInput


class Instance(msgspec.Struct, forbid_unknown_fields=True):
    """A text, a pair of texts, a question with its context, or a text that is split into words."""

    text: str | UnsetType = UNSET
    text_pair: str | None = None
    words: list[str] | UnsetType = UNSET
    question: str | UnsetType = UNSET
    context: str | UnsetType = UNSET

    def read(self) -> TextInput:
        """
        Raises:
            ValueError: there is no text, or there are several.
        """
        match (self.text, self.text_pair, self.words, self.question, self.context):
            case (str(text), pair, msgspec.UNSET, msgspec.UNSET, msgspec.UNSET):
                return TextInput(text, pair)
            case (msgspec.UNSET, None, list(words), msgspec.UNSET, msgspec.UNSET):
                return TextInput(" ".join(words), words=tuple(words))
            case (msgspec.UNSET, None, msgspec.UNSET, str(question), str(context)):
                return TextInput(question, context)
        raise ValueError("must have either text, which text_pair may follow, or words, or question and context")


AnyInstance: TypeAlias = str | Instance | list[str]


def read_instance(instance: AnyInstance, name: str) -> TextInput:
    """The text of an instance.

    Args:
        name: what an error calls the instance, such as "instances[3]".

    Raises:
        InputError: it has no text, or too many.
    """
    match instance:
        case str():
            return TextInput(instance)
        case Instance():
            try:
                return instance.read()
            except ValueError as error:
                raise InputError(f"{name} {error}") from error
        case [text, pair]:
            return TextInput(text, pair)
    raise InputError(f"{name} has {len(instance)} texts; a pair is a list of two")
