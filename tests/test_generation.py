"""Black box: generation on a really started vLLM, with clients that nobody here wrote."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import huggingface_hub
import numpy as np
import openai
import psutil
import pytest
import torch
import tritonclient.http
from bentoml.exceptions import BentoMLException
from huggingface_hub import InferenceClient
from kserve import InferenceRESTClient, RESTConfig
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer

from tests.families import MINILM
from tests.servers import BENTOML, ROOT, ServerProcess, free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

CAPITAL = "The capital of France is"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"], "additionalProperties": False,
        },
        "strict": True,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for SmolLM, in PEFT's form, of random weights."""
    folder = tmp_path_factory.mktemp("adapter")
    target = "base_model.model.model.layers.{}.self_attn.q_proj"
    random = torch.Generator().manual_seed(0)
    weights = {
        f"{target.format(layer)}.lora_{side}.weight": torch.randn(shape, generator=random)
        for layer in range(30)
        for side, shape in (("A", (8, 576)), ("B", (576, 8)))
    }
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def server(home: Path, smollm: Path, adapter: Path) -> Iterator[ServerProcess]:
    """`python launch.py ...` with arguments of KServe and vLLM, from the command line and the environment."""
    command = (
        f"{BENTOML[0]} launch.py --http_port={{port}} --model_name smollm --model_dir={smollm} --dtype=float32 "
        f"--max_length 512 --enable-lora --lora-modules random={adapter} --max-lora-rank 8 "
        "--kv-cache-memory-bytes 512M --enable-auto-tool-choice --tool-call-parser=hermes --watchdog_seconds 20 "
        "--log_format=json --log_level=debug --access_log"
    )
    environment = {
        "RUNTIME_MAX_NUM_SEQS": "32", "RUNTIME_SERVICE_HOST": "10.0.0.1",
        "RUNTIME_ALLOWED_ORIGINS": '["https://here.example"]', "AIP_PREDICT_ROUTE": "/vertex",
    }  # fmt: skip
    started = ServerProcess(command, home, environment)
    try:
        started.wait_until("/v2/health/live", 200)
        started.wait_until("/v2/health/ready", 200, seconds=300)
        yield started
    finally:
        started.terminate()


@pytest.fixture(params=["/openai/v1", "/v1"])
def client(server: ServerProcess, request: pytest.FixtureRequest) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + request.param, api_key="none", max_retries=0)


def read_metric(server: ServerProcess, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}{{"))


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/openai/v1/chat/completions", "/openai/tokenize"])
def test_browsers_may_ask(server: ServerProcess, path: str) -> None:
    """The origins that --allowed-origins names, and no others."""
    preflight = {"origin": "https://here.example", "access-control-request-method": "POST"}
    allowed = httpx.options(server.url + path, headers=preflight)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, preflight["origin"])
    assert "POST" in allowed.headers["access-control-allow-methods"]
    body = {"model": "smollm", "messages": QUESTION, "prompt": "a", "max_tokens": 2, "stream": "chat" in path}
    answers = [
        httpx.post(server.url + path, json=each, headers={"origin": preflight["origin"]}, timeout=30)
        for each in (body, {})
    ] + [
        httpx.get(f"{server.url}{each}/models", headers={"origin": preflight["origin"]})
        for each in ("/v1", "/openai/v1")
    ]
    assert [each.status_code for each in answers] == [200, 400, 200, 200]
    for answer in answers:
        # Twice would be none, for a browser.
        assert answer.headers.get_list("access-control-allow-origin") == [preflight["origin"]]
        assert answer.headers.get_list("vary").count("Origin") == 1
    assert httpx.options(server.url + path, headers=preflight | {"origin": "https://there.example"}).status_code == 400
    plain = httpx.options(server.url + path)
    assert (plain.status_code, plain.headers["allow"]) == (204, "OPTIONS, POST")


def test_a_compressed_completion(server: ServerProcess) -> None:
    asked = {"model": "smollm", "prompt": [CAPITAL] * 10, "temperature": 0, "max_tokens": 2}
    body = gzip.compress(json.dumps(asked).encode())
    headers = {"content-encoding": "gzip", "content-type": "application/json", "x-request-id": "7"}
    response = httpx.post(f"{server.url}/v1/completions", content=body, headers=headers)
    assert [choice["text"] for choice in response.json()["choices"]] == [" Paris."] * 10
    assert response.headers["content-encoding"] == "gzip"
    assert response.headers.get_list("x-request-id") == ["7"]


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm", prompt=CAPITAL, temperature=0, max_tokens=2)
    assert answer.choices[0].text == " Paris."
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 2, 7)


def test_the_paths_of_clouds(server: ServerProcess) -> None:
    """vLLM's own answers, whole and as streams, by SageMaker's path and as Vertex AI's instances."""
    completion = {"prompt": CAPITAL, "temperature": 0, "max_tokens": 2}
    chat = {"messages": QUESTION, "temperature": 0, "max_tokens": 8}
    hub = {"inputs": CAPITAL, "parameters": {"max_new_tokens": 2}}

    def post(path: str, body: dict[str, Any], **headers: str) -> Any:
        answer = httpx.post(server.url + path, json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    answers = [post("/invocations", body) for body in (completion, chat, hub)]
    assert answers[0]["choices"][0]["text"] == " Paris."
    assert answers[1]["choices"][0]["message"] == post("/v1/chat/completions", chat)["choices"][0]["message"]
    assert answers[2] == [{"generated_text": " Paris."}]
    predictions = post("/vertex", {"instances": [completion, chat, hub]})["predictions"]
    assert [each["choices"] for each in predictions[:2]] == [each["choices"] for each in answers[:2]]
    assert predictions[2] == answers[2]
    adapted = post("/invocations", completion, **{"X-Amzn-SageMaker-Adapter-Identifier": "random"})
    assert adapted["model"] == "random"
    refused = httpx.post(f"{server.url}/vertex", json={"instances": [completion, {"prompt": "x", "n": -1}]})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "BadRequestError")
    for path in ("/invocations", "/vertex"):
        with httpx.stream("POST", server.url + path, json={**chat, "stream": True}, timeout=60) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert [*stream.iter_lines()][-2] == "data: [DONE]"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm", messages=QUESTION, temperature=0)
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"


def test_bentoml_s_client(server: ServerProcess) -> None:
    """vLLM renders the chat; its API refuses what the client gets as an error."""
    with bentoml.SyncHTTPClient(server.url) as client:
        assert {*client.endpoints} == {"generate", "chat"}
        assert "".join(client.chat(messages=QUESTION, temperature=0)) == "The capital of France is Paris."
        assert list(client.generate(prompt=CAPITAL, temperature=0, max_tokens=2)) == [" Paris", "."]
        with pytest.raises(BentoMLException, match="maximum context length is 512 tokens") as error:
            list(client.chat(messages=[{"role": "user", "content": "a b" * 600}]))
        assert error.value.error_code == 400


def test_stream_is_the_answer_in_parts(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="smollm", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == "The capital of France is Paris."
    assert len(chunks) > 6
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_stop_logprobs_choices_and_seed(client: openai.OpenAI) -> None:
    stopped = client.completions.create(model="smollm", prompt=CAPITAL, temperature=0, max_tokens=16, stop=["aris"])
    assert (stopped.choices[0].text, stopped.choices[0].finish_reason) == (" P", "stop")
    logprobs = client.completions.create(model="smollm", prompt=CAPITAL, temperature=0, max_tokens=1, logprobs=2)
    assert logprobs.choices[0].logprobs is not None
    assert logprobs.choices[0].logprobs.tokens == [" Paris"]
    sampled = [
        client.completions.create(model="smollm", prompt="Once", n=3, seed=7, temperature=1, max_tokens=8).choices
        for _ in range(2)
    ]
    texts = [[choice.text for choice in choices] for choices in sampled]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


def test_the_document_describes_what_vllm_answers(server: ServerProcess) -> None:
    document = httpx.get(f"{server.url}/openapi.json", timeout=60).json()
    paths, schemas = document["paths"], document["components"]["schemas"]
    assert {"/openai/tokenize", "/tokenize", "/openai/v1/responses", "/v1/responses"} <= {*paths}
    assert not {"/openai/scale_elastic_ep", "/openai/health"} & {*paths}
    referred = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert referred <= {*schemas}
    for path in ("/v1/completions", "/openai/v1/completions", "/v1/chat/completions"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        name = content["schema"]["$ref"].rpartition("/")[2]
        assert {"guided_decoding", "structured_outputs", "kv_transfer_params"} & {*schemas[name]["properties"]}
        for example in content["examples"].values():
            assert httpx.post(server.url + path, json=example["value"], timeout=60).status_code == 200


def test_structured_output(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm", messages=QUESTION, temperature=0, max_tokens=40,
        response_format={"type": "json_schema", "json_schema": {"name": "city", "schema": {
            "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
            "additionalProperties": False,
        }}},
    )  # fmt: skip
    assert json.loads(answer.choices[0].message.content or "")["city"] in ("Paris", "Rome")


def test_the_grammar_and_the_name_that_huggingface_hub_sends(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM knows neither: it would ignore the schema, and has no model of that name."""
    # The client calls nothing while the tests are offline.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome"]}}, "required": ["city"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    answer: Any = InferenceClient(server.url).chat_completion(QUESTION, response_format=form, temperature=0)
    assert (json.loads(answer.choices[0].message.content), answer.model) == ({"city": "Rome"}, "smollm")


def test_tools(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="smollm", messages=QUESTION, temperature=0, tools=[WEATHER], max_tokens=100,
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
    )  # fmt: skip
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Rome")


def test_lora_modules_are_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm", "random"]
    texts = {
        name: client.completions.create(model=name, prompt=CAPITAL, temperature=0, max_tokens=8).choices[0].text
        for name in ("smollm", "random")
    }
    assert texts["smollm"] != texts["random"]


async def test_lists_for_both_kinds_of_client(server: ServerProcess, client: openai.OpenAI) -> None:
    async with httpx.AsyncClient() as http:
        listed = (await http.get(f"{server.url}/v1/models")).json()
    assert listed["models"] == ["smollm"]
    assert client.models.retrieve("smollm").id == "smollm"
    kserve = InferenceRESTClient(RESTConfig(protocol="v1"))
    answer: Any = await kserve.infer(
        server.url, {"instances": [CAPITAL], "parameters": {"temperature": 0, "max_tokens": 2}}, "smollm"
    )
    assert answer == {"predictions": [" Paris."]}


async def test_of_32_streams_each_is_as_if_alone(server: ServerProcess) -> None:
    prompts = [f"{number} plus {number} is" for number in range(32)]

    async def ask(client: openai.AsyncOpenAI, prompt: str) -> str:
        stream = await client.completions.create(
            model="smollm", prompt=prompt, temperature=0, max_tokens=16, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream])

    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        together = await asyncio.gather(*(ask(client, prompt) for prompt in prompts))
        alone = [await ask(client, prompt) for prompt in prompts]
    assert together == alone
    assert len(set(alone)) > 16


@pytest.mark.parametrize("path", ["/v1/completions", "/v2/models/smollm/generate_stream"])
def test_a_client_that_leaves_frees_its_sequence(server: ServerProcess, path: str) -> None:
    body = {"prompt": CAPITAL, "text_input": CAPITAL, "max_tokens": 450, "ignore_eos": True, "stream": True}
    body.pop("prompt" if "generate" in path else "text_input")
    before = read_metric(server, "vllm:generation_tokens_total")
    cancelled = read_metric(server, "runtime_cancelled_requests_total")
    with httpx.stream("POST", server.url + path, json=body) as response:
        next(response.iter_lines())
    deadline, last, made = time.monotonic() + 10, -1.0, 0.0
    while not made or made != last or read_metric(server, "vllm:num_requests_running"):
        assert time.monotonic() < deadline, f"the sequence runs on: {made} tokens"
        time.sleep(0.5)
        last, made = made, read_metric(server, "vllm:generation_tokens_total") - before
    assert made < 450
    assert read_metric(server, "runtime_cancelled_requests_total") == cancelled + 1


def test_an_engine_that_stands_still_makes_the_server_not_live(server: ServerProcess) -> None:
    processes = psutil.Process(server.pid).children(recursive=True)
    [engine] = [process for process in processes if "EngineCore" in " ".join(process.cmdline())]
    body = {"prompt": CAPITAL, "max_tokens": 300, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as response:
        lines = response.iter_lines()
        next(lines)
        engine.suspend()
        try:
            server.wait_until("/v2/health/live", 503, 60)
            assert httpx.get(f"{server.url}/v2/models/smollm/ready").status_code == 503
        finally:
            engine.resume()
        server.wait_until("/v2/health/live", 200, 30)
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    [line] = [line for line in server.output.splitlines() if "--watchdog_seconds=20" in line]
    said = re.search(rf"vLLM's engine \(process {engine.pid}\) has given no output for (\d+\.\d) s", line)
    assert said is not None, line
    assert 20 <= float(said[1]) < 30
    assert "the server is live again" in server.output


def test_v1_and_the_open_inference_protocol(server: ServerProcess) -> None:
    parameters = {"temperature": 0, "max_tokens": 2}
    triton = tritonclient.http.InferenceServerClient(server.url.removeprefix("http://"))
    tensor = tritonclient.http.InferInput("input-0", [2], "BYTES")
    tensor.set_data_from_numpy(np.array([CAPITAL.encode()] * 2, dtype=object))
    answer = triton.infer("smollm", [tensor], parameters=parameters)
    assert answer.as_numpy("output-0").tolist() == [b" Paris."] * 2
    triton.close()

    url = f"{server.url}/v2/models/smollm"
    given = {"text_input": CAPITAL, "parameters": parameters}
    assert httpx.post(f"{url}/generate", json=given).json() == {
        "model_name": "smollm", "model_version": "1", "text_output": " Paris.",
    }  # fmt: skip
    lines = [line for line in httpx.post(f"{url}/generate_stream", json=given).text.splitlines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert "".join(event["text_output"] for event in events) == " Paris."
    assert [event["done"] for event in events] == [False, True]


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/completions", {"model": "nope", "prompt": "x"}, 404, "The model `nope` does not exist."),
        ("/v1/completions", {"prompt": "one " * 600}, 400, "maximum context length is 512 tokens"),
        ("/v1/completions", {"prompt": "x", "temperature": -1}, 400, "temperature must be non-negative"),
        ("/v1/chat/completions", {"messages": "x"}, 400, "messages"),
        ("/v1/embeddings", {"input": "x"}, 400, "does not serve /v1/embeddings: it serves text_generation at"),
        ("/openai/v1/nothing", {"input": "x"}, 404, "there is nothing at /openai/v1/nothing"),
        ("/openai/scale_elastic_ep", {}, 404, "there is nothing at /openai/scale_elastic_ep"),
    ],
)
def test_errors_of_openai(server: ServerProcess, path: str, body: dict[str, Any], status: int, message: str) -> None:
    response = httpx.post(server.url + path, json=body)
    assert response.status_code == status
    # vLLM's errors have the status for a code, this server's one of OpenAI's words, or none.
    assert response.json()["error"]["code"] in (status, None)
    assert message in response.json()["error"]["message"]


NUMBERS = {"name": "x", "shape": [1], "datatype": "INT64", "data": [1]}
TEXT = {"name": "x", "shape": [1], "datatype": "BYTES", "data": ["x"]}


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (
            "infer",
            {"inputs": [NUMBERS]},
            "this model takes BYTES, or tokens as input_ids: it serves text_generation at /v1/models/smollm:predict",
        ),
        (
            "infer",
            {"inputs": [TEXT], "parameters": {"temprature": 1}},
            "the parameter temprature is unknown; there are",
        ),
        (
            "generate",
            {"text_input": "one " * 600},
            "maximum context length is 512 tokens, but the prompt has 601 tokens",
        ),
        (
            "generate",
            {"text_input": "x", "max_tokens": 600},
            "but 601 were asked for: 1 of the prompt and 600 of max_t",
        ),
        ("generate", {"text_input": "x", "top_p": 2}, "the parameters are not as expected: Expected `float` <= 1.0"),
        ("generate", {}, "the body has no text_input"),
        ("generate", {"text_input": "x" * 1_000_000}, "characters at most, but the prompt has 1000000 characters"),
        (
            "generate",
            {"text_input": "x", "max_tokens": 1, "max_new_tokens": 2},
            "max_tokens and max_new_tokens are the",
        ),
        ("generate_stream", {"text_input": "one " * 600}, "maximum context length is 512 tokens"),
    ],
)
def test_errors_of_the_open_inference_protocol(
    server: ServerProcess, path: str, body: dict[str, Any], message: str
) -> None:
    response = httpx.post(f"{server.url}/v2/models/smollm/{path}", json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["One", "Two"], "n": 2}),
        ("/v1/completions", {"prompt": ["One", "Two"], "n": 2, "stream": True}),
        ("/v1/models/smollm:predict", {"instances": ["One", "Two", "Three", "Four"]}),
    ],
)
def test_texts_and_tokens_are_counted(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    """Also of requests that vLLM's own layer answers: 5 tokens of each of 4 outputs, beside the prompts."""
    names = ("runtime_texts_total", "runtime_tokens_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    before = [read_metric(server, name) for name in names]
    options = {"max_tokens": 5, "ignore_eos": True}
    sent = {**body, "parameters": options} if "instances" in body else {**body, **options}
    assert httpx.post(server.url + path, json=sent, timeout=60).status_code == 200
    texts, tokens, _, generated = [
        read_metric(server, name) - earlier for name, earlier in zip(names, before, strict=True)
    ]
    assert generated == 20
    assert texts == (2 if "n" in body else 4)
    assert 20 < tokens < 40


def test_metrics_and_log(server: ServerProcess) -> None:
    metrics = httpx.get(f"{server.url}/metrics").text
    assert "vllm:generation_tokens_total{" in metrics
    assert "vllm:time_to_first_token_seconds_bucket{" in metrics
    for phase in ("read", "queue", "compute"):
        assert read_metric(server, f"runtime_{phase}_seconds_count") > 0
    assert "RUNTIME_SERVICE_HOST is ignored: there is no argument service_host" in server.output


@pytest.mark.parametrize(
    ("path", "body", "finish"),
    [
        ("/v1/models/smollm:predict", {"instances": [CAPITAL], "parameters": {"temperature": 0, "max_tokens": 2}}, "length"),
        ("/v1/completions", {"prompt": CAPITAL, "temperature": 0, "max_tokens": 2}, "length"),
        ("/v1/completions", {"prompt": CAPITAL, "temperature": 0, "max_tokens": 2, "stream": True}, "length"),
        ("/v1/completions", {"prompt": CAPITAL, "temperature": 0, "max_tokens": 9, "stop": ["."]}, "stop"),
    ],
)  # fmt: skip
def test_access_lines(
    server: ServerProcess, path: str, body: dict[str, Any], finish: str, request: pytest.FixtureRequest
) -> None:
    name = request.node.name
    assert httpx.post(server.url + path, json=body, headers={"x-request-id": name}, timeout=60).status_code == 200

    def find_lines() -> list[dict[str, Any]]:
        lines = (json.loads(line) for line in server.output.splitlines())
        return [line for line in lines if line["logger"] == "access" and line.get("request_id") == name]

    wait_until(find_lines)
    [line] = find_lines()
    assert line.items() >= {"texts": 1, "prompt_tokens": 5, "generation_tokens": 2, "finish": finish}.items()
    assert 0 < line["first_token_ms"] <= line["milliseconds"]
    assert {"read_ms", "queue_ms", "compute_ms"} <= line.keys()


def test_each_line_of_the_log_is_json_without_texts(server: ServerProcess) -> None:
    """Of this server, of vLLM in the worker, and of vLLM's engine process."""
    httpx.post(f"{server.url}/v1/chat/completions", json={"messages": QUESTION, "max_tokens": 9}, timeout=60)
    httpx.post(f"{server.url}/v1/chat/completions", json={"messages": QUESTION, "temperature": "x"}, timeout=60)
    lines = [json.loads(line) for line in server.output.splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    [engine] = [each for each in psutil.Process(server.pid).children(recursive=True) if "EngineCore" in each.name()]
    assert {line["pid"] for line in lines if line["logger"].startswith("vllm")} == {engine.pid, engine.ppid()}
    for text in (CAPITAL, "What is the capital", " Paris", "plus", "Once"):
        assert text not in server.output


def test_the_engine_dies(tmp_path: Path, smollm: Path) -> None:
    """The server says so and ends, so that whoever runs it starts it again."""
    arguments = ["--arg", f"model_dir={smollm}", "--arg", "kv_cache_memory_bytes=256M", "--arg", "max_length=256"]
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", *arguments], tmp_path)
    try:
        server.wait_until("/v2/health/ready", 200, seconds=300)
        [engine] = [
            child for child in psutil.Process(server.pid).children(recursive=True) if "EngineCore" in child.name()
        ]
        engine.kill()
        server.wait_until("/v2/health/live", 503, seconds=20)
        assert server.wait_for_exit(30) == 1
        assert "error: the engine that ran model has died" in server.output
    finally:
        server.terminate()


def test_sigterm_lets_what_runs_finish(tmp_path: Path, smollm: Path) -> None:
    """BentoML signals vLLM's engine too, which by default cuts off what runs and calls it a success."""
    arguments = ["--arg", f"model_dir={smollm}", "--arg", "kv_cache_memory_bytes=256M", "--arg", "max_length=256"]
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", *arguments], tmp_path)
    try:
        server.wait_until("/v2/health/ready", 200, seconds=300)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        stream = client.completions.create(
            model="model", prompt="Once upon a time", max_tokens=12, stream=True, extra_body={"ignore_eos": True}
        )
        pieces = [next(iter(stream))]
        os.kill(server.pid, signal.SIGTERM)
        pieces += stream
        assert pieces[-1].choices[0].finish_reason == "length"
        assert server.wait_for_exit(30) == 0
    finally:
        server.terminate()


def test_a_stream_that_outlives_the_drain_ends_as_aborted(tmp_path: Path, smollm: Path) -> None:
    words = [f"model_dir={smollm}", "kv_cache_memory_bytes=256M", "max_length=2048", "drain_seconds=1"]
    arguments = [part for word in words for part in ("--arg", word)]
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", *arguments], tmp_path)
    try:
        server.wait_until("/v2/health/ready", 200, seconds=300)
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        stream = client.completions.create(
            model="model", prompt="Once upon a time", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
        )
        pieces = [next(iter(stream))]
        os.kill(server.pid, signal.SIGTERM)
        pieces += stream
        # It is vLLM's, and not among those of OpenAI's types.
        assert str(pieces[-1].choices[0].finish_reason) == "abort"
        assert server.wait_for_exit(30) == 0
        assert "has died" not in server.output
    finally:
        server.terminate()


def test_a_killed_worker_takes_its_engine_with_it(tmp_path: Path, smollm: Path) -> None:
    arguments = ["--arg", f"model_dir={smollm}", "--arg", "kv_cache_memory_bytes=256M", "--arg", "max_length=256"]
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", *arguments], tmp_path)
    try:
        server.wait_until("/v2/health/ready", 200, seconds=300)
        started = psutil.Process(server.pid).children(recursive=True)
        [worker] = [child for child in started if "worker.service" in " ".join(child.cmdline())]
        worker.kill()
        wait_until(lambda: not any(child.is_running() for child in started), 10)
        server.wait_until("/v2/health/ready", 200, seconds=300)
        started = psutil.Process(server.pid).children(recursive=True)
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not any(child.is_running() for child in started), 10)
    finally:
        server.terminate()


def test_an_encoder_on_vllm(tmp_path: Path) -> None:
    """Asked for by name, vLLM embeds and ranks, over OpenAI's API only."""
    server = ServerProcess(
        [*BENTOML, "serve", ".", "--port={port}", "--arg", f"model_dir={MINILM}", "--arg", "backend=vllm"], tmp_path
    )
    try:
        server.wait_until("/v2/health/ready", 200, seconds=300)
        client = openai.OpenAI(base_url=f"{server.url}/openai/v1", api_key="none")
        texts = ["Hello world", "Serve Hugging Face models"]
        found = [each.embedding for each in client.embeddings.create(model="model", input=texts).data]
        expected = SentenceTransformer(str(MINILM), device="cpu").encode(texts)
        np.testing.assert_allclose(found, expected, atol=2e-2)
        ranked = httpx.post(
            f"{server.url}/v1/rerank", json={"query": "a greeting", "documents": [*texts], "model": "model"}, timeout=30
        ).json()
        assert [result["index"] for result in ranked["results"]] == [0, 1]
        refused = httpx.post(f"{server.url}/v1/models/model:predict", json={"instances": texts})
        assert refused.status_code == 400
        assert "model does not generate text: it serves text_embedding at /v1/embeddings, /v1/rerank" in refused.text
    finally:
        server.terminate()


def test_the_doctor_tries_an_encoder_on_vllm() -> None:
    words = ["doctor", f"--model_dir={MINILM}", "--backend=vllm", f"--grpc_port={free_port()}"]
    done = subprocess.run([sys.executable, "launch.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "task text_embedding, on vLLM" in done.stdout
    assert re.search(r"^ +answers /v1/embeddings in \d+ ms$", done.stdout, re.MULTILINE)


def test_an_argument_that_vllm_refuses_ends_the_start(home: Path, smollm: Path) -> None:
    server = ServerProcess(
        [BENTOML[0], str(ROOT / "launch.py"), "--http_port={port}", f"--model_dir={smollm}", "--max-num-seqs=many"],
        home,
    )
    try:
        assert server.wait_for_exit() == 1
        [line] = [line for line in server.output.splitlines() if line.startswith("error: ")]
        assert "vLLM refuses the arguments: argument --max-num-seqs: invalid" in line
        assert "Traceback" not in server.output
    finally:
        server.terminate()
