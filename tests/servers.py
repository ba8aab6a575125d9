"""Real servers for the slow tests: a command, its port, its output."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
BENTOML = [sys.executable, "-m", "bentoml"]
# It pins what the server does not, so that it has an environment of its own; `make test` makes it.
MLSERVER = ROOT / ".venv-mlserver" / "bin" / "mlserver"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class ServerProcess:
    """`command` run with PORT in its environment; `{port}` in its words is the port too."""

    def __init__(
        self,
        command: Sequence[str] | str,
        home: Path,
        environment: dict[str, str] | None = None,
        folder: Path = ROOT,
        port: int | None = None,
    ) -> None:
        """
        Args:
            port: where it listens for HTTP; None for a free port.
        """
        self.port = port or free_port()
        self.grpc_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = home / f"server-{self.port}.log"
        words = shlex.split(command) if isinstance(command, str) else command
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [word.replace("{port}", str(self.port)) for word in words],
                cwd=folder,
                # BentoML writes to its home.
                env={
                    **os.environ,
                    "BENTOML_HOME": str(home / "bentoml"),
                    "PORT": str(self.port),
                    "RUNTIME_GRPC_PORT": str(self.grpc_port),
                }
                | (environment or {}),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return self._log.read_text()

    def wait_until(self, path: str, status: int, seconds: float = 120) -> None:
        """Wait until GET `path` answers with `status`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                if httpx.get(self.url + path, timeout=5).status_code == status:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"no {status} from {path}; the server said:\n{self.output}")

    def worker_environments(self) -> list[dict[str, str]]:
        """The environment of each process that serves."""
        children = psutil.Process(self.pid).children(recursive=True)
        return [child.environ() for child in children if "worker.service" in " ".join(child.cmdline())]

    def wait_for_exit(self, seconds: float = 120) -> int:
        return self._process.wait(seconds)

    def terminate(self) -> int:
        """Stop the server as an operator would, then whatever is left of it."""
        try:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            return self._process.wait(30)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)


@contextlib.contextmanager
def serve(home: Path, *arguments: str, seconds: float = 120, port: int | None = None) -> Iterator[ServerProcess]:
    """A server that is ready, and that has to end well.

    Args:
        home: the folder of what it writes.
        arguments: this server's, such as "model_dir=folder".
        seconds: how long it may take to be ready.
        port: where it listens for HTTP; None for a free port.
    """
    words = [f"--arg={argument}" for argument in arguments]
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", *words], home, port=port)
    try:
        server.wait_until("/v2/health/ready", 200, seconds)
        yield server
    finally:
        assert server.terminate() == 0


@contextlib.contextmanager
def serve_models(
    home: Path, models: Mapping[str, Mapping[str, Any]], *, port: int | None = None, **settings: Any
) -> Iterator[ServerProcess]:
    """A server of several models.

    Args:
        home: the folder of what it writes.
        models: the arguments of each model by its name.
        port: where it listens for HTTP; None for a free port.
        settings: further keys of the models file.
    """
    listed = [{"name": name, **arguments} for name, arguments in models.items()]
    (home / "models.json").write_text(json.dumps({**settings, "models": listed}, default=str))
    with serve(home, f"models_file={home}/models.json", port=port) as server:
        yield server
