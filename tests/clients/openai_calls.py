"""Ask a server with OpenAI's own client, and print what it says as JSON.

python -m tests.clients.openai_calls http://localhost:3000/v1 MODEL
"""

from __future__ import annotations

import json
import sys
from typing import Any

import openai

from tests.clients.answer import QUESTION, City


def main(url: str, model: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": model, "temperature": 0, "messages": [{"role": "user", "content": QUESTION}]}
    plain = client.chat.completions.create(**asked, max_completion_tokens=8)
    with client.chat.completions.stream(**asked, max_completion_tokens=8) as stream:
        streamed = stream.get_final_completion().choices[0].message.content
    parsed = client.chat.completions.parse(**asked, max_completion_tokens=64, response_format=City)
    with client.chat.completions.stream(**asked, max_completion_tokens=64, response_format=City) as stream:
        parsed_stream = stream.get_final_completion().choices[0].message.parsed
    tool = openai.pydantic_function_tool(City, name="note_city")
    choice: Any = {"type": "function", "function": {"name": "note_city"}}
    called = client.chat.completions.parse(**asked, max_completion_tokens=64, tools=[tool], tool_choice=choice)
    [call] = called.choices[0].message.tool_calls or []
    text: dict[str, Any] = {"model": model, "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
    completion = client.completions.create(**text, logprobs=2, echo=True)
    logprobs = completion.choices[0].logprobs
    response = client.responses.create(model=model, input=QUESTION, temperature=0, max_output_tokens=16)
    events = client.responses.create(model=model, input=QUESTION, temperature=0, max_output_tokens=16, stream=True)
    said = {
        "plain": plain.choices[0].message.content,
        "streamed": streamed,
        "parsed": _plain(parsed.choices[0].message.parsed),
        "parsed_stream": _plain(parsed_stream),
        "called": [call.function.name, json.loads(call.function.arguments)],
        "call_finished": called.choices[0].finish_reason,
        "completion": completion.choices[0].text,
        "logprobs": logprobs.token_logprobs if logprobs else None,
        "response": response.output_text,
        "response_streamed": "".join(event.delta for event in events if event.type == "response.output_text.delta"),
        "max_model_len": [getattr(each, "max_model_len", None) for each in client.models.list()],
    }
    print(json.dumps(said))  # noqa: T201


def _plain(city: City | None) -> dict[str, Any] | None:
    return None if city is None else city.model_dump()


if __name__ == "__main__":
    main(*sys.argv[1:])
