"""Chat templates under limits of time and size; the payloads are those of an operator's own template."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from runners.arguments import Arguments, EngineArgument
from runners.errors import InputError
from runners.generator import templates
from runners.generator.templates import TimedJob, render_template
from runners.generator.transformers import TransformersEngine
from tests.conftest import GeneratorFolder

HELLO = [{"role": "user", "content": "a secret"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_what_a_template_writes_is_bounded() -> None:
    with pytest.raises(InputError, match="the chat template writes more than 1000 characters"):
        render_template("{% for i in range(9999) %}{{ messages }}{% endfor %}", HELLO, None, {}, 1000)
    assert render_template("{{ messages[0].content }}", HELLO, None, {}, 8) == "a secret"


def test_an_error_repeats_no_prompt() -> None:
    with pytest.raises(InputError, match="the final message does not appear in the chat") as refused:
        render_template("{{ messages[0].role }} content", HELLO, None, {"continue_final_message": True}, 1000)
    assert "secret" not in str(refused.value)


def test_work_that_ends_in_time_is_not_interrupted() -> None:
    job = TimedJob(lambda: 7, seconds=60)
    assert job.interrupt() == 60
    assert job.run() == 7
    assert job.interrupt() == 60


def test_an_interruption_hits_no_work_that_comes_later() -> None:
    def interrupt_itself(jobs: list[TimedJob[None]]) -> None:
        jobs[0].interrupt()

    for _ in range(200):
        jobs: list[TimedJob[None]] = []
        jobs.append(TimedJob(partial(interrupt_itself, jobs), seconds=0))
        with pytest.raises(InputError, match="takes longer than 0 seconds"):
            jobs[0].run()
        assert sum(range(100)) == 4950


def test_an_endless_template_holds_up_no_completion(
    generator_folder: GeneratorFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.3)
    file = tmp_path / "endless.jinja"
    file.write_text(ENDLESS)
    given = {"chat_template": EngineArgument(str(file), "the command line")}
    engine = TransformersEngine(Arguments(model_dir=str(generator_folder("gpt2")), engine=given))
    engine.load()

    async def scenario() -> None:
        left = asyncio.create_task(engine.tokenize_chat(HELLO, None))
        await asyncio.sleep(0.05)
        # The template goes on running, and ends too.
        left.cancel()
        chats = [asyncio.create_task(engine.tokenize_chat(HELLO, None)) for _ in range(2)]
        await asyncio.sleep(0)
        assert await engine.tokenize("hello")
        assert not any(chat.done() for chat in chats), "prompts wait for no template"
        for outcome in await asyncio.gather(*chats, return_exceptions=True):
            assert isinstance(outcome, InputError)
            assert str(outcome) == "the chat template takes longer than 0.3 seconds"

    try:
        asyncio.run(scenario())
    finally:
        engine.close()
