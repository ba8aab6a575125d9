from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import psutil
import pytest

from launch import plan_launch
from runners.core.argument_groups import LaunchArguments
from runners.core.argument_names import WITHOUT_EFFECT
from runners.core.argument_sources import LAUNCH_VARIABLE, read_arguments
from runners.core.arguments import GROUPS
from runners.core.errors import ArgumentsError
from runners.hosting.ports import check_port
from tests.conftest import GeneratorFolder, ModelFolder
from tests.servers import BENTOML, ROOT, ServerProcess
from tests.waiting import wait_until

# contract/kserve.md 1.1 and 1.2, with a value that manifests may have; None is a flag that stands alone.
KSERVE_FLAGS: dict[str, str | None] = {
    "http_port": "8080", "grpc_port": "8081", "workers": "1", "max_threads": "4", "max_asyncio_workers": "8",
    "enable_grpc": "false", "enable_docs_url": "True", "enable_latency_logging": "n", "configure_logging": "y",
    "log_config_file": "/etc/log.yaml", "access_log_format": "%(h)s", "event_loop": "uvloop",
    "timeout_keep_alive": "65", "model_name": "m", "predictor_host": "triton:8001", "protocol": "v1",
    "predictor_protocol": "grpc-v2", "predictor_use_ssl": "true", "predictor_request_timeout_seconds": "60",
    "grpc_max_send_message_length": "8388608", "grpc_max_receive_message_length": "8388608",
    "predictor_request_retries": "1", "enable_predictor_health_check": None, "ssl_certfile": "/c", "ssl_keyfile": "/k",
    "model_dir": "/mnt/models", "model_id": "a/b", "model_revision": "main", "tokenizer_revision": "main",
    "max_length": "128", "max_model_len": "128", "disable_lower_case": None, "disable_special_tokens": None,
    "trust_remote_code": None, "tensor_input_names": "input_ids,attention_mask", "backend": "huggingface",
    "return_token_type_ids": None, "return_offsets_mapping": None, "return_probabilities": None,
    "return_raw_logits": None, "disable_log_requests": None, "task": "fill_mask", "max_log_len": "100",
    "dtype": "float16",
}  # fmt: skip


def spellings(name: str, value: str | None) -> Iterator[list[str]]:
    for option in (f"--{name}", f"--{name.replace('_', '-')}"):
        if value is None:
            yield [option]
        yield [f"{option}={value or 'true'}"]
        yield [option, value or "true"]


@pytest.mark.parametrize("name", KSERVE_FLAGS)
def test_every_flag_of_kserve_in_every_form(name: str) -> None:
    plans = [plan_launch(words) for words in spellings(name, KSERVE_FLAGS[name])]
    assert all(plan == plans[0] for plan in plans)
    partner = {"ssl_certfile": {"ssl_keyfile": "/k"}, "ssl_keyfile": {"ssl_certfile": "/c"}}.get(name, {})
    read_arguments(partner, plans[0].environment, {})


@pytest.mark.parametrize(
    ("words", "options", "arguments"),
    [
        ([], ["--port=8080", "--host=0.0.0.0"], {}),
        (
            ["--model_name=bert", "--model-id", "x", "--host=127.0.0.1"],
            ["--port=8080", "--host=127.0.0.1"],
            {"model_name": "bert", "model_id": "x"},
        ),
        (
            ["--http-port=3000", "--return_probabilities", "--timeout-keep-alive", "5", "--api_key=secret"],
            ["--port=3000", "--host=0.0.0.0"],
            {"return_probabilities": "true", "timeout_keep_alive": "5", "api_key": "secret"},
        ),
        (
            ["--port", "3001", "-tp", "2", "--lora-modules", "a=/x", "b=/y z"],
            ["--port=3001", "--host=0.0.0.0"],
            {"tensor_parallel_size": "2", "lora_modules": "a=/x 'b=/y z'"},
        ),
        # As SageMaker starts a container.
        (["serve"], ["--port=8080", "--host=0.0.0.0"], {}),
        (["serve", "--model_name=bert"], ["--port=8080", "--host=0.0.0.0"], {"model_name": "bert"}),
    ],
)
def test_the_command_and_what_it_is_handed(words: list[str], options: list[str], arguments: dict[str, str]) -> None:
    launch = plan_launch(words)
    assert launch.command == (sys.executable, "-m", "bentoml", "serve", str(ROOT), *options)
    assert {name: json.loads(value) for name, value in launch.environment.items()} == {LAUNCH_VARIABLE: arguments}


@pytest.mark.parametrize(
    ("variables", "words", "port"),
    [
        ({"SAGEMAKER_BIND_TO_PORT": "9000"}, ["serve"], 9000),
        ({"AIP_HTTP_PORT": "7080", "SAGEMAKER_BIND_TO_PORT": ""}, [], 7080),
        ({"AIP_HTTP_PORT": "7080"}, ["--http_port=3000"], 3000),
        ({"AIP_HTTP_PORT": ""}, [], 8080),
    ],
)
def test_a_cloud_names_the_port(variables: dict[str, str], words: list[str], port: int) -> None:
    assert plan_launch(words, variables=variables).server.http_port == port


@pytest.mark.parametrize("variable", ["SAGEMAKER_BIND_TO_PORT", "AIP_HTTP_PORT"])
def test_a_wrong_port_of_a_cloud(variable: str) -> None:
    with pytest.raises(
        ArgumentsError, match=rf"argument http_port \(from {variable}\) is '80a': Input should be a valid"
    ):
        plan_launch([], variables={variable: "80a"})


def test_in_a_bento_it_serves_the_bento(tmp_path: Path) -> None:
    (tmp_path / "bento.yaml").touch()
    assert plan_launch([], tmp_path / "src").command[4] == str(tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model_name", "x", "y"], "the command line has a stray word 'y'; arguments look like --name=value"),
        (["--modle_name=x"], "unknown argument 'modle_name' in the command line: did you mean model_name?"),
        (["--http_port=70000"], "argument http_port (from the command line) is '70000': Input should be less than or"),
    ],
)
def test_wrong_command_lines(words: list[str], message: str) -> None:
    with pytest.raises(ArgumentsError) as error:
        plan_launch(words)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_a_port_in_use(host: str) -> None:
    with socket.socket() as taken:
        taken.bind((host, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            ArgumentsError, match=f"port {port} cannot be used: Address already in use; set --http_port"
        ):
            check_port(port, "http_port", host)


def test_the_page_on_migration_has_every_flag() -> None:
    page = (ROOT / "docs" / "how-to" / "migrate-from-kserve.md").read_text()
    marks = dict(re.findall(r"^\| `--(\w+)` \| ([a-z ]+) \|", page, re.MULTILINE))
    assert {*marks} == {*KSERVE_FLAGS}
    assert {*marks.values()} == {"kept", "changed", "no effect"}
    assert {name for name, mark in marks.items() if mark == "no effect"} == {*WITHOUT_EFFECT}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "launch.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_has_everything_and_is_quick() -> None:
    start = time.monotonic()
    shown = run("--help")
    assert time.monotonic() - start < 2
    assert shown.returncode == 0
    options = {*re.findall(r"--(\w+)", shown.stdout)}
    assert options >= {*KSERVE_FLAGS, *LaunchArguments.model_fields, "max_num_seqs", "enable_lora", "port", "model"}
    titles = re.findall(r"^(\S.*):$", shown.stdout, re.MULTILINE)
    assert titles[: len(GROUPS)] == [group.title for group in GROUPS]
    assert titles[:2] == ["Server, of launch.py only", "Server"]
    assert not re.search(r"`|\]\(|PydanticUndefined", shown.stdout.split("usage:")[1])


def test_an_unknown_flag_ends_the_start_at_once() -> None:
    start = time.monotonic()
    refused = run("--modle_dir=/x")
    assert time.monotonic() - start < 2
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr == "error: unknown argument 'modle_dir' in the command line: did you mean model_dir?\n"


class Launched(ServerProcess):
    """`python launch.py WORDS`."""

    def __init__(
        self, words: Sequence[str], home: Path, environment: dict[str, str], script: Path = ROOT / "launch.py"
    ) -> None:
        command = [sys.executable, str(script), "--http_port={port}", *words]
        super().__init__(command, home, environment)

    @property
    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.pid).children()
        return [child for child in children if "_bentoml_impl.worker.service" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_a_manifest_of_kserve_with_two_workers(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("bert", "sequence_classification")
    words = [
        f"--model_dir={folder}",
        "--workers=2",
        "--max_log_len=5",
        "--api_key=secret",
        "--enable_latency_logging=y",
    ]
    words += [word for name in WITHOUT_EFFECT for word in (f"--{name.replace('_', '-')}", "1")]
    server = Launched(words, tmp_path, {"RUNTIME_SERVICE_HOST": "10.0.0.1", "RUNTIME_MODEL_NAME": "m"})
    try:
        server.wait_until("/v2/health/ready", 200)
        assert len(server.workers) == 2
        processes = psutil.Process(server.pid).children(recursive=True)
        assert not any("secret" in word for process in processes for word in process.cmdline())
        for name, instead in [*WITHOUT_EFFECT.items(), ("max_log_len", "prompts are logged only with --log_inputs")]:
            assert server.output.count(f"{name} in the command line has no effect: {instead}") == 1, name
        assert server.output.count("RUNTIME_SERVICE_HOST is ignored: there is no argument service_host") == 1

        wait_until(lambda: server.output.count("m is ready") >= 2, seconds=60)
        headers = {"authorization": "Bearer secret"}

        def both_have_answered() -> bool:
            answer = httpx.post(f"{server.url}/v1/models/m:predict", json={"instances": ["a", "b"]}, headers=headers)
            assert answer.status_code == 200
            answered = re.findall(r":(\d+)\] requestId: .* path: /v1/models/m:predict, status: 200", server.output)
            return {*answered} == {"1", "2"}

        wait_until(both_have_answered, seconds=60)
        unload = httpx.post(f"{server.url}/v2/repository/models/m/unload", headers=headers)
        assert unload.json() == {"name": "m", "unload": True}
        workers = server.workers
    finally:
        assert server.terminate() == 0
    assert psutil.wait_procs(workers, timeout=10)[1] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("generates", "message"),
    [
        (False, "error: cannot serve model: there is no folder /nowhere: set "),
        (True, "error: cannot serve model: workers is 2, but vLLM runs this model"),
    ],
)
def test_workers_that_fail_alike_say_so_once(
    generates: bool, message: str, generator_folder: GeneratorFolder, tmp_path: Path
) -> None:
    folder = generator_folder("llama") if generates else "/nowhere"
    server = Launched([f"--model_dir={folder}", "--workers=2"], tmp_path, {})
    try:
        assert server.wait_for_exit() == 1
        [line] = re.findall(r"^error: .*$", server.output, re.MULTILINE)
        assert line.startswith(message)
    finally:
        server.terminate()


@pytest.mark.slow
def test_the_operator_s_bentoml_options_win(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("bert", "sequence_classification")
    words = [f"--model_dir={folder}", "--workers=2", "--enable_grpc=false", "--enable_repository"]
    options = {"BENTOML_CONFIG_OPTIONS": "services.huggingface_runtime.workers=1"}
    server = Launched(words, tmp_path, options)
    try:
        server.wait_until("/v2/health/ready", 200)
        assert len(server.workers) == 1
        assert httpx.post(f"{server.url}/v2/repository/models/model/unload").status_code == 200
    finally:
        assert server.terminate() == 0


@pytest.mark.slow
def test_in_a_built_bento(model_folder: ModelFolder, tmp_path: Path) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path / "bentoml")}
    built = subprocess.run(
        [*BENTOML, "build", ".", "--output=tag", "--arg=model_name=baked", "--arg=gpu=0"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tag = built.stdout.strip().removeprefix("__tag__:")
    script = tmp_path / "bentoml" / "bentos" / Path(*tag.split(":")) / "src" / "launch.py"
    folder = model_folder("bert", "sequence_classification")
    words = [f"--model_dir={folder}", "--model_name=line", "--return-probabilities", "--workers", "2"]
    server = Launched(words, tmp_path, {"RUNTIME_MODEL_NAME": "variable"}, script)
    try:
        server.wait_until("/v2/health/ready", 200)
        # The server is ready with its first worker; the other one may get this request.
        wait_until(lambda: server.output.count("line is ready") >= 2, seconds=60)
        answer = httpx.post(f"{server.url}/v1/models/line:predict", json={"instances": ["a"]})
        assert [*answer.json()["predictions"][0]][:2] == ["0", "1"], "probabilities by class"
        assert len(server.workers) == 2
    finally:
        assert server.terminate() == 0
