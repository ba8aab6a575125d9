"""The prompts of a model that embeds, by what a text is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runners.core.errors import InputError
from runners.core.runner import Runner

# The names that `encode_query` and `encode_document` of sentence-transformers look for, best first.
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")
# By `input_type`, which Cohere, NVIDIA and Voyage have, the prompts that it stands for, best first.
_INPUT_TYPES: Mapping[str, Sequence[str]] = {
    "search_query": ("search_query", *QUERY_PROMPTS),
    "search_document": ("search_document", *DOCUMENT_PROMPTS),
    "query": QUERY_PROMPTS,
    "document": DOCUMENT_PROMPTS,
    "passage": ("passage", *DOCUMENT_PROMPTS),
    "classification": ("classification",),
    "clustering": ("clustering",),
}


def find_prompt(runner: Runner, candidates: Sequence[str]) -> str | None:
    """The first of the candidates that the model has; None for none, so that the model's default prompt is used."""
    names = runner.supported_options.prompt_names
    return next((name for name in candidates if name in names), None)


def find_input_prompt(runner: Runner, input_type: str | None) -> str | None:
    """The model's prompt for an `input_type`; None for its default.

    Raises:
        InputError: there is no such type, and the model has no prompt of that name.
    """
    if input_type is None:
        return None
    names = runner.supported_options.prompt_names
    if input_type in names:
        return input_type
    if input_type not in _INPUT_TYPES:
        allowed = ", ".join(dict.fromkeys([*_INPUT_TYPES, *names]))
        raise InputError(f"input_type is {input_type[:100]!r}; it may be {allowed}", "input_type")
    return find_prompt(runner, _INPUT_TYPES[input_type])
