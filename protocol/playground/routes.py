"""The playground: one page to try the models of this server in a browser, at `/playground` and at the root.

The page holds nothing of the server, so that it needs no key. It calls the server as any other client does, and asks
for a key where that is needed.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.open_paths import PLAYGROUND_PATH
from protocol.http.routing import Endpoint
from protocol.playground.accept import prefers_page
from protocol.playground.page import Page, load_page
from runners.core.models import Models
from runners.core.probe_paths import ROOT_PATH
from runners.core.request_record import current_record


def routes(models: Models, alive: Endpoint, protocol: str) -> list[Route]:
    """The page's own path, and the root, where browsers get the page and other clients what they got before.

    Args:
        alive: answers GET at the root to clients that are no browsers.
        protocol: that of `alive`, as records of requests name it.
    """

    async def show(request: Request) -> Response:
        return _answer(request, load_page("../"))

    async def negotiate(request: Request) -> Response:
        # A server that is stuck answers 503 to every client: a probe may accept HTML too.
        if models.live and prefers_page(",".join(request.headers.getlist("accept"))):
            response = _answer(request, load_page("./"))
        else:
            if (record := current_record.get()) is not None:
                record.locate(protocol, ROOT_PATH)
            response = await alive(request)
        response.headers["vary"] = "Accept"
        return response

    return [Route(PLAYGROUND_PATH, show), Route(ROOT_PATH, negotiate)]


def _answer(request: Request, page: Page) -> Response:
    if _is_cached(request.headers.get("if-none-match", ""), page.headers["etag"]):
        return Response(status_code=304, headers=page.headers)
    return Response(page.body, headers=page.headers, media_type="text/html")


def _is_cached(tags: str, current: str) -> bool:
    """Whether If-None-Match names the current tag, strong or weak (RFC 9110, section 13.1.2)."""
    return tags.strip() == "*" or current in {f"W/{tag.strip().removeprefix('W/')}" for tag in tags.split(",")}
