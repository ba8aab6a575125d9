"""vLLM's own tests of its server, unmodified, against this server's own engines; `make test-vllm-suite`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.servers import ROOT, ServerProcess
from tests.vllm_suite.encoders import (
    write_classifier,
    write_cross_encoder,
    write_embedder,
    write_large_embedder,
    write_token_classifier,
)
from tests.vllm_suite.model import write_model, write_smollm_in_float32

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
_WORDS = "it wants the words of vLLM's or pydantic's message: ours is a 400 that names the field and what is allowed"
_ADAPTER = "it asks for a LoRA adapter, which only vLLM serves"
_CHAT = "it embeds or classifies a chat: messages are a 400 on this server's own engine"
_TRUNCATED = "a text that is too long is truncated here; vLLM refuses it unless truncate_prompt_tokens is set"
_PADDING = "it asks for padding, which is for models without an attention mask"
_NOT_FOUND = "it wants FastAPI's 404 of a route that the model does not serve: ours is a 400 that says what it serves"
_NORMALIZED = "it asks for vectors without the model's own normalization, which is a 400 here"
_PLUGIN = "it wants vLLM's words about plugins or its argument --pooler-config.task"
_LARGE = "it wants an answer that a small model does not give"
_TOKENIZER_INFO = "it asks for /tokenizer_info, which vLLM has only with an argument"


@dataclass(frozen=True)
class Suite:
    """A file of vLLM's tests.

    Attributes:
        model: the name that its tests ask for.
        right: how many tests pass.
        not_applicable: why others are left out, by their names.
        arguments: of the server.
        write: writes the model that is served under that name.
    """

    path: str
    model: str
    right: int
    not_applicable: dict[str, str]
    arguments: tuple[str, ...] = ()
    write: Callable[[Path], None] = write_model


COMPLETIONS = Suite(
    "openai/completion/test_completion.py",
    "facebook/opt-125m",
    22,
    {
        "test_completion_request_bad_words_to_sampling_params": _CLASSES,
        "test_completion_request_bad_words_default_empty": _CLASSES,
        "test_completion_request_forwards_routed_experts_prompt_start": _CLASSES,
    },
    ("--backend=huggingface", "--max-model-len=2048", "--enable-prompt-tokens-details", "--no-enable-prefix-caching"),
)
CHATS = Suite(
    "openai/chat_completion/test_chat.py",
    "HuggingFaceH4/zephyr-7b-beta",
    26,
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
    ("--backend=huggingface", "--max-model-len=8192"),
)
TOKENIZE = Suite(
    "serve/tokenize/test_tokenization.py",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    5,
    {
        "test_tokenizer_info_basic": _TOKENIZER_INFO,
        "test_tokenizer_info_schema": _TOKENIZER_INFO,
        "test_tokenizer_info_consistency_with_tokenize": _TOKENIZER_INFO,
        "test_tokenizer_info_chat_template": _TOKENIZER_INFO,
    },
    ("--backend=huggingface", "--max-model-len=8192"),
    write_smollm_in_float32,
)
_QWEN = "jason9693/Qwen2.5-1.5B-apeach"
_E5 = "intfloat/multilingual-e5-small"
CLASSIFY = Suite(
    "pooling/classify/test_online.py",
    _QWEN,
    11,
    {
        "test_chat_request": _CHAT,
        "test_invocations_chat_request": _CHAT,
        "test_score": _NOT_FOUND,
        "test_rerank": _NOT_FOUND,
        f"test_pooling_not_supported[token_classify-{_QWEN}]": _PLUGIN,
        f"test_pooling_not_supported[plugin-{_QWEN}]": _PLUGIN,
    },
    write=write_classifier,
)
EMBED = Suite(
    "pooling/embed/test_online.py",
    _E5,
    12,
    {
        "test_negative_token_ids": _WORDS,
        "test_padding": _PADDING,
        "test_chat_request": _CHAT,
        "test_invocations_chat_request": _CHAT,
        "test_params_not_supported": _WORDS,
        "test_use_activation": _NORMALIZED,
        f"test_pooling_not_supported[token_embed-{_E5}]": _PLUGIN,
        f"test_pooling_not_supported[plugin-{_E5}]": _PLUGIN,
    },
    write=write_embedder,
)
BI_ENCODER = Suite(
    "pooling/scoring/test_bi_encoder_online.py",
    "BAAI/bge-base-en-v1.5",
    12,
    {
        "test_rerank_api_max_model_len": _TRUNCATED,
        "test_score_api_max_model_len": _TRUNCATED,
        "test_pooling_not_supported[plugin]": _PLUGIN,
    },
    ("--max_length=100",),
    write_large_embedder,
)
CROSS_ENCODER = Suite(
    "pooling/scoring/test_cross_encoder_online.py",
    "BAAI/bge-reranker-base",
    15,
    {
        "test_rerank_api_max_model_len": _TRUNCATED,
        "test_score_api_max_model_len": _TRUNCATED,
        "test_rerank_max_tokens_per_doc_validation": _WORDS,
        "test_pooling_not_supported[token_classify]": _PLUGIN,
        "test_pooling_not_supported[plugin]": _PLUGIN,
    },
    ("--max_length=100", "--task=text_ranking"),
    write_cross_encoder,
)
TOKEN_CLASSIFY = Suite(
    "pooling/token_classify/test_online.py",
    _QWEN,
    3,
    {
        f"test_pooling_not_supported[classify-{_QWEN}]": _PLUGIN,
        f"test_pooling_not_supported[plugin-{_QWEN}]": _PLUGIN,
    },
    write=write_token_classifier,
)
TOKEN_EMBED = Suite(
    "pooling/token_embed/test_online.py",
    _E5,
    3,
    {
        f"test_pooling_not_supported[embed-{_E5}]": _PLUGIN,
        f"test_pooling_not_supported[plugin-{_E5}]": _PLUGIN,
    },
    write=write_embedder,
)
_SMOLLM = ("--backend=huggingface", "--max-model-len=4096")
LOGPROB_TOKENS = Suite(
    "openai/chat_completion/test_logprob_token_ids.py",
    "Qwen/Qwen2.5-1.5B-Instruct",
    5,
    {
        "test_chat_request_decouples_top_k_from_explicit_token_ids": _CLASSES,
        "test_completion_request_decouples_top_k_from_explicit_token_ids": _CLASSES,
        "test_completion_rejects_explicit_token_ids_without_generated_tokens": _CLASSES,
        "test_requests_reject_explicit_token_ids_with_beam_search": _CLASSES,
    },
    _SMOLLM,
    write_smollm_in_float32,
)
TOKEN_IDS = Suite(
    "openai/test_return_token_ids.py",
    "Qwen/Qwen2.5-1.5B-Instruct",
    4,
    {
        "test_chat_completion_with_tool_use": _LARGE,
        "test_comparison_with_prompt_logprobs_and_logprobs": _LARGE,
    },
    _SMOLLM,
    write_smollm_in_float32,
)
SUITES = {
    "completions": COMPLETIONS, "chats": CHATS, "logprob_tokens": LOGPROB_TOKENS, "token_ids": TOKEN_IDS,
    "tokenize": TOKENIZE, "classify": CLASSIFY, "embed": EMBED, "bi_encoder": BI_ENCODER, "cross_encoder": CROSS_ENCODER, "token_classify": TOKEN_CLASSIFY,
    "token_embed": TOKEN_EMBED,
}  # fmt: skip


@pytest.fixture
def model(suite: Suite, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    suite.write(folder)
    return folder


@pytest.fixture
def server(model: Path, tmp_path: Path, suite: Suite) -> Iterator[ServerProcess]:
    arguments = (f"--model_dir={model}", f"--model_name={suite.model}", *suite.arguments)
    server = ServerProcess([sys.executable, str(ROOT / "launch.py"), "--http_port={port}", *arguments], tmp_path)
    try:
        server.wait_until("/v2/health/ready", 200)
        yield server
    finally:
        server.terminate()


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
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
        str(SUITE / "tests/entrypoints" / suite.path),
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
