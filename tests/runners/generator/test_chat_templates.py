"""Chat templates under limits of time and size; the payloads are those of an operator's own template."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from runners.core.arguments import Arguments
from runners.core.engine_arguments import EngineArgument
from runners.core.errors import InputError
from runners.core.generation import Chat
from runners.generator import chat_templates
from runners.generator.chat_templates import TimedJob, render_template
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import GeneratorFolder

HELLO = [{"role": "user", "content": "a secret"}]
ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def test_what_a_template_writes_is_bounded() -> None:
    with pytest.raises(InputError, match="the chat template writes more than 1000 characters"):
        render_template("{% for i in range(9999) %}{{ messages }}{% endfor %}", HELLO, None, {}, 1000)
    assert render_template("{{ messages[0].content }}", HELLO, None, {}, 8) == "a secret"


@pytest.mark.parametrize(
    "operation",
    [
        "'x' * 10**10", "10**10 * 'x'", "([0] * 1000) * 10000", "9 ** 9 ** 9 ** 9 ** 9", "(2 ** 4000) * (2 ** 4000)",
        "'%200000000d' % 1", "'%.200000000f' % 1", "'%(a)-200000000s' % {'a': 1}", "'%*d' % (200000000, 1)",
        "'%200000000d' | format(1)", "'{:200000000}'.format(1)", "'{0:{1}}'.format(1, 200000000)",
        "'{a:200000000}'.format_map({'a': 1})", "('{0}' * 99999).format('x' * 99999)",
        "'x'.ljust(200000000)", "'x'.rjust(200000000)", "'x'.center(200000000)", "'x'.zfill(200000000)",
        "('x' | safe).ljust(200000000)", "('x' | attr('ljust'))(200000000)", "'x'.encode().ljust(200000000)",
        "'\t'.expandtabs(200000000)", "('a' * 99999).translate({97: 'x' * 99999})", "(1).to_bytes(200000000, 'big')",
        "('x' * 99999).replace('x', 'y' * 99999)", "('y' * 99999).join('x' * 99999)",
        "'x' | center(200000000)", "['x'] | map('center', 200000000) | list", "'x' | indent(200000000, true)",
        "('x' * 99999) | replace('x', 'y' * 99999)", "('x' * 99999) | replace(new='y' * 99999, old='x')",
        "([0] * 99999) | join('y' * 99999)", "([0] * 99999) | select('number') | join('y' * 99999)",
        "(['y' * 99999] * 99999) | string", "(['y' * 99999] * 99999) | tojson", "([0] * 99999) | tojson(indent=99999)",
        "('x' * 99999) | wordwrap(1, wrapstring='y' * 99999)", "[1] | batch(200000000, 0) | list",
        "1 | round(200000000, 'ceil')", "(['y' * 99999] * 99999) ~ 'x'",
    ],
)  # fmt: skip
def test_no_operation_makes_something_large(operation: str) -> None:
    """Also of what is constant, which is worked out when a template is compiled."""
    for template in (f"{{{{ {operation} }}}}", f"{{% set text = {operation} %}}{{{{ text | length }}}}"):
        with pytest.raises(InputError, match=r"makes something of size \d+ by one operation"):
            render_template(template, HELLO, None, {}, 1000)


def test_lists_are_not_added_up() -> None:
    with pytest.raises(InputError, match="the chat template adds up lists"):
        render_template("{{ [[0]] | sum(start=[]) }}", HELLO, None, {}, 1000)
    assert render_template("{{ [1, 2] | sum }}", HELLO, None, {}, 1000) == "3"


def test_a_list_is_not_printed_that_holds_much() -> None:
    with pytest.raises(InputError, match=r"makes something of size \d+ by one operation"):
        render_template("{{ ['y' * 99999] * 99999 }}", HELLO, None, {}, 1000)


@pytest.mark.parametrize(
    "step",
    [
        "{% set all.it = all.it ~ all.it %}",
        "{% set all.it = all.it + all.it %}",
        "{% set all.it = [all.it, all.it] | join %}",
        "{% set all.it = '%s%s' % (all.it, all.it) %}",
        "{% set it %}{{ all.it }}{{ all.it }}{% endset %}{% set all.it = it %}",
    ],
)
def test_no_loop_doubles_a_text_for_ever(step: str) -> None:
    template = "{% set all = namespace(it='x') %}{% for i in range(99) %}" + step + "{% endfor %}"
    with pytest.raises(InputError, match=r"makes something of size \d+ by one operation"):
        render_template(template, HELLO, None, {}, 1000)


@pytest.mark.parametrize(
    "made",
    ["text[1:]", "text ~ i", "text | upper", "text.strip('x')", "items[1:]", "items + [i]", "range(99999) | list"],
)
def test_all_that_is_made_is_bounded(made: str) -> None:
    template = (
        "{% set text = 'a' * 1000000 %}{% set items = [0] * 100000 %}{% set all = namespace(it=[]) %}"
        "{% for i in range(9999) %}{% set all.it = all.it + [" + made + "] %}{% endfor %}"
    )
    with pytest.raises(InputError, match="makes texts and lists of more than 67108864 characters together"):
        render_template(template, HELLO, None, {}, 1000)


def test_operators_do_what_they_do_elsewhere() -> None:
    template = (
        "{{ '-' * 3 }} {{ 2 * 3 }} {{ 2 ** 3 }} {{ 0.5 * 4 }} {{ 2 ** -1 }} {{ [1] * 2 }} {{ 1 + 2 }} {{ 'a' + 'b' }} "
        "{{ 7 % 4 }} {{ '%s-%03d' % ('a', 5) }} {{ 'a' ~ 1 ~ [2] ~ none }} {{ 'abc'[1:] }} {{ 'abc'[::-1] }} "
        "{{ '{}:{a}'.format(1, a=2) }} {{ ['a', 'b'] | join(', ') }} {{ 'aXa' | replace('X', '-') }} "
        "{{ {'a': [1]} | tojson(indent=1) | length }} {{ ' a ' | trim }} {{ messages | map(attribute='role') | list }}"
    )
    assert render_template(template, HELLO, None, {}, 1000) == (
        "--- 6 8 2.0 0.5 [1, 1] 3 ab 3 a-005 a1[2]None bc cba 1:2 a, b a-a 18 a ['user']"
    )


def test_the_final_message_is_gone_on_with() -> None:
    template = "{% raw %}<{% endraw %}{{ messages[0].content }}>"
    assert render_template(template, HELLO, None, {"continue_final_message": True}, 1000) == "<a secret"


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


async def test_an_endless_template_holds_up_no_completion(
    generator_folder: GeneratorFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chat_templates, "SECONDS", 0.3)
    file = tmp_path / "endless.jinja"
    file.write_text(ENDLESS)
    given = {"chat_template": EngineArgument(str(file), "the command line")}
    engine = TransformersEngine(Arguments(model_dir=str(generator_folder("gpt2")), engine=given))
    engine.load()

    try:
        left = asyncio.create_task(engine.tokenize_chat(Chat(HELLO)))
        await asyncio.sleep(0.05)
        # The template goes on running, and ends too.
        left.cancel()
        chats = [asyncio.create_task(engine.tokenize_chat(Chat(HELLO))) for _ in range(2)]
        await asyncio.sleep(0)
        assert await engine.tokenize("hello")
        assert not any(chat.done() for chat in chats), "prompts wait for no template"
        for outcome in await asyncio.gather(*chats, return_exceptions=True):
            assert isinstance(outcome, InputError)
            assert str(outcome) == "the chat template takes longer than 0.3 seconds"
    finally:
        engine.close()
