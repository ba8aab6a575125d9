"""An nginx in front of the servers of tests, which runs as any user, in the foreground."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.debian import ENVIRONMENT, find_program
from tests.waiting import wait_until

# To be formatted with `folder`, where nginx writes; the block `http` is to be continued and closed.
NGINX_START = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
"""


@contextmanager
def run_nginx(folder: Path, configuration: str, probed_url: str) -> Iterator[None]:
    """Run nginx; it is up once the URL is answered with 200."""
    path = folder / "nginx.conf"
    path.write_text(configuration)
    process = subprocess.Popen(
        [str(find_program("nginx")), "-c", str(path)], env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: _answers(probed_url), 10)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
