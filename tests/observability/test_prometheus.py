"""A real Prometheus that scrapes a started server and evaluates every expression."""

from __future__ import annotations

import concurrent.futures
import contextlib
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import yaml

from runners.core.metric_families import list_families
from tests.conftest import GeneratorFolder, ModelFolder
from tests.debian import find_program, needs_program
from tests.observability.files import (
    RULES,
    Expression,
    alarm_expressions,
    alarms,
    all_expressions,
    fill_in,
    panel_expressions,
)
from tests.observability.promql import find_names
from tests.observability.test_expressions import PROMETHEUS, exposed_series
from tests.servers import BENTOML, ServerProcess, free_port

pytestmark = [pytest.mark.slow, needs_program("prometheus")]

# Prometheus takes from a target's series what it adds itself.
ADDED = {"__name__", "job", "instance"}
SECONDS_OF_TRAFFIC = 8.0


@dataclass(frozen=True)
class Prometheus:
    url: str

    def ask(self, path: str, **parameters: str) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query", query=expression)["result"]
        return found

    def wait_for(self, expression: str, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError, ValueError, AssertionError):
                if self.query(expression):
                    return
            time.sleep(0.2)
        raise AssertionError(f"nothing for {expression}")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, model_folder: ModelFolder, generator_folder: GeneratorFolder
) -> Iterator[ServerProcess]:
    home = tmp_path_factory.mktemp("server")
    models = [
        {"name": "classes", "model_dir": str(model_folder("bert", "sequence_classification"))},
        {"name": "chat", "model_dir": str(generator_folder("llama")), "backend": "huggingface"},
    ]
    path = home / "models.yaml"
    path.write_text(yaml.safe_dump({"models": models}))
    started = ServerProcess([*BENTOML, "serve", ".", "--port={port}", f"--arg=models_file={path}"], home)
    try:
        started.wait_until("/v2/health/ready", 200)
        yield started
    finally:
        started.terminate()


@pytest.fixture(scope="module")
def prometheus(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    folder, port, program = tmp_path_factory.mktemp("prometheus"), free_port(), find_program("prometheus")
    assert program is not None
    configuration = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {"job_name": "runtime", "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]},
        ],
    }
    path = folder / "prometheus.yaml"
    path.write_text(yaml.safe_dump(configuration))
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={path}", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        found = Prometheus(f"http://127.0.0.1:{port}")
        found.wait_for("runtime_server_ready == 1")
        send_traffic(server)
        # The counts of the last second are written within another.
        found.wait_for("sum(runtime_cancelled_requests_total) > 0")
        time.sleep(2)
        yield found
    finally:
        process.terminate()
        process.wait(30)


def send_traffic(server: ServerProcess) -> None:
    """Requests of some kinds for some seconds: a counter of which there is one sample has no rate."""
    end = time.monotonic() + SECONDS_OF_TRAFFIC
    jobs = (classify, generate, leave, ask_wrongly)

    def repeat(job: Any) -> None:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while time.monotonic() < end:
                job(client)

    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as threads:
        for done in [threads.submit(repeat, job) for job in jobs]:
            done.result()


def classify(client: httpx.Client) -> None:
    client.post("/v1/models/classes:predict", json={"instances": ["a text", "long " * 2000]}).raise_for_status()


def generate(client: httpx.Client) -> None:
    body = {"model": "chat", "prompt": "Hello", "max_tokens": 8}
    client.post("/openai/v1/completions", json=body).raise_for_status()


def leave(client: httpx.Client) -> None:
    """Send more than is computed until the time-out."""
    with contextlib.suppress(httpx.TimeoutException):
        client.post("/v1/models/classes:predict", json={"instances": ["long " * 400] * 64}, timeout=0.05)
    time.sleep(0.2)


def ask_wrongly(client: httpx.Client) -> None:
    assert client.post("/v1/models/classes:predict", json={"instances": []}).status_code == 400
    time.sleep(0.2)


def test_the_server_exposes_what_the_tests_of_expressions_expect(prometheus: Prometheus) -> None:
    """The label names of each series are those of its family, whatever the format of the scrape."""
    expected = exposed_series()
    shown = {*prometheus.ask("label/__name__/values")}
    for family in list_families():
        name = f"{family.name}_bucket" if family.kind == "histogram" else family.name
        if name.startswith("request_explain"):
            continue
        assert name in shown
        labels: set[str] = set().union(*({*series["metric"]} for series in prometheus.query(name)))
        assert labels - ADDED == {*family.labels} | ({"le"} if family.kind == "histogram" else set()), name
        assert labels - {"__name__"} <= expected[name]


@pytest.mark.parametrize("expression", all_expressions(), ids=lambda expression: expression.where)
def test_expressions_are_evaluated(prometheus: Prometheus, expression: Expression) -> None:
    prometheus.query(fill_in(expression.text))


@pytest.mark.parametrize("expression", panel_expressions(), ids=lambda expression: expression.where)
def test_panels_show_something(prometheus: Prometheus, expression: Expression) -> None:
    """Each has values for a server with traffic, each with the labels of its legend."""
    found = prometheus.query(fill_in(expression.text))
    assert found
    assert all(expression.legends <= {*series["metric"]} for series in found)


def test_a_healthy_server_sets_off_no_alarm(prometheus: Prometheus) -> None:
    """Some may be pending: they would fire if this traffic, of which much is too long or cancelled, went on."""
    states = {
        rule["name"]: (rule["health"], rule["state"])
        for group in prometheus.ask("rules")["groups"]
        for rule in group["rules"]
    }
    assert states.keys() == {rule["alert"] for rule in alarms()}
    assert {*states.values()} <= {("ok", "inactive"), ("ok", "pending")}


def test_every_metric_of_an_alarm_can_be_scraped(prometheus: Prometheus) -> None:
    shown = {*prometheus.ask("label/__name__/values")}
    asked = {metric for each in alarm_expressions() for metric, _ in find_names(each.text).metrics}
    assert asked - shown <= {*PROMETHEUS}
