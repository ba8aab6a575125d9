"""Scores that are NaN or infinite: an error for that text alone, over every protocol, and never a class."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent
from prometheus_client import REGISTRY

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from protocol.tensors import BYTES
from runners.core.errors import NonFiniteScoresError
from runners.core.metric_families import flush
from runners.core.predictions import AnswerForm, Options, TextInput
from runners.encoder.packing import PackedForward
from tests.conftest import Dial, ModelFolder, Serve
from tests.encoders import load
from tests.faults import break_token
from tests.predictors import GrpcPredictor
from tests.protocol.conftest import TASKS
from tests.served import Served
from tests.wire import WIRES

# The word whose embedding is NaN.
WORD = "broken"
LONG = "word " * 600
PREDICT = "/v1/models/model:predict"
EVENT = {"specversion": "1.0", "id": "1", "source": "https://here.example", "type": "asked"}

Start = Callable[[str], Served]


def message_for(text: int) -> str:
    return (
        f"the scores of model model for text {text} are not finite (NaN or infinity) and mean nothing: its weights are "
        "damaged, or overflow in float32"
    )


def counted() -> float:
    flush()
    return REGISTRY.get_sample_value("runtime_non_finite_texts_total", {"model_name": "model"}) or 0.0


@pytest.fixture(scope="module")
def start(model_folder: ModelFolder, serve: Serve) -> Start:
    """A model of a task that is NaN for texts with `WORD`."""

    @cache
    def make(task: str) -> Served:
        # The word's row in fill-mask's output layer must stay whole.
        config = {"tie_word_embeddings": False} if task == "fill_mask" else {}
        served = serve(model_dir=model_folder("bert", task, **TASKS.get(task, {}), **config))
        break_token(served.runner, WORD)
        return served

    return make


@pytest.mark.parametrize(
    ("task", "texts", "parameters", "position"),
    [
        ("sequence_classification", ["fine", f"a {WORD} b"], {}, 1),
        ("sequence_classification", ["fine", f"a {WORD} b"], {"return_probabilities": True}, 1),
        ("token_classification", [WORD], {}, 0),
        ("token_classification", ["fine", f"{LONG} {WORD}"], {"stride": 10}, 1),
        ("fill_mask", ["[MASK]", f"[MASK] {WORD}"], {}, 1),
        ("text_embedding", ["fine", "fine", WORD], {}, 2),
        ("text_embedding", [WORD], {"dimensions": 3}, 0),
        ("text_ranking", [["a query", "fine"], ["a query", WORD]], {}, 1),
        ("zero_shot_classification", ["fine"], {"candidate_labels": f"x,{WORD}"}, 0),
        ("question_answering", [["Who?", "Nobody."], ["Who?", f"{LONG} {WORD}"]], {}, 1),
    ],
)
def test_every_task_over_the_open_inference_protocol(
    task: str, texts: list[Any], parameters: Any, position: int, start: Start, dial: Dial
) -> None:
    served = start(task)
    channel = dial(served)
    tensor = {"name": "x", "shape": [*np.shape(texts)], "datatype": BYTES, "data": np.ravel(texts).tolist()}
    for wire in WIRES:
        before = counted()
        found = wire(served.client, channel, "model", {"inputs": [tensor], "parameters": parameters})
        assert (found.code, found.error) == ("INTERNAL", message_for(position))
        assert counted() == before + 1


@pytest.mark.parametrize(
    ("task", "path", "body", "position", "error"),
    [
        ("sequence_classification", PREDICT, {"instances": ["fine", WORD]}, 1, {}),
        ("text_embedding", "/v1/embeddings", {"model": "model", "input": ["fine", WORD]}, 1, "openai"),
        ("text_embedding", "/v1/rerank", {"model": "model", "query": "q", "documents": ["fine", WORD]}, 2, "openai"),
        ("text_ranking", "/v1/rerank", {"model": "model", "query": "q", "documents": ["fine", WORD]}, 1, "openai"),
        ("text_ranking", "/v1/score", {"model": "model", "text_1": "q", "text_2": [WORD]}, 0, "openai"),
        ("text_embedding", "/embed", {"inputs": ["fine", WORD]}, 1, "tei"),
        ("sequence_classification", "/predict", {"inputs": WORD}, 0, "tei"),
        ("text_ranking", "/rerank", {"query": "q", "texts": [WORD]}, 0, "tei"),
        ("token_classification", "/", {"inputs": ["fine", WORD]}, 1, "huggingface"),
    ],
)
def test_every_http_protocol(task: str, path: str, body: Any, position: int, error: Any, start: Start) -> None:
    response = start(task).client.post(path, json=body)
    message = message_for(position)
    forms = {
        "openai": {"error": {"message": message, "type": "InternalServerError", "param": None, "code": None}},
        "tei": {"error": message, "error_type": "Backend"},
        "huggingface": {"error": message, "error_type": "generation"},
    }
    status = 424 if error == "tei" else 500
    assert (response.status_code, response.json()) == (status, forms[error] if error else {"error": message})


@pytest.mark.parametrize("convert", [to_structured, to_binary])
def test_cloud_events(convert: Any, start: Start) -> None:
    headers, body = convert(CloudEvent(EVENT, {"instances": [WORD]}))
    response = start("sequence_classification").client.post(PREDICT, content=body, headers=headers)
    assert (response.status_code, response.json()) == (500, {"error": message_for(0)})


def test_a_stream_goes_on(start: Start, dial: Dial) -> None:
    def request(text: str) -> messages.ModelInferRequest:
        message = messages.ModelInferRequest(model_name="model", id=text)
        message.inputs.add(name="x", datatype=BYTES, shape=[1]).contents.bytes_contents.append(text.encode())
        return message

    stub = GRPCInferenceServiceStub(dial(start("sequence_classification")))  # type: ignore[no-untyped-call]
    answers = list(stub.ModelStreamInfer(iter([request(text) for text in ("fine", WORD, "also")]), timeout=60))
    found = {answer.infer_response.id: answer.error_message for answer in answers}
    assert found == {"fine": "", WORD: message_for(0), "also": ""}


async def test_the_others_of_its_batch_are_answered_and_it_does_not_run_again(
    model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runner = load(model_dir=str(model_folder("bert", "sequence_classification")))
    texts = ["one", f"{WORD} two", "one two three", f"{WORD} {WORD}", "one two three four"]
    batches: list[int] = []
    run = PackedForward.run

    def count(self: PackedForward, given: Any) -> Any:
        batches.append(len(given))
        return run(self, given)

    async def ask(texts: list[str]) -> list[Any]:
        options = Options(AnswerForm.RAW_LOGITS)
        asked = [runner.infer([TextInput(text)], options) for text in texts]
        answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        return [each if isinstance(each, BaseException) else each[0].main.values.tolist() for each in answers]

    alone = [(await ask([text]))[0] for text in texts]
    break_token(runner, WORD)
    monkeypatch.setattr(PackedForward, "run", count)
    before = counted()
    beside = await ask(texts)
    runner.close()
    assert [isinstance(answer, NonFiniteScoresError) for answer in beside] == [False, True, False, True, False]
    assert beside[::2] == alone[::2]
    assert sum(batches) == len(texts)
    assert counted() == before + 2
    assert len(batches) < len(texts), "they must have shared a batch"
    assert 1 <= caplog.text.count("texts failed: the scores of model model for text 0 are not finite") <= len(batches)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_predictor_that_answers_so(score: float, model_folder: ModelFolder, serve: Serve, dial: Dial) -> None:
    """It is the predictor's answer that is wrong; the texts beside it in the batch have theirs."""

    def compute(tensors: dict[str, Any]) -> Any:
        logits = np.ones((len(tensors["input_ids"]), 5), dtype=np.float32)
        logits[(tensors["input_ids"] == 3714).any(axis=1), 2] = score
        return logits

    predictor = GrpcPredictor(compute)
    client = serve(
        model_dir=model_folder("bert", "sequence_classification"), predictor_host=predictor.host,
        predictor_protocol="grpc-v2",
    ).client  # fmt: skip
    before = counted()
    found = [client.post(PREDICT, json={"instances": texts}) for texts in (["fine", WORD], ["fine"])]
    predictor.close()
    assert [response.status_code for response in found] == [502, 200]
    assert found[0].json() == {"error": "the predictor's scores of text 1 are not finite (NaN or infinity)"}
    assert counted() == before + 1
