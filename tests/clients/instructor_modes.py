"""Ask a server with instructor in each of its modes for OpenAI's API, and print what it says as JSON.

python -m tests.clients.instructor_modes http://localhost:3000/v1 MODEL
"""

from __future__ import annotations

import json
import sys
from typing import Any

import instructor
import openai

from tests.clients.answer import QUESTION, City


def main(url: str, model: str) -> None:
    plain = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    said: dict[str, Any] = {}
    for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(plain, mode=mode)
        city: Any = client.chat.completions.create(
            model=model, response_model=City, messages=[{"role": "user", "content": QUESTION}], temperature=0,
            max_tokens=64, max_retries=0,
        )  # fmt: skip
        said[mode.value] = city.model_dump()
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
