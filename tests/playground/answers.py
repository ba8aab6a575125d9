"""Answers that the browser gets in place of the server's."""

from __future__ import annotations

import json
from typing import Any

from playwright.sync_api import Page, Route

# What `Route.fulfill` takes, such as `{"status": 503}` or `{"json": []}`.
Answer = dict[str, Any]

_STREAMS = {"content-type": "text/event-stream"}


def answer_in_turn(page: Page, path: str, *answers: Answer) -> list[Any]:
    """Answer the requests of a path so, one after the other and the last one again, and return the bodies that they have."""
    bodies: list[Any] = []

    def answer(route: Route) -> None:
        bodies.append(route.request.post_data and json.loads(route.request.post_data))
        route.fulfill(**answers[min(len(bodies), len(answers)) - 1])

    page.route(f"**/{path}", answer)
    return bodies


def stream(*events: Any) -> Answer:
    """A stream of events, each JSON or a text as it is."""
    data = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return {"headers": _STREAMS, "body": "".join(f"data: {each}\n\n" for each in data)}
