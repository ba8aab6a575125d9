"""Where the playground is: at its own path, at the root for browsers, and below the prefixes of proxies."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.browser import needs_browser
from tests.debian import needs_program
from tests.nginx import NGINX_START, run_nginx
from tests.playground.conftest import MODELS, OpenWorkbench
from tests.playground.workbench import press
from tests.servers import ServerProcess, free_port

pytestmark = [pytest.mark.slow, needs_browser()]

PREFIX = "/team/models"
NGINX = (
    NGINX_START
    + """
    server {{
        listen 127.0.0.1:{port};
        location /team/models/ {{ proxy_pass http://127.0.0.1:{server}/; proxy_buffering off; }}
        location = /team/models {{ proxy_pass http://127.0.0.1:{server}/; }}
        location /playground/ {{ proxy_pass http://127.0.0.1:{server}/; proxy_buffering off; }}
    }}
}}
"""
)


@pytest.mark.parametrize("path", ["/", "/playground", "/playground/"])
def test_the_page_finds_the_server(path: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server, path)
    bench.open("sentiment")
    bench.send()
    expect(bench.fact("Latency")).to_contain_text("ms")
    assert bench.exchanges[-1].path == "/models/sentiment"
    assert bench.open_reference() == f"{server.url}/docs"


def test_clients_that_are_no_browsers_get_at_the_root_what_they_got_before(server: ServerProcess) -> None:
    answer = httpx.get(server.url)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


def test_the_address_keeps_the_chosen_model(workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server)
    bench.open()
    expect(bench.page.locator("#models").get_by_role("radio")).to_have_count(len(MODELS))
    bench.choose("qa")
    bench.page.reload()
    expect(bench.model("qa")).to_be_checked()


def test_inputs_and_answers_stay_while_the_user_looks_at_other_models(
    workbenches: OpenWorkbench, server: ServerProcess
) -> None:
    bench = workbenches(server)
    bench.open("sentiment")
    bench.field("Text").fill("Boring.")
    bench.send()
    expect(bench.fact("Input")).to_be_visible()
    shown = bench.answer.inner_text()
    bench.choose("qa")
    bench.choose("sentiment")
    expect(bench.field("Text")).to_have_value("Boring.")
    assert bench.answer.inner_text() == shown


@pytest.mark.parametrize("system", ["light", "dark"])
def test_colours_follow_the_system_or_the_user(system: str, workbenches: OpenWorkbench, server: ServerProcess) -> None:
    bench = workbenches(server, color_scheme=system)
    bench.open()
    assert scheme(bench.page) == system
    for chosen in ("Light", "Dark"):
        press(bench.page.get_by_role("radio", name=chosen, exact=True))
        assert scheme(bench.page) == chosen.lower()
        bench.page.reload()
        assert scheme(bench.page) == chosen.lower()
    press(bench.page.get_by_role("radio", name="Auto", exact=True))
    assert scheme(bench.page) == system


def scheme(page: Page) -> str:
    lightness = page.evaluate(
        """() => {
          const context = document.createElement("canvas").getContext("2d");
          context.fillStyle = getComputedStyle(document.body).backgroundColor;
          context.fillRect(0, 0, 1, 1);
          return context.getImageData(0, 0, 1, 1).data[1];
        }"""
    )
    return "light" if lightness > 127 else "dark"


@pytest.fixture(scope="module")
def proxy(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an nginx that serves the server below a prefix."""
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    url = f"http://127.0.0.1:{port}"
    with run_nginx(folder, NGINX.format(folder=folder, port=port, server=server.port), f"{url}{PREFIX}/readyz"):
        yield url


@needs_program("nginx")
@pytest.mark.parametrize("path", ["/playground/", "/playground/playground", "/playground/playground/"])
def test_below_a_prefix_of_the_same_name(
    path: str, workbenches: OpenWorkbench, proxy: str, server: ServerProcess
) -> None:
    bench = workbenches(server, path, url=proxy)
    bench.open("sentiment")
    bench.send()
    assert bench.exchanges[-1].path == "/playground/models/sentiment"


@needs_program("nginx")
@pytest.mark.parametrize("path", ["", "/", "/playground", "/playground/"])
def test_below_the_prefix_of_a_proxy(path: str, workbenches: OpenWorkbench, proxy: str, server: ServerProcess) -> None:
    bench = workbenches(server, PREFIX + path, url=proxy)
    bench.open("sentiment")
    bench.send()
    assert bench.exchanges[-1].path.startswith(f"{PREFIX}/models/sentiment")
    code = bench.show_code("curl")
    assert f"{proxy}{PREFIX}/models/sentiment" in code
    subprocess.run(["bash", "-ec", code.replace("curl -s", "curl -sf")], check=True, stdout=subprocess.DEVNULL)
    assert bench.open_reference() == f"{proxy}{PREFIX}/docs"
