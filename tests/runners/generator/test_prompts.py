"""Prompts to token ids: special tokens, truncation as vLLM does it, chat templates, and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runners.core.engine_arguments import EngineArgument
from runners.core.errors import ArgumentsError, InputError
from runners.core.generation import PromptOptions
from runners.generator.languages import Languages
from runners.generator.prompts import Prompts, load_template
from runners.generator.vocabulary import Vocabulary
from tests.families import roberta_bpe
from tests.generators import CHAT_TEMPLATE

TEXT = "return the value of the file"
HELLO = [{"role": "user", "content": "hello"}]


def prompts(template: str | None = CHAT_TEMPLATE, on_truncated: Callable[[], None] = lambda: None) -> Prompts:
    vocabulary = Vocabulary(roberta_bpe(), 3010)
    languages = Languages.of(vocabulary.tokenizer)
    return Prompts(vocabulary, languages, 20, 19, add_special_tokens=True, template=template, on_truncated=on_truncated)


def plain(text: str) -> list[int]:
    return list(roberta_bpe().encode(text, add_special_tokens=False))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (PromptOptions(), [0, *plain(TEXT), 2]),
        (PromptOptions(add_special_tokens=False), plain(TEXT)),
        # The tokenizer's own truncation keeps its special tokens, on its own side, which is the right one here.
        (PromptOptions(truncate_to=4), [0, *plain(TEXT)[:2], 2]),
        (PromptOptions(truncate_to=4, add_special_tokens=False), plain(TEXT)[:4]),
        # A side is one of tokens.
        (PromptOptions(truncate_to=4, truncation_side="left"), [*plain(TEXT)[-3:], 2]),
        (PromptOptions(truncate_to=4, truncation_side="right"), [0, *plain(TEXT)[:3]]),
        (PromptOptions(truncate_to=20), [0, *plain(TEXT), 2]),
        (PromptOptions(truncate_to=0), []),
    ],
)
def test_texts(options: PromptOptions, expected: list[int]) -> None:
    assert prompts().encode(TEXT, options) == expected


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_as_many_tokens_as_the_model_takes_leave_room_for_one(side: Any) -> None:
    options = PromptOptions(truncate_to=-1, truncation_side=side)
    # Longer than what is looked at.
    assert len(prompts().encode("the " * 100_000, options)) == 19
    assert len(prompts().truncate([7] * 30, options)) == 19
    assert prompts().truncate([7, 8, 9], options) == [7, 8, 9]


def test_token_ids_are_truncated_too() -> None:
    ids = list(range(10))
    assert prompts().truncate(ids, PromptOptions()) == ids
    assert prompts().truncate(ids, PromptOptions(truncate_to=3)) == [0, 1, 2]
    assert prompts().truncate(ids, PromptOptions(truncate_to=3, truncation_side="left")) == [7, 8, 9]
    assert prompts().truncate(ids, PromptOptions(truncate_to=0, truncation_side="left")) == []


@pytest.mark.parametrize("side", [None, "left", "right"])
def test_prompts_that_are_truncated_are_counted(side: Any) -> None:
    counted: list[int] = []
    made = prompts(on_truncated=lambda: counted.append(1))
    length = len(plain(TEXT)) + 2
    for kept in (None, length, length - 1, 1, 0):
        options = PromptOptions(truncate_to=kept, truncation_side=side)
        made.encode(TEXT, options)
        made.truncate([7] * length, options)
    assert len(counted) == 6, "a text and its tokens, which do not fit into the last three"


@pytest.mark.parametrize(
    ("truncate_to", "message"),
    [
        (21, "truncate_prompt_tokens is 21, but this model's maximum context length is 20"),
        (-2, "truncate_prompt_tokens must be at least -1, not -2"),
    ],
)
def test_truncation_that_does_not_fit_is_refused(truncate_to: int, message: str) -> None:
    options = PromptOptions(truncate_to=truncate_to)
    with pytest.raises(InputError) as refused:
        prompts().encode(TEXT, options)
    assert str(refused.value) == message
    assert refused.value.param == "truncate_prompt_tokens"
    with pytest.raises(InputError) as refused:
        prompts().truncate([7], options)
    assert str(refused.value) == message


def test_tokens_become_text_again() -> None:
    ids = prompts().encode(TEXT, PromptOptions())
    assert prompts().decode(ids) == f"<s>{TEXT}</s>"
    assert prompts().decode(ids, skip_special_tokens=True) == TEXT
    strings, special = prompts().describe([0, *plain(" the"), 3009])
    assert (strings, special) == (["<s>", "\u0120the", ""], [True, False, False])
    for token in (3010, -1, 2**70):
        with pytest.raises(InputError, match=f"there is no token {token}: the vocabulary ends at 3009"):
            prompts().decode([1, token])


def test_templates_get_the_variables_that_they_have() -> None:
    def rendered(**variables: Any) -> str:
        return prompts().render(HELLO, None, variables)

    assert rendered() == "<user>hello"
    assert rendered(add_generation_prompt=True, mood="glad") == "<user>hello(glad)<assistant>"
    assert rendered(conversations=1, self=2, unknown=3) == "<user>hello"
    [start, *_, end] = prompts().encode_chat("<user>hello", PromptOptions(add_special_tokens=True))
    assert (start, end) == (0, 2)
    assert prompts().encode_chat("<user>hello", PromptOptions(truncate_to=2)) == plain("<user>hello")[:2]


@pytest.mark.parametrize(
    "name",
    [
        "chat_template", "conversation", "messages", "tokenize", "padding", "truncation", "max_length",
        "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
    ],
)  # fmt: skip
def test_variables_that_are_the_servers_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"chat_template_kwargs must not have {name}"):
        prompts().render(HELLO, None, {name: "x"})


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no robots') }}", "no robots"),
        ("{{ messages[5].content }}", "has no element 5"),
        ("{{ messages[0].content.missing.attribute }}", "no attribute 'missing'"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages + 1 }}", "can only concatenate list"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for", "unexpected"),
        ("{{ range(10 ** 9) | list }}", "range too big|Range too big"),
    ],
)
def test_whatever_goes_wrong_in_a_template_is_about_the_messages(template: str, message: str) -> None:
    with pytest.raises(InputError, match=f"the chat template refuses the messages: .*({message})") as refused:
        prompts(template).render(HELLO, None, {})
    assert "\n" not in str(refused.value)


def test_a_template_is_a_file_or_written_out(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    assert load_template(EngineArgument(str(file), "the command line")) == "{{ messages }}"
    assert load_template(EngineArgument("{{ messages }}\n" * 9000, "the command line")) == "{{ messages }}\n" * 9000
    with pytest.raises(
        ArgumentsError, match=r"argument chat_template \(from the command line\) is 'no.jinja', which cannot"
    ):
        load_template(EngineArgument("no.jinja", "the command line"))
    with pytest.raises(ArgumentsError, match="is no template: unexpected"):
        load_template(EngineArgument("{{ messages", "the command line"))
