"""The prompts of a model that embeds, by what a text is for."""

from __future__ import annotations

from collections.abc import Sequence

from runners.core.runner import Runner

# The names that `encode_query` and `encode_document` of sentence-transformers look for, best first.
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def find_prompt(runner: Runner, candidates: Sequence[str]) -> str | None:
    """The first of the candidates that the model has; None for none, so that the model's default prompt is used."""
    names = runner.supported_options.prompt_names
    return next((name for name in candidates if name in names), None)
