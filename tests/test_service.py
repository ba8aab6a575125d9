"""What BentoML makes of service.py; it takes unknown config keys without a word, so the effective config is checked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pynvml
import pytest

from protocol.http.open_paths import BENTOML_PATHS
from runners.core.argument_sources import read_configuration
from runners.hosting import resources as gpu_resources
from runners.hosting.selection import expects_generator
from tests.servers import ROOT

_SHOW_CONFIG = """
import json, service
from protocol.http.open_paths import BENTOML_PATHS
from bentoml._internal.configuration.containers import BentoMLContainer
service.Runtime.inject_config()
config = BentoMLContainer.config.get()
print(json.dumps({"arguments": service.arguments.model_dump(), "bentoml_paths": sorted(BENTOML_PATHS), "service": config["services"]["huggingface_runtime"], "api_server": config["api_server"],
                  "modules": [m for m in ("torch", "transformers", "vllm", "cloudevents", "numpy", "grpc", "uvicorn") if m in __import__("sys").modules]}))
"""


def effective_config(**environment: str) -> dict[str, Any]:
    shown = subprocess.run(
        [sys.executable, "-c", _SHOW_CONFIG], cwd=ROOT, env={**os.environ, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    config: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
    return config


def test_effective_config() -> None:
    config = effective_config(RUNTIME_GPU="2", RUNTIME_GPU_TYPE="nvidia-l4")
    assert config["service"]["resources"] == {"gpu": 2, "gpu_type": "nvidia-l4"}
    assert config["service"]["endpoints"] == {"livez": "/v2/health/live", "readyz": "/v2/health/ready"}
    assert config["api_server"]["metrics"]["enabled"] is False


@pytest.mark.parametrize(("options", "workers"), [("", 3), ("services.huggingface_runtime.workers=2", 2)])
def test_the_operator_s_workers_are_stronger(options: str, workers: int) -> None:
    config = effective_config(RUNTIME_WORKERS="3", BENTOML_CONFIG_OPTIONS=options)
    assert config["service"]["workers"] == config["arguments"]["workers"] == workers


def test_the_paths_that_are_bentoml_s_are_in_the_document() -> None:
    assert effective_config()["bentoml_paths"] == sorted(BENTOML_PATHS)


def test_a_prefix_at_which_other_paths_are_ends_the_start() -> None:
    environment = {**os.environ, "KSERVE_OPENAI_ROUTE_PREFIX": "/v2/models"}
    done = subprocess.run(
        [sys.executable, "-c", "import service"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.splitlines()) == (
        1,
        [
            "error: KSERVE_OPENAI_ROUTE_PREFIX is /v2/models, but this server has other paths at /v2; "
            "choose another prefix, such as /openai"
        ],
    )


@pytest.mark.parametrize("service", ["Encoder", "Generator"])
def test_the_description_in_bentoml_s_schema_is_one_sentence(service: str) -> None:
    shown = subprocess.run(
        [sys.executable, "-c", f"import service; print(service.{service}.schema()['description'])"], cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    [sentence] = shown.stdout.splitlines()
    assert sentence.startswith(f"Serves {service.lower()}s, which ")


def test_importing_the_service_is_cheap() -> None:
    assert effective_config()["modules"] == []


_IMPORT_WITHOUT_DEVICES_AND_NETWORK = """
import socket, pynvml
def refuse(*_, **__):
    raise AssertionError("an import connects to nothing and probes no device")
socket.socket.connect = socket.getaddrinfo = pynvml.nvmlInit = refuse
import service
print(service.Runtime.inner.__name__, service.Runtime.config["resources"])
"""


@pytest.mark.parametrize(
    ("environment", "declared"),
    [
        ({"RUNTIME_MODEL_ID": "owner/model"}, "Encoder {'gpu': 1}"),
        ({"RUNTIME_MODEL_DIR": "s3://bucket/model"}, "Encoder {'gpu': 1}"),
        ({"RUNTIME_MODEL_DIR": "ftp://host/model"}, "Encoder {'gpu': 1}"),
        ({"RUNTIME_MODEL_DIR": "s3://bucket/model", "RUNTIME_TASK": "text_generation"}, "Generator {'gpu': 1}"),
        ({"RUNTIME_MODEL_ID": "owner/model", "RUNTIME_ARGS": "-tp 2 -pp 2"}, "Generator {'gpu': 4}"),
        ({"RUNTIME_MODEL_ID": "owner/model", "RUNTIME_ARGS": "-tp 2 --task=fill_mask"}, "Encoder {'gpu': 1}"),
        ({"RUNTIME_MODELS_FILE": "s3://bucket/models.yaml"}, "Encoder {'gpu': 1}"),
        ({"RUNTIME_MODELS_FILE": "/mounted/later/models.yaml"}, "Encoder {'gpu': 1}"),
        ({"RUNTIME_MODEL_REPOSITORY": "/mounted/later"}, "Encoder {'gpu': 1}"),
    ],
)
def test_importing_the_service_downloads_and_probes_nothing(
    environment: dict[str, str], declared: str, tmp_path: Path
) -> None:
    """Builds import it too; what it needs is done once in the parent process, before the workers start."""
    online = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    shown = subprocess.run(
        [sys.executable, "-c", _IMPORT_WITHOUT_DEVICES_AND_NETWORK], cwd=ROOT,
        env={**os.environ, **online, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert shown.stdout.splitlines()[-1] == declared


@pytest.mark.parametrize(
    ("arguments", "in_bento", "gpus", "resources"),
    [
        ({}, False, 0, {}),
        ({}, False, 2, {"gpu": 1}),
        ({}, True, 0, {"gpu": 1}),
        # Each worker has a GPU of its own, as far as there are some.
        ({"workers": 4}, False, 2, {"gpu": 2}),
        ({"workers": 2}, True, 8, {"gpu": 2}),
        ({"workers": 4}, False, 0, {}),
        ({"workers": 4, "gpu": 1}, False, 4, {"gpu": 1}),
        ({"gpu": 0}, True, 2, {}),
        ({"gpu": 4}, False, 0, {"gpu": 4}),
        ({"predictor_host": "triton:8001"}, True, 2, {}),
        ({"tensor_parallel_size": 2, "pp": "2"}, True, 0, {"gpu": 4}),
        ({"tp": "2", "data_parallel_size": 8, "data_parallel_size_local": 4}, False, 8, {"gpu": 8}),
        ({"tensor_parallel_size": 2}, False, 0, {}),
        ({"tensor_parallel_size": 2, "gpu": 1}, False, 8, {"gpu": 1}),
        ({"gpu": 1, "gpu_type": "nvidia-tesla-t4"}, False, 0, {"gpu": 1, "gpu_type": "nvidia-tesla-t4"}),
    ],
)
def test_resources(
    arguments: dict[str, Any], in_bento: bool, gpus: int, resources: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_resources, "_count_gpus", lambda: gpus)
    configuration = read_configuration(arguments, {}, {})
    requested = gpu_resources.request_gpus(configuration, configuration.parallel_size)
    assert gpu_resources.fit_to_machine(requested, configuration.arguments, in_bento) == resources


@pytest.mark.parametrize(
    ("models", "resources", "service"),
    [
        ([{"tp": 2}, {"tensor_parallel_size": 4}, {}], {"gpu": 4}, "Encoder"),
        ([{"task": "fill_mask"}, {"task": "text_generation"}], {"gpu": 1}, "Generator"),
        ([{"predictor_host": "triton:8001"}, {"predictor_host": "other:8001"}], {}, "Encoder"),
        ([{"predictor_host": "triton:8001"}, {}], {"gpu": 1}, "Encoder"),
    ],
)
def test_what_several_models_request(
    models: list[dict[str, Any]], resources: dict[str, Any], service: str, tmp_path: Path
) -> None:
    path = tmp_path / "models.json"
    path.write_text(
        json.dumps(
            {
                "models": [
                    {"task": "fill_mask", "name": f"{n}", "model_dir": "x"} | each for n, each in enumerate(models)
                ]
            }
        )
    )
    configuration = read_configuration({"models_file": str(path)}, {}, {})
    assert gpu_resources.request_gpus(configuration, configuration.parallel_size) == resources
    assert expects_generator(configuration) is (service == "Generator")


@pytest.mark.parametrize("failing", ["nvmlInit", "nvmlDeviceGetCount"])
def test_a_driver_that_does_not_answer_has_no_gpus(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, failing, fail)
    assert gpu_resources._count_gpus() == 0
