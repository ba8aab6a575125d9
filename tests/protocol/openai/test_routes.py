"""OpenAI's API where vLLM does not run the model; tests/test_generation.py has it on vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from protocol.application import create_application
from protocol.context import make_context
from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError
from runners.hosting.selection import create_runner
from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.served import models_of

CAPITAL = "The capital of France is"
QUESTION: Any = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def http(smollm: Path, serve: Serve) -> TestClient:
    return serve(model_dir=smollm, backend="huggingface", model_name="smollm", max_length=256).client


@pytest.fixture(scope="module", params=["/openai/v1", "/v1"])
def client(http: TestClient, request: pytest.FixtureRequest) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://testserver{request.param}", api_key="none", http_client=http, max_retries=0)


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm", prompt=CAPITAL, temperature=0, max_tokens=2)
    [choice] = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, " Paris.", "length", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 2, 7)
    assert (answer.object, answer.model) == ("text_completion", "smollm")


def test_several_prompts(client: openai.OpenAI) -> None:
    ids = client.completions.create(model="smollm", prompt=[[504, 3575, 282, 4649, 314]], temperature=0, max_tokens=2)
    assert ids.choices[0].text == " Paris."
    both = client.completions.create(model="smollm", prompt=[CAPITAL, "One, two,"], n=2, temperature=0, max_tokens=2)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.choices[0].text == both.choices[1].text == " Paris."
    assert both.choices[2].text == both.choices[3].text != " Paris."


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm", messages=QUESTION, temperature=0)
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (37, 8)
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    again = client.chat.completions.create(model="smollm", messages=parts, temperature=0)
    assert again.choices[0].message.content == ANSWER


@pytest.mark.parametrize("usage", [True, False])
def test_stream_of_a_chat(client: openai.OpenAI, usage: bool) -> None:
    chunks = list(
        client.chat.completions.create(
            model="smollm", messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": usage}
        )
    )
    if usage:
        last = chunks.pop()
        assert (last.choices, last.usage and last.usage.completion_tokens) == ([], 8)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1


def test_stream_of_completions(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model="smollm", prompt=[CAPITAL, "Once upon a time"], temperature=0, max_tokens=6, stream=True
    )
    texts = {0: "", 1: ""}
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    whole = client.completions.create(model="smollm", prompt=[CAPITAL, "Once upon a time"], temperature=0, max_tokens=6)
    assert list(texts.values()) == [choice.text for choice in whole.choices]


def test_lines_of_a_stream(http: TestClient) -> None:
    body = {"model": "smollm", "prompt": CAPITAL, "temperature": 0, "max_tokens": 1, "stream": True}
    response = http.post("/v1/completions", json=body)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    *events, done, end = response.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    assert [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events] == [" Paris"]


def test_stop(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm", prompt=CAPITAL, temperature=0, max_tokens=16, stop=["aris"])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == (" P", "stop")


def test_logprobs(client: openai.OpenAI) -> None:
    given: Any = {"model": "smollm", "temperature": 0}
    old = client.completions.create(prompt=CAPITAL, max_tokens=2, logprobs=2, **given).choices[0].logprobs
    assert old is not None
    assert (old.tokens, old.text_offset) == ([" Paris", "."], [0, 6])
    assert old.token_logprobs is not None
    assert old.top_logprobs is not None
    assert old.top_logprobs[0][" Paris"] == old.token_logprobs[0] == max(old.top_logprobs[0].values())
    assert len(old.top_logprobs[0]) == 2
    new = client.chat.completions.create(messages=QUESTION, logprobs=True, top_logprobs=2, **given).choices[0].logprobs
    assert new is not None
    assert new.content is not None
    assert new.content[0].token == "The"
    assert new.content[0].bytes == list(b"The")
    assert new.content[0].top_logprobs[0].token == "The"
    assert all(entry.logprob <= 0 for entry in new.content)


def test_seed_and_choices(client: openai.OpenAI) -> None:
    texts = [
        [
            choice.text
            for choice in client.completions.create(
                model="smollm", prompt="Once", n=3, seed=seed, temperature=1, max_tokens=8
            ).choices
        ]
        for seed in (7, 7, 1000)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) > 1


def test_a_ban_by_logit_bias(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="smollm", prompt=CAPITAL, temperature=0, max_tokens=1, logit_bias={"7042": -100}
    )
    assert answer.choices[0].text != " Paris"


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("completions", {"model": "nope", "prompt": "x"}, 404, "model", "Model with name nope does not exist. This server has smollm."),
        ("completions", {"prompt": "one " * 300}, 400, None, "maximum context length is 256 tokens, but the prompt has 301"),
        ("completions", {"prompt": "x", "max_tokens": 256}, 400, "max_tokens", "1 of the prompt and 256 of max_tokens"),
        ("completions", {"prompt": []}, 400, "prompt", "prompt must be a text, token ids, or a list of either"),
        ("completions", {"prompt": [1, "x"]}, 400, "prompt", "prompt must be a text, token ids, or a list of either"),
        ("completions", {"prompt": [99999999]}, 400, None, "the prompt has token 99999999, but the vocabulary ends at"),
        ("completions", {"prompt": "x", "temperature": -1}, 400, "temperature", "Expected `float` >= 0.0 - at `$.temperature`"),
        ("completions", {"prompt": "x", "n": 0}, 400, "n", "Expected `int` >= 1 - at `$.n`"),
        ("completions", {"prompt": "x", "logit_bias": {"x": 1}}, 400, "logit_bias", "the keys of logit_bias must be"),
        ("completions", {"prompt": "x", "stop": "x" * 1025}, 400, "stop", "Expected `str` of length <= 1024 - at `$.stop`"),
        ("completions", {"prompt": "x", "stop": ["x", "x" * 1025]}, 400, "stop", "length <= 1024 - at `$.stop[1]`"),
        ("completions", {}, 400, "prompt", "Object missing required field `prompt`"),
        ("completions", "{", 400, None, "the body is not valid JSON"),
        ("chat/completions", {"messages": []}, 400, "messages", "Expected `array` of length >= 1 - at `$.messages`"),
        ("chat/completions", {"messages": [{"content": "x"}]}, 400, "messages", "messages[0] has no role"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages",
         "messages[0] has content that is no text"),
        ("completions", {"prompt": "x" * 100_000}, 400, None, "characters at most, but the prompt has 100000 characters"),
        ("embeddings", {"input": "x"}, 400, None, "smollm does not serve /v1/embeddings: it serves text_generation at"),
    ],
)  # fmt: skip
def test_errors(http: TestClient, path: str, body: Any, status: int, param: str | None, message: str) -> None:
    response = http.post(f"/v1/{path}", content=body if isinstance(body, str) else json.dumps(body))
    assert response.status_code == status
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found" if status == 404 else None, param)
    assert error["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]
    assert message in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/completions", 405),
        ("GET", "/openai/v1/completions", 405),
        ("GET", "/openai/v1/models/smollm", 200),
        ("GET", "/openai/v1/models/nope", 404),
        ("GET", "/openai/v1/models/no%0Ape", 404),
        ("POST", "/openai/v1/models", 405),
        ("DELETE", "/openai/v1/models", 405),
        ("POST", "/openai/v1/models/smollm", 405),
        ("GET", "/openai/metrics", 404),
        ("POST", "/openai/v1/nothing", 404),
        ("PUT", "/openai/v1/nothing", 404),
        ("POST", "/openai/tokenize", 400),
        ("GET", "/openai/tokenize", 405),
        ("PUT", "/openai/detokenize", 405),
        ("GET", "/tokenize", 405),
    ],
)
def test_other_routes(http: TestClient, method: str, path: str, status: int) -> None:
    response = http.request(method, path)
    assert response.status_code == status
    assert status == 200 or "message" in response.json()["error"]


def test_generate(http: TestClient) -> None:
    body = {"id": "7", "text_input": CAPITAL, "parameters": {"temperature": 0, "max_new_tokens": 2}}
    answer = {"id": "7", "model_name": "smollm", "model_version": "1", "text_output": " Paris."}
    assert http.post("/v2/models/smollm/versions/1/generate", json=body).json() == answer
    events = http.post("/v2/models/smollm/generate_stream", json=body).text.split("\n\n")[:-1]
    assert [json.loads(event.removeprefix("data: ")) for event in events] == [
        {**answer, "text_output": " Paris", "done": False},
        {**answer, "text_output": ".", "done": True},
    ]
    as_triton = {"text_input": CAPITAL, "temperature": 0, "max_tokens": 2, "stream": False}
    assert http.post("/v2/models/smollm/generate", json=as_triton).json()["text_output"] == " Paris."
    assert http.get("/v2/models/smollm/generate").status_code == 405


@pytest.mark.parametrize(
    ("body", "error"),
    [
        *(({"parameters": value}, "parameters must be an object") for value in (False, 0, "", [], [1])),
        (
            {"temperature": 101, "parameters": {"temperature": 0}},
            "the parameters are not as expected: Expected `float`",
        ),
    ],
)
def test_what_is_wrong_in_a_body_of_generate_is_refused(http: TestClient, body: dict[str, Any], error: str) -> None:
    """Also where it would change nothing."""
    response = http.post("/v2/models/smollm/generate", json={"text_input": CAPITAL, **body})
    assert response.status_code == 400
    assert response.json()["error"].startswith(error)


def test_v1(http: TestClient) -> None:
    body = {"instances": [CAPITAL, "x"], "parameters": {"temperature": 0, "max_tokens": 2}}
    assert http.post("/v1/models/smollm:predict", json=body).json()["predictions"][0] == " Paris."
    pair = http.post("/v1/models/smollm:predict", json={"instances": [["a", "b"]]})
    assert (pair.status_code, pair.json()["error"]) == (400, "text 0 is a pair, and text_generation takes single texts")


def test_an_encoder_decoder(generator_folder: GeneratorFolder, serve: Serve) -> None:
    client = serve(model_dir=generator_folder("t5")).client
    body = {"prompt": "Return the names", "temperature": 0, "max_tokens": 5, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["usage"]["completion_tokens"] == 5
    predicted = client.post(
        "/v1/models/model:predict",
        json={"instances": ["Return the names"], "parameters": {key: body[key] for key in list(body)[1:]}},
    )
    assert predicted.json() == {"predictions": [answer["choices"][0]["text"]]}
    refused = client.post("/v1/chat/completions", json={"messages": QUESTION})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "this model has no chat template: use completions"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/openai/v1/completions"])
def test_a_chat_with_an_encoder(model_folder: ModelFolder, serve: Serve, path: str) -> None:
    client = serve(model_dir=model_folder("bert", "fill_mask")).client
    response = client.post(path, json={"model": "model", "messages": QUESTION})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == (
        f"model does not serve {path}: it serves fill_mask at /v1/models/model:predict, /v2/models/model/infer"
    )
    generate = client.post("/v2/models/model/generate", json={"text_input": "x"})
    assert (generate.status_code, generate.json()["error"][:34]) == (400, "model does not serve generate: it ")


def test_keys(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "fill_mask"), api_key="first,second").client
    for path in ("/v1/models", "/v2/models/model", "/openai/v1/models"):
        assert client.get(path).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer third"}).status_code == 401
        assert client.get(path, headers={"authorization": "Bearer second"}).status_code == 200
    for path in ("/", "/v2/health/live", "/v2/health/ready", "/metrics"):
        assert client.get(path).status_code == 200
    refused = client.get("/v1/models")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert refused.json() == {"error": "this server asks for a key: send it as Authorization: Bearer KEY"}


def test_a_prefix_of_ones_own(model_folder: ModelFolder) -> None:
    runner = create_runner(Arguments(model_dir=str(model_folder("bert", "fill_mask"))))
    for prefix, found, missing in (
        ("/llm", "/llm/v1/models", "/openai/v1/models"),
        ("", "/v1/models", "/openai/v1/models"),
    ):
        client = TestClient(create_application(models_of(runner), Arguments(), prefix), raise_server_exceptions=False)
        assert client.get(found).status_code == 200
        assert client.get(missing).status_code == 404
    runner.close()


@pytest.mark.parametrize(
    "prefix",
    ["/v1", "v1/", "/v1/models", "/v2", "/v2/models/openai", "/tokenize", "/docs", "/metrics", "/static_content"],
)
def test_a_prefix_at_which_other_paths_are_is_refused(prefix: str) -> None:
    with pytest.raises(
        ArgumentsError, match=f"KSERVE_OPENAI_ROUTE_PREFIX is {prefix}, but this server has other paths"
    ):
        make_context(models_of(), Arguments(), prefix)


def test_not_ready(smollm: Path) -> None:
    given = Arguments(model_dir=str(smollm))
    test = TestClient(create_application(models_of(create_runner(given)), given), raise_server_exceptions=False)
    response = test.post("/v1/completions", json={"prompt": "x"})
    assert (response.status_code, response.json()["error"]["type"]) == (503, "ServiceUnavailableError")
