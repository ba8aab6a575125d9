"""Which runner a model gets, by its files alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError

from runners.core.arguments import Arguments
from runners.core.declarations import Configuration, ModelDeclaration
from runners.encoder.runner import EncoderRunner
from runners.generator.runner import GeneratorRunner
from runners.hosting.selection import choose_model, create_runner, expects_generator

EMBEDDER = [
    {"path": "", "type": "sentence_transformers.models.Transformer"},
    {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
]


def files(architectures: Any, **others: Any) -> dict[str, Any]:
    return {"config.json": {"architectures": architectures}} | {f"{name}.json": value for name, value in others.items()}


@pytest.mark.parametrize(
    ("contents", "arguments", "runner"),
    [
        (files(["Qwen3ForCausalLM"]), {}, GeneratorRunner),
        (files(["Qwen3ForCausalLM"], modules=EMBEDDER), {}, EncoderRunner),
        (files("Qwen3ForCausalLM", modules=EMBEDDER), {}, EncoderRunner),
        (files(["Qwen3ForCausalLM"], modules=EMBEDDER), {"task": "text_generation"}, GeneratorRunner),
        (files(["Qwen3ForCausalLM"], modules=EMBEDDER, config_sentence_transformers={"model_type": "CrossEncoder"}), {}, GeneratorRunner),
        (files(["Qwen3ForCausalLM"], modules=EMBEDDER[:1]), {}, GeneratorRunner),
        (files(["T5ForConditionalGeneration"], modules=EMBEDDER), {}, EncoderRunner),
        (files(["BertForMaskedLM"], modules=EMBEDDER), {}, EncoderRunner),
        (files("Qwen3ForCausalLM"), {}, GeneratorRunner),
        (files(["Qwen3ForCausalLM"], modules="{"), {}, GeneratorRunner),
        # Whoever loads the model says what is wrong.
        ({"config.json": "{"}, {}, EncoderRunner),
        (files(5), {}, EncoderRunner),
        ({"config.json": []}, {}, EncoderRunner),
        ({}, {}, EncoderRunner),
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", ["folder", "hub"])
def test_the_runner_of_a_model(
    where: str,
    contents: dict[str, Any],
    arguments: dict[str, Any],
    runner: type[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for filename, content in contents.items():
        (tmp_path / filename).write_text(content if isinstance(content, str) else json.dumps(content))

    def download(model: str, filename: str, revision: str | None) -> str:
        assert (model, revision) == ("someone/model", "v1")
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    def find(model: str, filename: str, revision: str | None) -> str | None:
        assert (model, revision) == ("someone/model", "v1")
        return str(tmp_path / filename) if (tmp_path / filename).exists() else None

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", find)
    source = (
        {"model_dir": str(tmp_path)} if where == "folder" else {"model_id": "someone/model", "model_revision": "v1"}
    )
    given = Arguments.model_validate({"backend": "huggingface", **source, **arguments})
    assert type(create_runner(given)) is runner
    assert expects_generator(Configuration(given, (ModelDeclaration(given),))) is (runner is GeneratorRunner)


def declare(name: str, version: str) -> ModelDeclaration:
    return ModelDeclaration(Arguments(model_dir="/models/bert", model_name=name), version, load=False)


@pytest.mark.parametrize(
    ("models", "name", "chosen"),
    [
        ([("bert", "1")], None, ("bert", "1")),
        ([("bert", "9"), ("bert", "10")], None, ("bert", "10")),
        ([("bert", "9"), ("bert", "10"), ("xlm", "1")], "bert", ("bert", "10")),
    ],
)
def test_one_model_is_chosen(models: list[tuple[str, str]], name: str | None, chosen: tuple[str, str]) -> None:
    """Of several versions the highest, and it is loaded whatever its declaration says."""
    server = Arguments(model_dir="/models/bert", models_file="models.yaml")
    alone = choose_model(Configuration(server, tuple(declare(*each) for each in models)), name)
    assert [(model.name, model.version, model.load) for model in alone.models] == [(*chosen, True)]
    assert alone.models[0].arguments.workers == 1
