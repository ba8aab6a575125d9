"""Starts in places that are not made for this server, and with models that are not what they should be."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import ModelFolder
from tests.containers import as_first_process, find_first_process
from tests.hub import Hub
from tests.restricted import UID, needs_root, restrict
from tests.servers import BENTOML, ROOT, ServerProcess, free_port
from tests.waiting import wait_until

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 438001234\n"
QUESTION = {"instances": ["Hello world"]}
# An empty file system over one of them must not hide this project or its interpreter.
FOLDERS = [
    folder
    for folder in ("/tmp", "/var/tmp", "/dev/shm")
    if not any(path.is_relative_to(folder) for path in (ROOT, Path(sys.executable)))
]
# Of the machine that the tests run on, which a container has not.
OWN_FOLDERS = ("BENTOML_HOME", "HF_HOME", "XDG_CACHE_HOME", "TMPDIR", "LOGNAME", "USER")


def without_folders() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OWN_FOLDERS}


# What takes seconds to import: a start that fails before it has failed at once, however slow the machine is.
SLOW_IMPORTS = {"torch", "transformers", "vllm", "safetensors", "tokenizers"}
SHOW_IMPORTS = {"PYTHONPROFILEIMPORTTIME": "1"}
IMPORT = re.compile(r"^import time:.*\| +(.+)\n", re.MULTILINE)


def launch(
    *words: str, prefix: Callable[[list[str]], list[str]] = list, environment: Mapping[str, str] | None = None
) -> tuple[set[str], int, str]:
    """The slow imports, the exit code and the errors of a start that should fail."""
    done = subprocess.run(
        prefix([sys.executable, "launch.py", f"--http_port={free_port()}", f"--grpc_port={free_port()}", *words]),
        cwd=ROOT, env=without_folders() | SHOW_IMPORTS | dict(environment or {}),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    return find_slow_imports(done.stderr), done.returncode, IMPORT.sub("", done.stderr)


def find_slow_imports(output: str) -> set[str]:
    imports = {*IMPORT.findall(output)}
    assert "argparse" in imports
    return imports & SLOW_IMPORTS


class Restricted(ServerProcess):
    """A server whose user has no name and no home, and can write to one folder."""

    def __init__(self, command: list[str], folder: str, log: Path, **environment: str) -> None:
        unset = ["env", *(f"--unset={name}" for name in OWN_FOLDERS), *(f"{n}={v}" for n, v in environment.items())]
        super().__init__(restrict([*unset, *command], folder), log)


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("folder", [FOLDERS[0], FOLDERS[-1]])
def test_any_user_on_a_root_that_cannot_be_written(folder: str, model_folder: ModelFolder, tmp_path: Path) -> None:
    # A folder that the file system over /tmp does not hide.
    model = Path(shutil.copytree(model_folder("bert", "text_embedding"), ROOT / f".start-model-{os.getpid()}"))
    try:
        command = [sys.executable, str(ROOT / "launch.py"), "--http_port={port}", f"--model_dir={model}", "--workers=2"]
        server = Restricted(command, folder, tmp_path)
        try:
            server.wait_until("/v2/health/ready", 200)
            wait_until(lambda: server.output.count("model is ready") == 2, seconds=60)
            assert len(httpx.post(f"{server.url}/v1/models/model:predict", json=QUESTION).json()["predictions"]) == 1
            assert "runtime_running_texts" in httpx.get(f"{server.url}/metrics").text
            assert psutil.Process(server.pid).uids().effective == UID
            home = f"{folder}/huggingface-runtime-home-{UID}"
            assert server.output.count(f"HOME=/, BENTOML_HOME=/bentoml cannot be written; instead HOME={home}, ") == 1
            assert "Traceback" not in server.output
        finally:
            assert server.terminate() == 0
    finally:
        shutil.rmtree(model)


@dataclass(frozen=True, slots=True)
class Image:
    """A Bento as its image has it, but for the packages.

    Attributes:
        command: the image's entry point.
        environment: the image's variables, and a model.
        store: BENTOML_HOME.
    """

    command: list[str]
    environment: dict[str, str]
    store: Path


@pytest.fixture(scope="module")
def image(model_folder: ModelFolder) -> Iterator[Image]:
    store = ROOT / f".start-store-{os.getpid()}"
    try:
        model = shutil.copytree(model_folder("bert", "text_embedding"), store / "model")
        built = subprocess.run(
            [*BENTOML, "build", "-f", "deploy/bento/encoder-cpu.yaml", ".", "--output=tag"], cwd=ROOT,
            env=os.environ | {"BENTOML_HOME": str(store)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        bento = store / "bentos" / Path(*built.stdout.strip().removeprefix("__tag__:").split(":"))
        lines = (bento / "env/docker/Dockerfile").read_text().splitlines()
        [write] = [line for line in lines if line.startswith("RUN echo") and "huggingface-runtime-folders.sh" in line]
        script = store / "folders.sh"
        target = "/usr/local/lib/huggingface-runtime-folders.sh"
        subprocess.run(["sh", "-c", write.removeprefix("RUN ").replace(target, str(script))], check=True)
        yield Image(
            ["bash", str(bento / "env/docker/entrypoint.sh")],
            {
                "BASH_ENV": str(script), "BENTO_PATH": str(bento), "BENTOML_HOME": str(store),
                "RUNTIME_MODEL_DIR": str(model), "BENTOML_CONTAINERIZED": "true",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            store,
        )  # fmt: skip
    finally:
        shutil.rmtree(store, ignore_errors=True)


@needs_root
@pytest.mark.slow
def test_the_image_s_entry_point_chooses_too(image: Image, tmp_path: Path) -> None:
    """bash reads the script of the image before the entry point that BentoML writes."""
    server = Restricted([*image.command, "--port={port}"], FOLDERS[0], tmp_path, **image.environment)
    try:
        server.wait_until("/v2/health/ready", 200)
        assert httpx.post(f"{server.url}/v1/models/model:predict", json=QUESTION).status_code == 200
        assert f"BENTOML_HOME={image.store} cannot be written; instead" in server.output
    finally:
        assert server.terminate() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "held"),
    [([], True), (["serve"], True), (["--port=3000"], True), (["serve", "--port=3000"], True), (["other"], False)],
)
def test_the_image_s_entry_point_holds_signals_back(image: Image, words: list[str], held: bool, tmp_path: Path) -> None:
    """Until BentoML has handlers; another command is left alone."""
    for name in ("bentoml", "other"):
        program = tmp_path / name
        program.write_text(f"#!{sys.executable}\nimport signal\nprint(signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n")
        program.chmod(0o755)
    done = subprocess.run(
        as_first_process([*image.command, *words]), cwd=tmp_path, capture_output=True, text=True, check=True,
        env=os.environ | image.environment | {"PATH": f"{tmp_path}:{image.environment['PATH']}"},
    )  # fmt: skip
    assert done.stdout == f"{ ({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT} if held else set()) }\n"


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_the_image_s_entry_point_heeds_a_signal_at_once(image: Image, seconds: float, tmp_path: Path) -> None:
    """As PID 1 of a container, to which the kernel sends no signals without a handler."""
    server = ServerProcess(as_first_process(image.command), tmp_path, image.environment)
    try:
        # Before bash has read its first line, nothing can hold a signal back.
        first = find_first_process(server.pid)
        time.sleep(seconds)
        first.terminate()
        assert server.wait_for_exit(15) == 0
    finally:
        server.terminate()


@needs_root
def test_where_nothing_can_be_written_a_line_says_what_to_set() -> None:
    slow_imports, code, errors = launch("--model_dir=/nowhere", prefix=restrict)
    assert (code, slow_imports) == (1, set())
    assert errors.startswith(f"error: there is no folder that user {UID} can write to (tried /tmp, /var/tmp, ")
    assert errors.endswith(": mount one, such as an emptyDir at /tmp, or set TMPDIR to one\n")


def write_model(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    return folder


CONFIG = json.dumps({"architectures": ["BertModel"], "model_type": "bert"})


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        (None, [], "there is no folder {folder}: set --model_id to a hub id or a folder, or --model_dir to a folder"),
        ({}, [], "the folder {folder} holds no config.json, so it is not a Hugging Face model"),
        ({"config__json": "{"}, [], "{folder}/config.json is no JSON: "),
        ({"config__json": "[1]"}, [], "the model's config.json is no JSON object"),
        ({"config__json": CONFIG}, [], "{folder} has no weights: no *.safetensors"),
        ({"config__json": CONFIG, "pytorch_model__bin": ""}, [], "{folder} has no safetensors weights, but pytorch_model.bin: --allow_pickle loads .bin weights, which can run code"),
        ({"config__json": CONFIG, "model__safetensors": POINTER}, [], "{folder} cannot be loaded: there are Git LFS pointers in place of model.safetensors; `git lfs pull` fetches the files"),
        ({"config__json": POINTER}, [], "{folder} cannot be loaded: there are Git LFS pointers in place of config.json; `git lfs pull` fetches the files"),
        ({"config__json": CONFIG, "model__safetensors__index__json": '{"weight_map": {"a": "model-1.safetensors"}}'}, [], "{folder}/model.safetensors.index.json names model-1.safetensors, and there is no such file"),
        ({"adapter_config__json": "{}"}, [], "{folder} holds an adapter_config.json: it is a PEFT adapter"),
    ],
)  # fmt: skip
def test_a_wrong_model_is_said_at_once(
    files: dict[str, str] | None, words: list[str], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    if files is not None:
        write_model(folder, **files)
    models_file = tmp_path / "models.yaml"
    models_file.write_text(f"models:\n  - {{name: ner, model_dir: {folder}}}\n")
    expected = message.replace("{folder}", str(folder))
    for arguments, where in (
        ([f"--model_dir={folder}"], "model"),
        ([f"--models_file={models_file}"], f"ner ({models_file}:2)"),
    ):
        slow_imports, code, errors = launch(*arguments, *words)
        assert (code, errors.count("\n")) == (1, 1)
        assert errors.startswith(f"error: cannot serve {where}: {expected}")
        assert not slow_imports


def test_a_wrong_model_of_a_repository(tmp_path: Path) -> None:
    write_model(tmp_path / "ner", config__json=CONFIG)
    slow_imports, code, errors = launch(f"--model_repository={tmp_path}")
    assert (code, slow_imports) == (1, set())
    assert errors == f"error: cannot serve ner ({tmp_path}/ner): {tmp_path}/ner has no weights: no *.safetensors\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        # The server's own files come before the models.
        (["--ssl_certfile=/none", "--ssl_keyfile=/none"], "ssl_certfile is /none, and there is no such file"),
        (["--api_key_file=/none"], "api_key_file is /none, which cannot be used: No such file or directory"),
        (["--models_file=/none.yaml"], "/none.yaml cannot be read: No such file or directory"),
        (["--host=192.0.2.1"], "192.0.2.1 is not an address of this machine: set --host to one, or to 0.0.0.0 for all"),
        (["--host=2001:db8::1"], "2001:db8::1 is not an address of this machine: set --host to one, or to 0.0.0.0 for all"),
        (["--http_port=23456", "--grpc_port=23456"], "http_port and grpc_port are both 23456, but HTTP and gRPC need a port each: set --http_port or --grpc_port to another, or --enable_grpc=false"),
        (["--model_name=a\nb"], "argument model_name (from the command line) is 'a\\nb': it must have no control characters"),
        (["--served_model_name=\"a\x1b\""], "served_model_name has 'a\\x1b': it must have no control characters"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_server_is_said_first(words: list[str], message: str) -> None:
    slow_imports, code, errors = launch("--model_dir=/nowhere", *words)
    if "--models_file=/none.yaml" in words:
        slow_imports, code, errors = launch(*words)
    assert (code, errors) == (1, f"error: {message}\n")
    assert not slow_imports


def test_a_name_with_control_characters_in_a_models_file(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text('models:\n  - {name: "a\\tb", model_dir: /nowhere}\n')
    assert "'a\\tb': it must have no control characters" in launch(f"--models_file={file}")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("owner/gated", "owner/gated is gated: accept its terms at {hub}/owner/gated, and set HF_TOKEN to the token of an account with access"),
        ("owner/none", "there is no model owner/none on the hub ({hub}/owner/none), or it is private and HF_TOKEN is not set to a token that has access to it"),
    ],
)  # fmt: skip
def test_a_model_that_the_hub_refuses(model: str, message: str, tmp_path: Path) -> None:
    with Hub({"config.json": b"{}"}) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        _, code, errors = launch(f"--model_id={model}", environment=environment)
        assert code == 1
        assert errors.splitlines()[-1] == f"error: cannot serve model: {message.replace('{hub}', hub.url)}"


def test_offline(tmp_path: Path) -> None:
    slow_imports, code, errors = launch(
        "--model_id=owner/none", environment={"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    )
    assert (code, slow_imports) == (1, set())
    assert errors == (
        "error: cannot serve model: HF_HUB_OFFLINE is set, and owner/none is not complete in the cache "
        f"{tmp_path}/hub: unset HF_HUB_OFFLINE to download it, or set HF_HOME to the cache that has it\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arg", "model_dir=/nowhere"], "error: cannot serve model: there is no folder /nowhere: set "),
        (["--arg", "grpc_port={port}"], "error: http_port and grpc_port are both "),
    ],
)
def test_bentoml_serve_says_it_at_once_too(tmp_path: Path, words: list[str], message: str) -> None:
    command = [*BENTOML, "serve", str(ROOT), "--port={port}", *words]
    server = ServerProcess(command, tmp_path, SHOW_IMPORTS)
    try:
        # BentoML's own command line wins over the environment's port of gRPC.
        assert server.wait_for_exit(60) == 1
        assert message in server.output
        assert "Service huggingface_runtime initialized" not in server.output
        assert not find_slow_imports(server.output)
    finally:
        server.terminate()
