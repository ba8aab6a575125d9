"""Requests under way: refused when there are too many, cancelled when their client leaves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import pytest
from starlette.types import Message
from transformers import AutoTokenizer

from protocol.application import create_application
from runners.core.arguments import Arguments
from runners.core.errors import InputError, ModelLoadError
from runners.core.tokens import TokenizeOptions
from runners.generator.runner import GeneratorRunner
from runners.generator.transformers_engine import TransformersEngine
from runners.hosting.selection import create_runner
from tests.conftest import GeneratorFolder, ModelFolder
from tests.served import models_of
from tests.waiting import wait_until

PATHS = ("/v1/completions", "/v1/models/model:predict", "/v2/models/model/generate", "/v2/models/model/generate_stream")


@pytest.fixture(scope="module")
def runner(generator_folder: GeneratorFolder) -> Iterator[GeneratorRunner]:
    made = GeneratorRunner(
        Arguments(model_dir=str(generator_folder("gpt2")), max_concurrent_requests=2, backend="huggingface")
    )
    asyncio.run(made.load())
    yield made
    made.close()


def body_for(path: str, stream: bool) -> dict[str, Any]:
    sampling = {"max_tokens": 40, "ignore_eos": True}
    if path == "/v1/completions":
        return {"prompt": "Return", "stream": stream, **sampling}
    if path.endswith("predict"):
        return {"instances": ["Return"], "parameters": sampling}
    return {"text_input": "Return", "parameters": sampling}


def count(runner: GeneratorRunner) -> int:
    assert isinstance(runner.engine, TransformersEngine)
    return runner.engine.count


def wait_until_idle(runner: GeneratorRunner) -> None:
    """What has ended leaves before the device thread's next step."""
    wait_until(lambda: count(runner) == 0, seconds=10)


@pytest.mark.parametrize("path", PATHS)
async def test_overload(runner: GeneratorRunner, path: str) -> None:
    transport = httpx.ASGITransport(create_application(models_of(runner), Arguments()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=60) as client:
        responses = await asyncio.gather(*(client.post(path, json=body_for(path, False)) for _ in range(5)))
    assert Counter(response.status_code for response in responses) == {200: 2, 429: 3}
    refused = next(response for response in responses if response.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert "the model is busy with 2 requests" in refused.text
    wait_until_idle(runner)


@pytest.mark.parametrize("path", PATHS)
async def test_a_client_that_leaves(runner: GeneratorRunner, path: str) -> None:
    """Its sequence ends at once: the 40 tokens are not generated."""
    body = orjson.dumps(body_for(path, True) | ({"max_tokens": 60} if "completions" in path else {}))

    async with asyncio.timeout(60):
        left = asyncio.Event()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Message:
            for message in messages:
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if left.is_set():
                raise OSError("the client has gone")

        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
            "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [], "root_path": "",
            "scheme": "http", "server": ("test", 80), "client": ("test", 1),
        }  # fmt: skip
        asking = asyncio.ensure_future(create_application(models_of(runner), Arguments())(scope, receive, send))
        while not count(runner):  # noqa: ASYNC110
            await asyncio.sleep(0)
        left.set()
        await asyncio.wait([asking], timeout=30)
        assert asking.done()
        asking.exception()
        wait_until_idle(runner)
    with runner.admission.admit(), runner.admission.admit():
        pass


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"model_dir": "{gpt2}"}, "GeneratorRunner"),
        ({"model_id": "{t5}"}, "GeneratorRunner"),
        ({"model_dir": "{bert}"}, "EncoderRunner"),
        ({"model_dir": "{bert}", "backend": "vllm"}, "GeneratorRunner"),
        ({"model_dir": "{bert}", "task": "text_generation"}, "GeneratorRunner"),
        ({"model_dir": "{gpt2}", "task": "text_embedding"}, "EncoderRunner"),
        ({"model_dir": "/nowhere"}, "EncoderRunner"),
        ({"model_id": "nobody/nothing"}, "EncoderRunner"),
        ({"model_id": "nobody/nothing", "task": "text_generation"}, "GeneratorRunner"),
    ],
)
def test_which_runner(
    arguments: dict[str, Any], kind: str, generator_folder: GeneratorFolder, model_folder: ModelFolder
) -> None:
    folders = {
        "gpt2": generator_folder("gpt2"),
        "t5": generator_folder("t5"),
        "bert": model_folder("bert", "fill_mask"),
    }
    given = {name: value.format(**folders) for name, value in arguments.items()}
    runner = create_runner(Arguments.model_validate(given))
    assert type(runner).__name__ == kind
    assert not runner.ready
    runner.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_dir": "/nowhere"}, "there is no folder /nowhere: set --model_id"),
        (
            {"model_dir": "{t5}", "backend": "vllm"},
            "backend vllm cannot run .*: vLLM does not run encoder-decoders such as",
        ),
        (
            {"model_dir": "{bert}", "task": "text_generation", "backend": "huggingface"},
            "BertForMaskedLM|BertLMHeadModel",
        ),
    ],
)
async def test_what_cannot_generate_says_why_in_one_line(
    arguments: dict[str, Any], message: str, generator_folder: GeneratorFolder, model_folder: ModelFolder
) -> None:
    folders = {"t5": generator_folder("t5"), "bert": model_folder("bert", "sequence_classification")}
    given = {name: value.format(**folders) for name, value in arguments.items()}
    with pytest.raises(ModelLoadError, match=message) as error:
        await GeneratorRunner(Arguments.model_validate(given)).load()
    assert "\n" not in str(error.value)


async def test_the_tokens_of_prompts(runner: GeneratorRunner, generator_folder: GeneratorFolder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(generator_folder("gpt2"))
    texts = ["Return the value", "é <|endoftext|>"]
    found = await runner.tokenize(texts, TokenizeOptions(details=True))
    ids = [tokenizer(text).input_ids for text in texts]
    assert [tokens.ids for tokens in found] == ids
    assert [tokens.strings for tokens in found] == [tokenizer.convert_ids_to_tokens(each) for each in ids]
    assert [tokens.special for tokens in found] == [
        [token in tokenizer.all_special_ids for token in each] for each in ids
    ]
    assert [tokens.text for tokens in found] == texts
    assert await runner.detokenize(ids) == tokenizer.batch_decode(ids)
    assert await runner.detokenize(ids, True) == tokenizer.batch_decode(ids, skip_special_tokens=True)
    with pytest.raises(InputError, match="text 1 cannot be served: there is no token"):
        await runner.detokenize([ids[0], [10**6]])
    with pytest.raises(InputError, match="prompt_name does not apply to text_generation"):
        await runner.tokenize(texts, TokenizeOptions(prompt_name="query"))
