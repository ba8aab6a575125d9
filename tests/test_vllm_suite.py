"""vLLM's own tests of its OpenAI server, unmodified, against this server on `transformers`; `make test-vllm-suite`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.servers import ROOT, ServerProcess
from tests.vllm_suite.model import write_model

# What `make test-vllm-suite` fetches: tests/entrypoints/... of vLLM's source distribution.
SUITE = ROOT / ".vllm-suite"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.vllm_suite,
    pytest.mark.skipif(
        not (SUITE / "fetched").exists(),
        reason="vLLM's own tests are not here: make test-vllm-suite fetches its source distribution",
    ),
]

_CLASSES = "it tests vLLM's own request classes, without a server"
_OTHER_ANSWER = "a second answer must differ from the first, which a small model's does by chance only"
_WORDS = "it wants pydantic's name of the error in the message: ours is a 400 that has the bound"
_SAGEMAKER = "it asks SageMaker's route, which vLLM's own server has beside OpenAI's API"
_ADAPTER = "it asks for a LoRA adapter, which only vLLM serves"


@dataclass(frozen=True)
class Suite:
    """A file of vLLM's tests.

    Attributes:
        model: the name that its tests ask for.
        right: how many tests pass.
        not_applicable: why others are left out, by their names.
        arguments: of the server.
    """

    path: str
    model: str
    right: int
    not_applicable: dict[str, str]
    arguments: tuple[str, ...] = ()


COMPLETIONS = Suite(
    "completion/test_completion.py",
    "facebook/opt-125m",
    22,
    {
        "test_completion_request_bad_words_to_sampling_params": _CLASSES,
        "test_completion_request_bad_words_default_empty": _CLASSES,
        "test_completion_request_forwards_routed_experts_prompt_start": _CLASSES,
    },
    ("--max-model-len=2048", "--enable-prompt-tokens-details", "--no-enable-prefix-caching"),
)
CHATS = Suite(
    "chat_completion/test_chat.py",
    "HuggingFaceH4/zephyr-7b-beta",
    25,
    {
        "test_no_logprobs_chat[zephyr-lora]": _ADAPTER,
        "test_zero_logprobs_chat[zephyr-lora]": _ADAPTER,
        "test_some_logprobs_chat[zephyr-lora]": _ADAPTER,
        "test_too_many_chat_logprobs[zephyr-lora]": _ADAPTER,
        "test_single_chat_session[zephyr-lora]": _ADAPTER,
        "test_chat_streaming[zephyr-lora]": _ADAPTER,
        "test_chat_completion_stream_options[zephyr-lora]": _ADAPTER,
        "test_structured_outputs_choice_chat": _OTHER_ANSWER,
        "test_structured_outputs_json_chat": _OTHER_ANSWER,
        "test_long_seed": _WORDS,
        "test_invocations": _SAGEMAKER,
        "test_chat_completion_request_n_parameter_to_sampling_params": _CLASSES,
        "test_chat_completion_request_n_parameter_default": _CLASSES,
        "test_null_top_logprobs_is_same_as_omitted[ChatCompletionRequest-messages0]": _CLASSES,
        "test_null_top_logprobs_is_same_as_omitted[BatchChatCompletionRequest-messages1]": _CLASSES,
        "test_chat_completion_request_accepts_model_specific_reasoning_effort": _CLASSES,
        "test_chat_completion_request_rejects_unknown_reasoning_effort": _CLASSES,
        "test_chat_completion_request_n_parameter_various_values": _CLASSES,
        "test_chat_completion_request_n_parameter_exceeds_default_limit": _CLASSES,
        "test_chat_completion_request_n_parameter_at_limit": _CLASSES,
        "test_chat_completion_request_n_parameter_custom_limit": _CLASSES,
        "test_chat_completion_request_n_parameter_massive_value": _CLASSES,
    },
    ("--max-model-len=8192",),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_model(folder)
    return folder


@pytest.fixture
def server(model: Path, tmp_path: Path, suite: Suite) -> Iterator[ServerProcess]:
    arguments = (f"--model_dir={model}", f"--model_name={suite.model}", "--backend=huggingface", *suite.arguments)
    server = ServerProcess([sys.executable, str(ROOT / "launch.py"), "--http_port={port}", *arguments], tmp_path)
    try:
        server.wait_until("/v2/health/ready", 200)
        yield server
    finally:
        server.terminate()


@pytest.mark.parametrize("suite", [COMPLETIONS, CHATS], ids=["completions", "chats"])
def test_suite(suite: Suite, server: ServerProcess, model: Path, tmp_path: Path) -> None:
    outcomes = _run(suite, server, model, tmp_path)
    wrong = {name: why for name, why in outcomes.items() if why}
    assert not wrong, "\n\n".join(f"{name}\n{why}" for name, why in wrong.items())
    assert len(outcomes) == suite.right


def _run(suite: Suite, server: ServerProcess, model: Path, folder: Path) -> dict[str, str]:
    """The failure of each test that applies, empty where it passes."""
    # A relative folder is found by the name of a model on the hub.
    link = folder / suite.model
    link.parent.mkdir()
    link.symlink_to(model)
    # The fixture of the chats' server downloads an adapter; here its snapshot is empty.
    adapter = folder / "hub/models--typeof--zephyr-7b-beta-lora"
    (adapter / "snapshots/empty").mkdir(parents=True)
    (adapter / "refs").mkdir()
    (adapter / "refs/main").write_text("empty")
    report = folder / "report.xml"
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "running_server", "-c", os.devnull),
        *("-o", "junit_family=xunit1", f"--junitxml={report}", f"--rootdir={SUITE}"),
        str(SUITE / "tests/entrypoints/openai" / suite.path),
    ]
    python_path = os.pathsep.join(filter(None, (str(ROOT / "tests/vllm_suite"), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": python_path, "HF_HUB_CACHE": f"{folder}/hub", "SUITE_URL": server.url}
    environment["SUITE_LEFT_OUT"] = " ".join(suite.not_applicable)
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert report.exists(), ran.stdout + ran.stderr
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failures = [each for each in case if each.tag in ("failure", "error", "skipped")]
        outcomes[case.attrib["name"]] = "\n".join(each.text or each.attrib["message"] for each in failures)
    return outcomes
