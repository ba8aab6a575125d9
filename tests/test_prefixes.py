"""Started servers below a path prefix of nginx, in each way that docs/how-to/networks.md lists."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from urllib.parse import urljoin

import httpx
import pytest

from tests.conftest import ModelFolder
from tests.debian import needs_program
from tests.nginx import NGINX_START, run_nginx
from tests.servers import ROOT, ServerProcess, free_port

pytestmark = [pytest.mark.slow, needs_program("nginx")]

PREFIX = "/models/ner"
NGINX = (
    NGINX_START
    + """
    server {{
        listen 127.0.0.1:{leaves};
        location /models/ner/ {{ proxy_pass http://127.0.0.1:{knowing}; }}
    }}
    server {{
        listen 127.0.0.1:{removes};
        location /models/ner/ {{ proxy_pass http://127.0.0.1:{knowing}/; }}
    }}
    server {{
        listen 127.0.0.1:{tells};
        location /models/ner/ {{
            proxy_pass http://127.0.0.1:{unknowing}/;
            proxy_set_header X-Forwarded-Prefix /models/ner;
        }}
    }}
}}
"""
)
PROXIES = ("leaves", "removes", "tells")
QUESTION = {"instances": ["Hello world"]}


@pytest.fixture(scope="module")
def servers(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ServerProcess]]:
    """One that knows its prefix, and one that does not."""
    launch = [sys.executable, str(ROOT / "launch.py"), "--http_port={port}"]
    launch += [f"--model_dir={model_folder('bert', 'text_embedding')}"]
    started = [
        ServerProcess([*launch, *words], tmp_path_factory.mktemp("home")) for words in ([f"--root_path={PREFIX}"], [])
    ]
    try:
        for server in started:
            server.wait_until("/readyz", 200)
        yield started
    finally:
        for server in started:
            server.terminate()


@pytest.fixture(scope="module")
def nginx(servers: list[ServerProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URL of the prefix, by what the proxy does with it."""
    folder, ports = tmp_path_factory.mktemp("nginx"), {name: free_port() for name in PROXIES}
    knowing, unknowing = (server.port for server in servers)
    configuration = NGINX.format(folder=folder, knowing=knowing, unknowing=unknowing, **ports)
    urls = {name: f"http://127.0.0.1:{port}{PREFIX}" for name, port in ports.items()}
    with run_nginx(folder, configuration, f"{urls[PROXIES[-1]]}/readyz"):
        yield urls


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("page", ["/docs", "/docs/"])
def test_the_page_finds_all_that_it_refers_to(proxy: str, page: str, nginx: dict[str, str]) -> None:
    shown = httpx.get(nginx[proxy] + page)
    assert shown.status_code == 200
    links = re.findall(r'(?:href|src|url)[=:] ?"([^"]+)"', shown.text)
    found = {link.rpartition("/")[2]: httpx.get(urljoin(str(shown.url), link)) for link in links}
    assert {name: (answer.status_code, answer.headers["content-type"]) for name, answer in found.items()} == {
        "swagger-ui.css": (200, "text/css; charset=utf-8"),
        "favicon-light-32x32.png": (200, "image/png"),
        "swagger-ui-bundle.js": (200, "text/javascript; charset=utf-8"),
        "openapi.json": (200, "application/json"),
    }


@pytest.mark.parametrize("proxy", PROXIES)
def test_the_document_says_where_to_call(proxy: str, nginx: dict[str, str]) -> None:
    at = f"{nginx[proxy]}/openapi.json"
    [server] = httpx.get(at).json()["servers"]
    called = urljoin(at, server["url"]) + "/v1/models/model:predict"
    assert called == f"{nginx[proxy]}/v1/models/model:predict"
    assert len(httpx.post(called, json=QUESTION).json()["predictions"]) == 1


@pytest.mark.parametrize("proxy", PROXIES)
@pytest.mark.parametrize("path", ["/v1/models", "/v2/models/model", "/openai/v1/models", "/schema.json", "/metrics"])
def test_no_path_is_redirected(proxy: str, path: str, nginx: dict[str, str]) -> None:
    """With a slash at its end or without one, BentoML's own paths among them."""
    plain, slashed = (httpx.get(f"{nginx[proxy]}{path}{end}") for end in ("", "/"))
    assert (plain.status_code, slashed.status_code) == (200, 200)
    assert slashed.headers["content-type"] == plain.headers["content-type"]


def test_probes_need_no_prefix(servers: list[ServerProcess]) -> None:
    knowing, unknowing = servers
    # To a server that does not know the prefix, it is the path of a model, which takes POST.
    for path, statuses in (("/readyz", (200, 200)), (f"{PREFIX}/readyz", (200, 405))):
        assert tuple(httpx.get(server.url + path).status_code for server in (knowing, unknowing)) == statuses


@pytest.mark.parametrize(("prefix", "servers_listed"), [("/team/ner", [{"url": "/team/ner"}]), ("//evil", None)])
def test_the_header_of_a_client_changes_links_alone(
    prefix: str, servers_listed: list[dict[str, str]] | None, servers: list[ServerProcess]
) -> None:
    _, unknowing = servers
    headers = {"x-forwarded-prefix": prefix}
    assert httpx.get(f"{unknowing.url}/openapi.json", headers=headers).json().get("servers") == servers_listed
    assert httpx.get(f"{unknowing.url}{prefix}/v1/models", headers=headers).status_code == 404
