"""The list of models of OpenAI's API: every model under all its names, and vLLM's LoRA adapters."""

from __future__ import annotations

from typing import Any

from protocol.model_cards import describe_calls, model_card
from protocol.model_selection import PLACEHOLDERS
from protocol.openai_paths import find_openai_application
from runners.core.models import Models
from runners.core.runner import OpenAIApplication, Runner
from runners.core.served_model import ServedModel


async def list_model_cards(models: Models) -> list[dict[str, Any]]:
    """The cards of all models and adapters."""
    cards: list[dict[str, Any]] = []
    for model in models.choose_versions():
        if (application := _application_of(model)) is None:
            cards += [model_card(model, name) for name in model.names]
        else:
            cards += [card | describe_calls(model) for card in await application.model_cards()]
    return cards


async def find_base_model(models: Models, name: str | None) -> str | None:
    """The name of the vLLM model that has an adapter of that name; any other name as it is."""
    if not name or name in models.names:
        return name
    for model in models.choose_versions():
        application = _application_of(model)
        if application is not None and any(card["id"] == name for card in await application.model_cards()):
            return model.name
    return name


async def name_base_model(application: OpenAIApplication, runner: Runner, name: str | None) -> dict[str, str]:
    """The body's field with the model's own name, if the request's name is a placeholder; nothing if it is none."""
    if name not in PLACEHOLDERS or any(card["id"] == name for card in await application.model_cards()):
        return {}
    return {"model": runner.name}


def _application_of(model: ServedModel) -> OpenAIApplication | None:
    return find_openai_application(model.runner) if model.ready and model.runner is not None else None
