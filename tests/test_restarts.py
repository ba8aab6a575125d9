"""Rolling restarts behind a real proxy, which loses no request; `make test-restarts` runs them alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.callers import HttpCallers
from tests.conftest import GeneratorFolder, ModelFolder
from tests.debian import ENVIRONMENT, find_program, needs_program
from tests.nginx import NGINX_START
from tests.servers import ROOT, ServerProcess, free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.restarts]

CALLERS = 32
# So many of them read streams.
READERS = 4
STREAMED = {"model": "chat", "prompt": "a", "max_tokens": 50, "ignore_eos": True, "stream": True}
RESTARTS = 10
# The proxy asks for readiness every 200 ms, and waits for the answer as long as the manifests' probes do.
DELAY = 2
HAPROXY = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout check 5s
    option httpchk GET /readyz
    default-server check inter 200ms fall 1 rise 2
frontend all
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    server first 127.0.0.1:{first}
    server second 127.0.0.1:{second}
"""
# It has no health checks of its own: it asks the other server where one cannot be reached or answers 503.
NGINX = (
    NGINX_START
    + """
    upstream servers {{
        server 127.0.0.1:{first} max_fails=0;
        server 127.0.0.1:{second} max_fails=0;
        keepalive 32;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://servers;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_next_upstream error timeout http_503 non_idempotent;
        }}
    }}
}}
"""
)


class Rollout:
    """Two servers on ports that stay the same."""

    def __init__(self, models_file: Path, home: Path) -> None:
        self._words = [sys.executable, str(ROOT / "launch.py"), "--http_port={port}", f"--models_file={models_file}"]
        self._words += [f"--shutdown_delay_seconds={DELAY}", "--enable_grpc=false"]
        self._homes = home / "first", home / "second"
        for each in self._homes:
            each.mkdir()
        self.servers = [ServerProcess(self._words, each) for each in self._homes]
        for server in self.servers:
            server.wait_until("/readyz", 200)

    def restart(self, index: int) -> None:
        """Restart a server as an operator would, who waits until the new one is ready."""
        old = self.servers[index]
        os.kill(old.pid, signal.SIGTERM)
        assert old.wait_for_exit(60) == 0
        self.servers[index] = ServerProcess(self._words, self._homes[index], port=old.port)
        self.servers[index].wait_until("/readyz", 200)
        time.sleep(1)

    def end(self) -> None:
        for server in self.servers:
            server.terminate()


@pytest.fixture
def rollout(model_folder: ModelFolder, generator_folder: GeneratorFolder, tmp_path: Path) -> Iterator[Rollout]:
    models = [
        {"name": "mask", "model_dir": str(model_folder("bert", "fill_mask"))},
        {"name": "chat", "model_dir": str(generator_folder("llama"))},
    ]
    models_file = tmp_path / "models.json"
    models_file.write_text(json.dumps({"backend": "huggingface", "models": models}))
    made = Rollout(models_file, tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.mark.parametrize(
    ("proxy", "configuration"),
    [
        pytest.param("haproxy", HAPROXY, marks=needs_program("haproxy")),
        pytest.param("nginx", NGINX, marks=needs_program("nginx")),
    ],
)
def test_a_rolling_restart_loses_no_request(rollout: Rollout, tmp_path: Path, proxy: str, configuration: str) -> None:
    port = free_port()
    first, second = (server.port for server in rollout.servers)
    path = tmp_path / f"{proxy}.conf"
    path.write_text(configuration.format(port=port, first=first, second=second, folder=tmp_path))
    words = [str(find_program(proxy)), "-f" if proxy == "haproxy" else "-c", str(path)]
    process = subprocess.Popen(words, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _answers(f"{url}/readyz"), 10)
        with (
            HttpCallers(f"{url}/v1/models/mask:predict", {"instances": ["a [MASK]"]}, CALLERS - READERS) as callers,
            HttpCallers(f"{url}/v1/completions", STREAMED, READERS) as readers,
        ):
            for number in range(RESTARTS):
                before = callers.answered, readers.answered
                rollout.restart(number % 2)
                assert callers.answered > before[0]
                assert readers.answered > before[1]
        assert callers.failures == readers.failures == []
        assert [each.text for each in readers.outcomes if not each.text.endswith("data: [DONE]\n\n")] == []
        answered = f"{callers.answered} requests and {readers.answered} streams"
        print(f"{proxy}: {answered}, {RESTARTS} restarts, none lost")  # noqa: T201
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False
