"""The servers that are attacked: a real sentence encoder, tiny models of the other tasks, a tiny generator."""

from __future__ import annotations

from pathlib import Path

from tests.attack.case import ServerKind
from tests.families import FAMILIES, MINILM
from tests.generators import save_generator
from tests.servers import BENTOML, ServerProcess

# So that what waits for a time-out does not take minutes: seconds.
TIMEOUTS = {"header_timeout": 2, "body_timeout": 3, "answer_timeout": 3}
# The family of each encoder, so that there is each kind of tokenizer, and its task.
_ENCODERS = {
    ServerKind.FILLER: ("bert", "fill_mask"),
    ServerKind.RANKER: ("albert", "text_ranking"),
    ServerKind.READER: ("bert", "question_answering"),
    ServerKind.LABELLER: ("distilbert", "zero_shot_classification"),
    ServerKind.TAGGER: ("roberta", "token_classification"),
}
_GENERATOR = {
    ServerKind.GENERATOR: ("backend=huggingface",),
    ServerKind.VLLM: ("backend=vllm", "kv_cache_memory_bytes=256M", "enforce_eager=true", "dtype=float32"),
}


def make_model(served: ServerKind, folder: Path) -> Path:
    """The folder of what is served, made there if it is not real."""
    if served is ServerKind.EMBEDDER:
        return Path(MINILM)
    if served in _ENCODERS:
        family, task = _ENCODERS[served]
        return FAMILIES[family].save(folder / served, task)
    # As long a context as SmolLM's; vLLM has no attention for heads of 8.
    size = {"hidden_size": 128, "intermediate_size": 256} if served is ServerKind.VLLM else {}
    return save_generator(folder / served, "llama", max_position_embeddings=8192, **size)


def start_server(served: ServerKind, folder: Path, *more: str) -> ServerProcess:
    """Start `bentoml serve` of this folder, with `more` arguments, and wait until it is ready."""
    model = make_model(served, folder)
    arguments = [f"model_dir={model}", *(f"{name}={value}" for name, value in TIMEOUTS.items())]
    words = [f"--arg={argument}" for argument in (*arguments, *_GENERATOR.get(served, ()), *more)]
    # As most machines have it; a server may take more.
    server = ServerProcess(["prlimit", "--nofile=1024:", *BENTOML, "serve", ".", "--port={port}", *words], folder)
    try:
        server.wait_until("/v2/health/ready", 200, seconds=300)
    except AssertionError:
        server.terminate()
        raise
    return server
