"""Ask a server with pydantic-ai for each of its kinds of outputs, and print what it says as JSON.

python -m tests.clients.pydantic_ai_outputs http://localhost:3000/v1 MODEL
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings

from tests.clients.answer import QUESTION, City


async def main(url: str, model: str) -> None:
    chat = OpenAIChatModel(model, provider=OpenAIProvider(base_url=url, api_key="none"))
    settings = ModelSettings(temperature=0, max_tokens=64)
    text: Any = Agent(chat, model_settings=settings)
    said: dict[str, Any] = {"plain": (await text.run(QUESTION)).output}
    async with text.run_stream(QUESTION) as stream:
        said["streamed"] = await stream.get_output()
    for name, output in (("type", City), ("tool", ToolOutput(City)), ("native", NativeOutput(City))):
        agent: Any = Agent(chat, output_type=output, model_settings=settings)
        said[name] = (await agent.run(QUESTION)).output.model_dump()
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
