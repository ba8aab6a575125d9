"""What most teams start with: FastAPI and a `transformers` pipeline, with V1's paths.

python -m benchmarks.reference_server FOLDER TASK PORT
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from transformers import pipeline

_PIPELINES = {
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "fill_mask": "fill-mask",
}


def create_app(folder: str, task: str) -> FastAPI:
    run: Any = pipeline(_PIPELINES[task], folder, device="cpu")  # type: ignore[call-overload]
    app = FastAPI()

    @app.get("/v2/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/models/model:predict")
    def predict(body: dict[str, Any]) -> dict[str, Any]:
        texts = body["instances"]
        predictions = run(texts, batch_size=len(texts))
        # numpy floats, which the pipelines for tokens return, are not JSON.
        return {"predictions": [str(prediction) for prediction in predictions]}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1], sys.argv[2]), host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
