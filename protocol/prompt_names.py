"""The prompts of a model that embeds, by what a text is for."""

from __future__ import annotations

from collections.abc import Sequence

from runners.core.runner import Runner

# The names that `encode_query` and `encode_document` of sentence-transformers look for, best first.
QUERY_PROMPTS = ("query",)
DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def list_prompts(runner: Runner) -> list[str]:
    """The names of the model's prompts."""
    return [*filter(None, runner.properties.get("prompts", "").split(","))]


def find_prompt(runner: Runner, candidates: Sequence[str]) -> str | None:
    """The first of the candidates that the model has; None for none, so that the model's default prompt is used."""
    prompts = list_prompts(runner)
    return next((name for name in candidates if name in prompts), None)
