"""The server that is driven: tiny models of all tasks in one models file, HTTP and gRPC."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.families import FAMILIES
from tests.generators import save_generator
from tests.servers import BENTOML, ServerProcess

# The family of each task's model, so that there is each kind of tokenizer.
ENCODERS = {
    "text_embedding": "bert",
    "text_ranking": "albert",
    "sequence_classification": "distilbert",
    "token_classification": "roberta",
    "fill_mask": "bert",
    "question_answering": "modernbert",
    "sparse_embedding": "electra",
    "zero_shot_classification": "electra",
}
GENERATION = "text_generation"
# So that a run has many requests; each is a name of the same.
_ONE_LAYER = {"num_hidden_layers": 1, "n_layers": 1}
# It is loaded and unloaded, again and again.
SPARE = "spare"
# So small that bodies and messages above them are cheap to send: bytes. Bodies over 256 KiB are read in threads.
MOST_BYTES = 2**19
MOST_MESSAGE_BYTES = 2**17
_LIMITS = {
    "max_request_bytes": MOST_BYTES,
    "grpc_max_receive_message_length": MOST_MESSAGE_BYTES,
    "header_timeout": 5,
    "body_timeout": 5,
    "answer_timeout": 20,
}
_READY_SECONDS = 300
# The folder in which the processes of a server write what their heaps use.
HEAPS = "heaps"
_PREPARES = Path(__file__).resolve().parent / "heaps"


def make_models(folder: Path) -> dict[str, Path]:
    """Save the models; their folders by the names under which they are served, which are those of the tasks."""
    made = {task: FAMILIES[family].save(folder / task, task, **_ONE_LAYER) for task, family in ENCODERS.items()}
    made[GENERATION] = save_generator(folder / GENERATION, "llama", max_position_embeddings=512, **_ONE_LAYER)
    made[SPARE] = FAMILIES["bert"].save(folder / SPARE, "sequence_classification", **_ONE_LAYER)
    return made


def start_server(models: dict[str, Path], folder: Path, *more: str) -> ServerProcess:
    """Start `bentoml serve` of the models, with `more` arguments, and wait until they are ready.

    Raises:
        AssertionError: they are not.
    """
    declared = [
        # Nothing in a model's files says that it is for sparse vectors.
        {"name": name, "model_dir": str(path), **({"task": name} if name == "sparse_embedding" else {})}
        for name, path in models.items()
    ]
    models_file = folder / "models.json"
    models_file.write_text(json.dumps({**_LIMITS, "backend": "huggingface", "models": declared}))
    words = [f"--arg={word}" for word in (f"models_file={models_file}", "enable_repository=true", *more)]
    heaps = folder / HEAPS
    heaps.mkdir(exist_ok=True)
    path = os.pathsep.join([str(_PREPARES), *filter(None, [os.environ.get("PYTHONPATH")])])
    server = ServerProcess(
        [*BENTOML, "serve", ".", "--port={port}", *words],
        folder,
        {"PYTHONPATH": path, "SOAK_HEAPS": str(heaps)},
    )
    try:
        server.wait_until("/v2/health/ready", 200, seconds=_READY_SECONDS)
    except AssertionError:
        server.terminate()
        raise
    return server


def touch_model(path: Path) -> None:
    """Let a model's folder look changed, so that its next load is one."""
    config = path / "config.json"
    status = config.stat()
    os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
