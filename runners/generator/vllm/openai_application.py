"""vLLM's own layer for OpenAI's API: an ASGI application that runs in this process."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from runners.core.admission import Admission

if TYPE_CHECKING:
    from fastapi import FastAPI

_NO_PATH = re.compile("(?!)")


class VllmOpenAIApplication:
    """Implements `OpenAIApplication` (runners/core/runner.py) by vLLM's application."""

    def __init__(self, application: FastAPI, admission: Admission) -> None:
        self._application = application
        self._admission = admission

    @property
    def generates(self) -> bool:
        """Whether the model generates text; otherwise it embeds, scores or classifies, over OpenAI's API only."""
        return hasattr(self._application.state, "openai_serving_completion")

    def serves(self, path: str) -> bool:
        return any(getattr(route, "path_regex", _NO_PATH).match(path) for route in self._application.routes)

    async def answer(self, characters: int, scope: Any, receive: Any, send: Any) -> None:
        with self._admission.admit(characters):
            await self._application(scope, receive, send)

    async def model_cards(self) -> list[dict[str, Any]]:
        listed = await self._application.state.openai_serving_models.show_available_models()
        cards: list[dict[str, Any]] = listed.model_dump(mode="json")["data"]
        return cards

    def openapi(self) -> dict[str, Any]:
        return self._application.openapi()
