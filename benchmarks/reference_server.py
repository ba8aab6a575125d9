"""What most teams start with: FastAPI and a model, with V1's paths and OpenAI's embeddings.

python -m benchmarks.reference_server FOLDER TASK PORT --engine=onnxruntime

The engine is a `transformers` pipeline, for text embedding sentence-transformers, or the exported model on ONNX Runtime
or OpenVINO.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

Predict = Callable[[list[str]], list[Any]]
_PIPELINES = {
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "fill_mask": "fill-mask",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("task")
    parser.add_argument("port", type=int)
    parser.add_argument("--engine", choices=("pipeline", "onnxruntime", "openvino"), default="pipeline")
    parser.add_argument("--device", default="cpu", help="of a pipeline or sentence-transformers")
    options = parser.parse_args()
    app = create_app(load(options.folder, options.task, options.engine, options.device))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


def load(folder: str, task: str, engine: str, device: str = "cpu") -> Predict:
    # Each has packages of its own.
    if engine != "pipeline":
        from benchmarks.exported_model import ExportedModel

        return ExportedModel(folder, task, engine).predict
    return _load_embedder(folder, device) if task == "text_embedding" else _load_pipeline(folder, task, device)


def _load_pipeline(folder: str, task: str, device: str) -> Predict:
    from transformers import pipeline

    run: Any = pipeline(_PIPELINES[task], folder, device=device)  # type: ignore[call-overload]

    def predict(texts: list[str]) -> list[Any]:
        # numpy floats, which the pipelines for tokens return, are not JSON.
        return [str(prediction) for prediction in run(texts, batch_size=len(texts))]

    return predict


def _load_embedder(folder: str, device: str) -> Predict:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(folder, device=device)

    def predict(texts: list[str]) -> list[Any]:
        vectors: list[Any] = model.encode(texts, show_progress_bar=False).tolist()
        return vectors

    return predict


def create_app(predict: Predict) -> FastAPI:
    app = FastAPI()

    @app.get("/v2/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/models/model:predict")
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {"predictions": predict(body["instances"])}

    @app.post("/v1/embeddings")
    def embed(body: dict[str, Any]) -> dict[str, Any]:
        vectors = enumerate(predict(body["input"]))
        data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in vectors]
        return {"object": "list", "data": data, "model": "model"}

    return app


if __name__ == "__main__":
    main()
