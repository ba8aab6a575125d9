"""Ask a server with Triton's gRPC client, and print what it says as JSON.

A program of its own: this client and KServe's register the same message names, and cannot be in one process.

    python -m tests.clients.triton_grpc localhost:8081 MODEL TEXT...
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio


def text_input(texts: list[str]) -> Any:
    tensor = tritonclient.grpc.InferInput("input-0", [len(texts)], "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object))
    return tensor


def plain(array: Any) -> Any:
    strings = array.dtype == object
    return [element.decode() for element in array.ravel()] if strings else array.tolist()


async def ask_async(url: str, model: str, texts: list[str]) -> Any:
    async with tritonclient.grpc.aio.InferenceServerClient(url) as client:
        return plain((await client.infer(model, [text_input(texts)])).as_numpy("output-0"))


def stream(client: Any, model: str, texts: list[str], parameters: dict[str, Any]) -> dict[str, Any]:
    """All texts over one stream, and a request that fails among them."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for position, text in enumerate(texts):
        client.async_stream_infer(
            model, [text_input([text])], request_id=str(position), parameters=parameters,
            enable_empty_final_response=True,
        )  # fmt: skip
    client.async_stream_infer("nope", [text_input(["x"])], request_id="wrong")
    client.stop_stream()
    parts: dict[str, list[Any]] = {}
    finals, errors = [], []
    while not answers.empty():
        result, error = answers.get()
        if error is not None:
            errors.append(error.message())
            continue
        response = result.get_response()
        parts.setdefault(response.id, []).append(plain(result.as_numpy("output-0")))
        finals += [response.id] * response.parameters["triton_final_response"].bool_param
    return {"parts": parts, "finals": sorted(finals), "errors": errors}


def main(url: str, model: str, texts: list[str], parameters: dict[str, Any]) -> dict[str, Any]:
    client = tritonclient.grpc.InferenceServerClient(url)
    found: dict[str, Any] = {
        "live": client.is_server_live(), "ready": client.is_server_ready(), "model": client.is_model_ready(model, "1"),
        "metadata": client.get_model_metadata(model, as_json=True),
        "index": client.get_model_repository_index(as_json=True),
    }  # fmt: skip
    ways: dict[str, dict[str, Any]] = {
        "plain": {},
        "gzip": {"compression_algorithm": "gzip"},
        "timed": {"client_timeout": 30},
    }
    for name, extra in ways.items():
        result = client.infer(model, [text_input(texts)], request_id="7", parameters=parameters, **extra)
        found[name] = plain(result.as_numpy("output-0"))
        found["id"] = result.get_response().id
    found["async"] = asyncio.run(ask_async(url, model, texts)) if not parameters else found["plain"]
    found["stream"] = stream(client, model, texts, parameters)
    if "logits" in [output["name"] for output in found["metadata"]["outputs"]]:
        outputs = [tritonclient.grpc.InferRequestedOutput("logits"), tritonclient.grpc.InferRequestedOutput("labels")]
        result = client.infer(model, [text_input(texts)], outputs=outputs)
        found["logits"], found["labels"] = (plain(result.as_numpy(name)) for name in ("logits", "labels"))
        best = tritonclient.grpc.InferRequestedOutput("output-0", class_count=1)
        found["classes"] = plain(client.infer(model, [text_input(texts)], outputs=[best]).as_numpy("output-0"))
    try:
        client.infer("nope", [text_input(texts)])
    except tritonclient.grpc.InferenceServerException as error:
        found["error"] = [error.status(), error.message()]
    client.unload_model(model)
    found["unloaded"] = [client.is_model_ready(model), client.is_server_ready()]
    client.load_model(model)
    found["loaded"] = [client.is_model_ready(model), client.is_server_ready()]
    return found


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4]))))
