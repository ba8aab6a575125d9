"""What most teams start with: FastAPI and a `transformers` pipeline, or sentence-transformers, with V1's paths.

python -m benchmarks.reference_server FOLDER TASK PORT
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from sentence_transformers import SentenceTransformer
from transformers import pipeline

_PIPELINES = {
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "fill_mask": "fill-mask",
}


def create_app(folder: str, task: str) -> FastAPI:
    if task == "text_embedding":
        return create_embedding_app(folder)
    run: Any = pipeline(_PIPELINES[task], folder, device="cpu")  # type: ignore[call-overload]
    app = create_ready_app()

    @app.post("/v1/models/model:predict")
    def predict(body: dict[str, Any]) -> dict[str, Any]:
        texts = body["instances"]
        predictions = run(texts, batch_size=len(texts))
        # numpy floats, which the pipelines for tokens return, are not JSON.
        return {"predictions": [str(prediction) for prediction in predictions]}

    return app


def create_embedding_app(folder: str) -> FastAPI:
    model = SentenceTransformer(folder, device="cpu")
    app = create_ready_app()

    @app.post("/v1/models/model:predict")
    def predict(body: dict[str, Any]) -> dict[str, Any]:
        return {"predictions": encode(body["instances"])}

    @app.post("/v1/embeddings")
    def embed(body: dict[str, Any]) -> dict[str, Any]:
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(encode(body["input"]))
        ]
        return {"object": "list", "data": data, "model": "model"}

    def encode(texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = model.encode(texts, show_progress_bar=False).tolist()
        return vectors

    return app


def create_ready_app() -> FastAPI:
    app = FastAPI()

    @app.get("/v2/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1], sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
