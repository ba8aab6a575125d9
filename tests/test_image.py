"""The image of a Bento, really built by buildah and really run: `make test-image`, as root, without a daemon.

FLAVOR is which one. Where the registry of Docker's images cannot be reached, debootstrap makes a stand-in for its Python.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from demo.smollm import main as write_smollm
from tests.conftest import ModelFolder
from tests.servers import BENTOML, ROOT, ServerProcess, free_port

pytestmark = pytest.mark.image

FLAVOR = os.environ.get("FLAVOR", "encoder-cpu")
BASE = "docker.io/library/python:3.11-slim"
IMAGE = f"localhost/huggingface-runtime-{FLAVOR}:test"
DROP_IN = f"{IMAGE}-kserve"
# Where there is no daemon there is no namespace either.
ISOLATION = ["--isolation=chroot"]
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
NAMED = {"SAFETENSORS_FAST_GPU": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

Run = Callable[..., ServerProcess]


def run(*command: str, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Docker's Python in buildah's store."""
    if not shutil.which("buildah"):
        pytest.skip("buildah is not installed: apt-get install buildah")
    found = subprocess.run(["buildah", "images", "-q", BASE], capture_output=True, text=True, check=False)
    if found.returncode == 0 and found.stdout:
        return BASE
    if subprocess.run(["buildah", "pull", BASE], capture_output=True, check=False).returncode == 0:
        return BASE
    root = tmp_path_factory.mktemp("base") / "root"
    include = "--include=ca-certificates,python3,python3-venv,python3-pip"
    run("debootstrap", "--variant=minbase", include, "bookworm", str(root))
    # As Docker's own: pip may install, apt keeps nothing.
    for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        mark.unlink()
    (root / "usr/bin/python").symlink_to("python3")
    (root / "etc/apt/apt.conf.d/clean").write_text('DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };\n')
    shutil.rmtree(root / "var/cache/apt/archives")
    (root / "var/cache/apt/archives/partial").mkdir(parents=True)
    # What this machine trusts, the container trusts.
    shutil.copyfile(AUTHORITIES, root / AUTHORITIES.relative_to("/"))
    container = run("buildah", "from", "scratch")
    run("buildah", "add", container, str(root), "/")
    run("buildah", "config", f"--env=SSL_CERT_FILE={AUTHORITIES}", container)
    run("buildah", "commit", "--rm", container, BASE)
    return BASE


@pytest.fixture(scope="module")
def image(base: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image of a Bento that is built now; TORCH_WHEELS may be a folder of this machine."""
    home = str(tmp_path_factory.mktemp("home"))
    started = time.monotonic()
    tag = run(sys.executable, "-m", "deploy.bento.build", FLAVOR, BENTOML_HOME=home)
    built = time.monotonic()
    options = ["isolation=chroot", "network=host", "pull-never"]
    if wheels := os.environ.get("TORCH_WHEELS"):
        options.append(f"build-arg=TORCH_WHEELS={wheels}")
        if Path(wheels).is_dir():
            options.append(f"volume={wheels}:{wheels}:ro")
    run(
        *BENTOML, "containerize", tag, "--backend=buildah", f"--image-tag={IMAGE}", *(f"--opt={each}" for each in options),
        BENTOML_HOME=home,
    )  # fmt: skip
    size = run("buildah", "images", "--format={{.Size}}", IMAGE)
    sys.stderr.write(
        f"\nBento in {built - started:.0f} s, image in {time.monotonic() - built:.0f} s, {size} on {base}\n"
    )
    yield IMAGE
    run("buildah", "rmi", "--force", IMAGE)


@pytest.fixture(scope="module")
def drop_in(image: str) -> Iterator[str]:
    """The image for manifests of which only the image line is changed."""
    run(
        "buildah",
        "build",
        *ISOLATION,
        "--pull-never",
        f"--build-arg=BENTO={image}",
        f"--tag={DROP_IN}",
        "deploy/kserve",
    )
    yield DROP_IN
    run("buildah", "rmi", "--force", DROP_IN)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Run]:
    """`start(image, "--model_name=m", mounts={folder: "/mnt/models"}, RUNTIME_X="...")`: a container of the image."""
    containers: list[str] = []
    servers: list[ServerProcess] = []

    def make(image: str, *words: str, mounts: dict[Path, str] | None = None, **environment: str) -> ServerProcess:
        for folder in mounts or {}:
            for path in (folder, *folder.rglob("*")):
                # The container's user is not this one.
                path.chmod(0o755)
        container = run("buildah", "from", "--pull-never", image)
        containers.append(container)
        command = [
            "buildah", "run", *ISOLATION, *(f"--volume={folder}:{to}:ro" for folder, to in (mounts or {}).items()),
            f"--env=RUNTIME_GRPC_PORT={free_port()}",
            *(f"--env={name}={value}" for name, value in environment.items()), container, "--",
            *configuration(image)["Entrypoint"], *words,
        ]  # fmt: skip
        servers.append(ServerProcess(command, tmp_path))
        return servers[-1]

    yield make
    for server in servers:
        server.terminate()
    for container in containers:
        run("buildah", "rm", container)


def configuration(image: str) -> dict[str, Any]:
    inspected: dict[str, Any] = json.loads(run("buildah", "inspect", "--type=image", image))["OCIv1"]["config"]
    return inspected


def first_process(server: ServerProcess) -> psutil.Process:
    """What a container's runtime would send its signals to."""
    [first] = [
        child
        for child in psutil.Process(server.pid).children(recursive=True)
        if "buildah" not in child.cmdline()[0] and "buildah" in child.parent().cmdline()[0]
    ]
    return first


def test_the_image_says_who_it_is(image: str) -> None:
    assert FLAVOR in image
    config = configuration(image)
    environment = dict(each.split("=", 1) for each in config["Env"])
    assert NAMED.items() <= environment.items()
    assert config["User"] == "bentoml"


@pytest.mark.parametrize(
    ("task", "text", "prediction"),
    [
        ("sequence_classification", "Hello world", int),
        ("token_classification", "Hello world", list),
        ("fill_mask", "Hello [MASK]", str),
    ],
)
def test_it_answers_the_three_tasks(
    task: str, text: str, prediction: type, image: str, start: Run, model_folder: ModelFolder
) -> None:
    """As BentoML starts it, configured by environment."""
    model = model_folder("bert", task)
    server = start(image, "--port={port}", mounts={model: "/model"}, RUNTIME_MODEL_DIR="/model", RUNTIME_MODEL_NAME="m")
    server.wait_until("/v2/health/ready", 200)
    answer = httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": [text]}).json()
    assert [type(each) for each in answer["predictions"]] == [prediction]
    [worker] = server.worker_environments()
    assert NAMED.items() <= worker.items()
    assert first_process(server).uids().effective == 1034


def test_kserve_s_manifest_starts_it(drop_in: str, start: Run, model_folder: ModelFolder) -> None:
    """KServe's arguments and mount, nothing else; an operator's environment wins."""
    assert configuration(drop_in)["User"] == "1034"
    server = start(
        drop_in, "--model_name=ner", "--http_port={port}", "--return_probabilities", "--max-threads=8",
        mounts={model_folder("bert", "token_classification"): "/mnt/models"}, SAFETENSORS_FAST_GPU="0",
    )  # fmt: skip
    server.wait_until("/v2/health/ready", 200)
    answer = httpx.post(f"{server.url}/v1/models/ner:predict", json={"instances": ["Hello"]}).json()
    assert set(answer["predictions"][0][0]) == {"0", "1", "2", "3", "4"}
    [worker] = server.worker_environments()
    assert worker["SAFETENSORS_FAST_GPU"] == "0"
    assert server.output.count("max_threads") == 1


def test_it_completes(image: str, start: Run, tmp_path: Path) -> None:
    """On vLLM where the flavour has it."""
    write_smollm(tmp_path / "smollm")
    server = start(
        image, "huggingface-runtime", "--model_name=smollm", "--http_port={port}", "--max_model_len=1024",
        *(["--kv-cache-memory-bytes=512M"] if FLAVOR == "cpu" else []), mounts={tmp_path / "smollm": "/mnt/models"},
    )  # fmt: skip
    server.wait_until("/v2/health/ready", 200, seconds=400)
    answer = httpx.post(
        f"{server.url}/openai/v1/completions", timeout=60,
        json={"model": "smollm", "prompt": "The capital of France is", "max_tokens": 2, "temperature": 0},
    ).json()  # fmt: skip
    assert answer["choices"][0]["text"] == " Paris."
    assert ("vllm" in httpx.get(f"{server.url}/metrics").text) == (FLAVOR == "cpu")


def test_sigterm_ends_it_after_what_is_under_way(image: str, start: Run, model_folder: ModelFolder) -> None:
    model = model_folder("bert", "token_classification", hidden_size=512, num_hidden_layers=8, intermediate_size=2048)
    server = start(image, "huggingface-runtime", "--http_port={port}", mounts={model: "/mnt/models"})
    server.wait_until("/v2/health/ready", 200)
    body = {"instances": ["word " * 100] * 200}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, f"{server.url}/v1/models/model:predict", json=body, timeout=60)
        while "runtime_running_texts" not in (text := httpx.get(f"{server.url}/metrics").text) or not running(text):
            assert not answer.done(), "it was over before it could be interrupted"
            time.sleep(0.01)
        first_process(server).send_signal(signal.SIGTERM)
        assert len(answer.result().json()["predictions"]) == 200
    assert server.wait_for_exit(30) == 0


def running(metrics: str) -> bool:
    lines = [line for line in metrics.splitlines() if line.startswith("runtime_running_texts{")]
    return any(float(line.rpartition(" ")[2]) > 0 for line in lines)


def test_a_missing_model_ends_it(image: str, start: Run) -> None:
    server = start(image, "huggingface-runtime", "--http_port={port}")
    assert server.wait_for_exit(60) != 0
    assert server.output.count("error: cannot serve model: there is no folder /mnt/models") == 1
    assert "Traceback" not in server.output
