"""Clients of OpenAI's API that nobody here wrote, unchanged, against a started server on `transformers`.

What they answer with is compared with `transformers`; `make test-clients` installs them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.clients.answer import QUESTION, City
from tests.clients.programs import needs_environment, run_client, run_python
from tests.reference import Reference
from tests.servers import serve

GROUP = "clients"
PROMPT = "The capital of France is"

pytestmark = [pytest.mark.slow, pytest.mark.clients, needs_environment(GROUP)]


@dataclass(frozen=True)
class ServedModel:
    """A server of SmolLM2-135M-Instruct in float32, and the model in `transformers`."""

    url: str
    folder: Path
    home: Path
    reference: Reference

    def ask(self, module: str) -> Any:
        """What a program of tests/clients, run with the clients' Python, says."""
        return run_client(GROUP, module, [f"{self.url}/v1", "smollm"], self.home, OPENAI_API_KEY="none")


@pytest.fixture(scope="module")
def served(smollm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    home = tmp_path_factory.mktemp("clients")
    with serve(home, f"model_dir={smollm}", "model_name=smollm", "backend=huggingface") as server:
        yield ServedModel(server.url, smollm, home, Reference(smollm))


def test_openai(served: ServedModel) -> None:
    said = served.ask("openai_calls")
    assert said["plain"] == said["streamed"] == served.reference.chat(QUESTION, 8)
    assert City(**said["parsed"]) == City(**said["parsed_stream"])
    name, arguments = said["called"]
    assert (name, said["call_finished"]) == ("note_city", "stop")
    City.model_validate(arguments)
    assert said["completion"] == PROMPT + served.reference.complete(PROMPT, 4)
    first, *others = said["logprobs"]
    assert first is None
    total, _ = served.reference.score("The", PROMPT.removeprefix("The"))
    assert sum(others[:4]) == pytest.approx(total, abs=1e-3)
    assert said["response"] == said["response_streamed"] == served.reference.chat(QUESTION, 16)
    assert said["max_model_len"] == [8192]


def test_langchain(served: ServedModel) -> None:
    said = served.ask("langchain_chats")
    assert said["plain"] == said["streamed"] == served.reference.chat(QUESTION, 64)
    assert said["usage"] > 0
    for method in ("json_schema", "function_calling"):
        City.model_validate(said[method])
    assert isinstance(json.loads(said["json_mode"]), dict)
    for call in (said["note_city"], said["required"], said["tool_streamed"]):
        assert call["name"] == "note_city"
        assert call["args"].keys() == {"name", "million"}
        assert call["args"]["name"] in ("Paris", "Rome")
        assert isinstance(call["args"]["million"], int)
    assert isinstance(said["after_tool"], str)


def test_litellm(served: ServedModel) -> None:
    said = served.ask("litellm_calls")
    for provider in ("openai", "hosted_vllm", "huggingface"):
        answer = said[provider]
        assert answer["plain"] == answer["streamed"] == served.reference.chat(QUESTION, 64)
        City.model_validate(answer["parsed"])
        City.model_validate(answer["called"])
    assert said["text"] == served.reference.complete(PROMPT, 4)


def test_instructor(served: ServedModel) -> None:
    said = served.ask("instructor_modes")
    assert len(said) == 3
    for city in said.values():
        City.model_validate(city)


def test_pydantic_ai(served: ServedModel) -> None:
    said = served.ask("pydantic_ai_outputs")
    assert said.pop("plain") == said.pop("streamed") == served.reference.chat(QUESTION, 64)
    assert said.keys() == {"type", "tool", "native"}
    for city in said.values():
        City.model_validate(city)


DOCUMENTS: list[dict[str, Any]] = [
    {"question": "The capital of France is", "choices": ["Paris", "Rome", "a very large and old city"], "answer": 0},
    {"question": "The opposite of hot is", "choices": ["cold", "warm", "red"], "answer": 0},
    {"question": "Two plus two is", "choices": ["four", "five", "a number"], "answer": 0},
]
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
CHOICES = """\
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc}]
"""
GENERATION = """\
output_type: generate_until
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match}]
"""


def test_lm_eval_on_completions(served: ServedModel, tmp_path: Path) -> None:
    """Log probabilities of given texts, and generation, are those of the model in `transformers`."""
    tokenizer = f"tokenizer={served.folder}"
    samples = _evaluate(served, tmp_path, "local-completions", "completions", ["choices", "generation"], tokenizer)
    for document, found in zip(DOCUMENTS, samples["choices"], strict=True):
        for choice, (score, is_greedy) in zip(document["choices"], found, strict=True):
            expected, greedy = served.reference.score(document["question"], f" {choice}")
            assert float(score) == pytest.approx(expected, abs=1e-3)
            assert (is_greedy == "True") is greedy
    for document, [text] in zip(DOCUMENTS, samples["generation"], strict=True):
        assert text == served.reference.complete(document["question"], 8).split("\n")[0]


def test_lm_eval_on_chats(served: ServedModel, tmp_path: Path) -> None:
    samples = _evaluate(
        served, tmp_path, "local-chat-completions", "chat/completions", ["generation"], "", "--apply_chat_template"
    )
    for document, [text] in zip(DOCUMENTS, samples["generation"], strict=True):
        assert text == served.reference.chat(document["question"], 8).split("\n")[0]


def _evaluate(
    served: ServedModel, folder: Path, model: str, route: str, tasks: list[str], model_arguments: str, *options: str
) -> dict[str, list[Any]]:
    """What the model says to each document, by task."""
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, rest in (("choices", CHOICES), ("generation", GENERATION)):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, data=data) + rest)
    arguments = f"model=smollm,base_url={served.url}/v1/{route},num_concurrent=2,max_retries=1,{model_arguments}"
    words = ["--model", model, "--model_args", arguments.rstrip(","), "--include_path", str(folder), "--log_samples"]
    words += ["--tasks", ",".join(tasks), "--output_path", str(folder / "out"), *options]
    run_python(GROUP, ["-m", "lm_eval", *words], served.home, OPENAI_API_KEY="none")
    samples: dict[str, list[Any]] = {}
    for name in tasks:
        [path] = (folder / "out").rglob(f"samples_{name}_*.jsonl")
        rows = sorted((json.loads(line) for line in path.read_text().splitlines()), key=lambda row: row["doc_id"])
        samples[name] = [row["filtered_resps"] for row in rows]
    return samples
