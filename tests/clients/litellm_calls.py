"""Ask a server with LiteLLM, and print what it says as JSON.

python -m tests.clients.litellm_calls http://localhost:3000/v1 MODEL
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

# It would be downloaded.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from tests.clients.answer import QUESTION, City


def main(url: str, model: str) -> None:
    said: dict[str, Any] = {}
    for provider in ("openai", "hosted_vllm", "huggingface"):
        asked: dict[str, Any] = {
            "model": f"{provider}/{model}",
            "api_base": url,
            "api_key": "none",
            "messages": [{"role": "user", "content": QUESTION}],
            "temperature": 0,
            "max_tokens": 64,
        }
        plain = litellm.completion(**asked)
        streamed = litellm.completion(**asked, stream=True)
        parsed = litellm.completion(**asked, response_format=City)
        schema = {"name": "note_city", "parameters": City.model_json_schema()}
        choice = {"type": "function", "function": {"name": "note_city"}}
        called = litellm.completion(**asked, tools=[{"type": "function", "function": schema}], tool_choice=choice)
        said[provider] = {
            "plain": plain.choices[0].message.content,
            "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in streamed),
            "parsed": json.loads(parsed.choices[0].message.content),
            "called": json.loads(called.choices[0].message.tool_calls[0].function.arguments),
        }
    text = litellm.text_completion(
        model=f"text-completion-openai/{model}", api_base=url, api_key="none", prompt="The capital of France is",
        temperature=0, max_tokens=4,
    )  # fmt: skip
    said["text"] = text.choices[0].text
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
