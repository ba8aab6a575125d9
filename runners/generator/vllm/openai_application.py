"""vLLM's own layer for OpenAI's API: an ASGI application that runs in this process."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from runners.core.admission import Admission
from runners.core.errors import InputError
from runners.core.generation import Chat, PromptOptions
from runners.generator.vllm.errors import input_errors

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

    async def render_chat(self, chat: Chat, options: PromptOptions) -> list[int]:
        """The token ids of a chat, as a chat completion has them.

        Raises:
            InputError: the model has no chat template, or vLLM refuses the messages.
        """
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.entrypoints.serve.engine.protocol import ErrorResponse

        fields = {
            "tools": chat.tools,
            "chat_template_kwargs": dict(chat.variables) or None,
            "add_special_tokens": options.add_special_tokens,
            "truncate_prompt_tokens": options.truncate_to,
            "truncation_side": options.truncation_side,
        }
        with input_errors():
            fields_set = {name: value for name, value in fields.items() if value is not None}
            request = ChatCompletionRequest(messages=list(chat.messages), **fields_set)
            rendered = await self._application.state.online_renderer.render_chat(request)
        if isinstance(rendered, ErrorResponse):
            raise InputError(rendered.error.message)
        _, [prompt] = rendered
        return list(prompt["prompt_token_ids"])

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
