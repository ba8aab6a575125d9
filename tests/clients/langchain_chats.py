"""Ask a server with LangChain, and print what it says as JSON.

python -m tests.clients.langchain_chats http://localhost:3000/v1 MODEL
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any, Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import Field

from tests.clients.answer import QUESTION, City


@tool  # type: ignore[untyped-decorator]
def note_city(name: Literal["Paris", "Rome"], million: Annotated[int, Field(ge=0, le=40)]) -> str:
    """Note a city and its inhabitants."""
    return f"{name} {million}"


def main(url: str, model: str) -> None:
    chat: Any = ChatOpenAI(
        base_url=url, api_key="none", model=model, temperature=0, max_completion_tokens=64, max_retries=0
    )
    said: dict[str, Any] = {
        "plain": chat.invoke(QUESTION).content,
        "streamed": "".join(chunk.content for chunk in chat.stream(QUESTION)),
        "usage": chat.invoke(QUESTION).usage_metadata["total_tokens"],
    }
    methods: tuple[Literal["json_schema", "function_calling"], ...] = ("json_schema", "function_calling")
    for method in methods:
        said[method] = chat.with_structured_output(City, method=method).invoke(QUESTION).model_dump()
    # Any JSON object: what is in it the model decides.
    raw = chat.with_structured_output(None, method="json_mode", include_raw=True).invoke(f"{QUESTION} Answer in JSON.")
    said["json_mode"] = raw["raw"].content
    for choice in ("note_city", "required"):
        said[choice] = chat.bind_tools([note_city], tool_choice=choice).invoke(QUESTION).tool_calls[0]
    streamed = list(chat.bind_tools([note_city], tool_choice="note_city").stream(QUESTION))
    whole = streamed[0]
    for chunk in streamed[1:]:
        whole += chunk
    said["tool_streamed"] = whole.tool_calls[0]
    # A conversation goes on with the result of a call.
    call = said["note_city"]
    messages = [
        ("user", QUESTION),
        {"role": "assistant", "content": "", "tool_calls": [_as_sent(call)]},
        {"role": "tool", "tool_call_id": call["id"], "content": "Paris 2"},
    ]
    said["after_tool"] = chat.invoke(messages).content
    print(json.dumps(said))  # noqa: T201


def _as_sent(call: dict[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": json.dumps(call["args"])}
    return {"id": call["id"], "type": "function", "function": function}


if __name__ == "__main__":
    main(*sys.argv[1:])
