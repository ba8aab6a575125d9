"""Texts and chats to the token ids of prompts, and back."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from runners.core.engine_arguments import EngineArgument
from runners.core.errors import ArgumentsError, InputError, one_line
from runners.core.generation import PromptOptions
from runners.core.tokens import check_token_ids
from runners.generator.chat_messages import shape_messages
from runners.generator.chat_templates import find_variables, render_template
from runners.generator.engine import check_characters
from runners.generator.languages import Languages
from runners.generator.vocabulary import Vocabulary

# Passed as an argument of its own: a request's tools may also be in `chat_template_kwargs`.
_TOOLS = frozenset({"tools"})
# Options that `render_jinja_template` takes in addition to the variables of a template.
_RENDER_OPTIONS = frozenset({"add_generation_prompt", "continue_final_message", "documents"})
# The other parameters of `apply_chat_template`, which requests may not set.
_RESERVED = (frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}) - (
    _RENDER_OPTIONS | _TOOLS | {"self", "kwargs"}
)
_JINJA_CHARACTERS = "{}\n"


class Prompts:
    """The tokenizer of a model for its prompts; not thread-safe."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        languages: Languages,
        max_length: int,
        truncated_length: int,
        add_special_tokens: bool,
        template: str | None,
        max_characters: int = 2**20,
        on_truncated: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            max_length: most tokens of a prompt.
            truncated_length: number of tokens of a prompt that is truncated to the model's limit.
            add_special_tokens: the default for texts.
            template: chat template instead of the tokenizer's.
            max_characters: most characters of a rendered chat.
            on_truncated: called for each prompt that is truncated.
        """
        self._vocabulary = vocabulary
        self._tokenizer = vocabulary.tokenizer
        self._languages = languages
        self._max_length = max_length
        self._truncated_length = truncated_length
        self._add_special_tokens = add_special_tokens
        self._template = template
        self._special_tokens = dict(self._tokenizer.special_tokens_map)
        self._max_characters = max_characters
        self._on_truncated = on_truncated
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))

    def encode(self, text: str, options: PromptOptions) -> list[int]:
        """The token ids of a text.

        Raises:
            InputError: the text is too long to be tokenized, or the options do not fit the model.
        """
        requested = options.add_special_tokens
        return self._encode(text, options, self._add_special_tokens if requested is None else requested)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """Render a chat by the chat template, without variables that the template does not read, as vLLM does.

        Does not call the tokenizer, so that this is safe in another thread than the other methods.

        Raises:
            InputError: the model has no chat template, or the template refuses the messages.
        """
        if reserved := sorted(_RESERVED & variables.keys()):
            raise InputError(f"chat_template_kwargs must not have {', '.join(reserved)}", "chat_template_kwargs")
        if not (self._template or self._tokenizer.chat_template):
            raise InputError("this model has no chat template: use completions")
        template_tools: Any = variables.get("tools", tools)
        try:
            template: str = self._template or self._tokenizer.get_chat_template(tools=template_tools)
            variable_names = (_RENDER_OPTIONS | find_variables(template)) - _TOOLS
            shaped = shape_messages(messages, template)
        except Exception as error:
            raise InputError(f"the chat template refuses the messages: {one_line(error)}") from error
        used = {name: value for name, value in variables.items() if name in variable_names}
        return render_template(template, shaped, template_tools, {**self._special_tokens, **used}, self._max_characters)

    def encode_chat(self, text: str, options: PromptOptions) -> list[int]:
        """The token ids of a rendered chat; templates write the special tokens themselves.

        Raises:
            InputError: as `encode`.
        """
        return self._encode(text, options, bool(options.add_special_tokens))

    def truncate(self, ids: Sequence[int], options: PromptOptions) -> list[int]:
        """The tokens that the options keep.

        Raises:
            InputError: the options keep more tokens than the model takes.
        """
        kept = self._kept_tokens(options)
        if kept is None or kept >= len(ids):
            return list(ids)
        self._on_truncated()
        return self._cut(ids, kept, options)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        check_token_ids(ids, self._vocabulary.size)
        return self._vocabulary.decode(ids, skip_special_tokens)

    def describe(self, ids: Sequence[int]) -> tuple[list[str], list[bool]]:
        """The tokens as the vocabulary writes them, "" for ids without a token, and whether each is special.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        check_token_ids(ids, self._vocabulary.size)
        strings = [self._vocabulary.string(token) or "" for token in ids]
        return strings, [token in self._vocabulary.special for token in ids]

    def _encode(self, text: str, options: PromptOptions, add_special_tokens: bool) -> list[int]:
        kept = self._kept_tokens(options)
        if kept is None:
            check_characters(text, self._max_length, self._longest_token)
            return self._tokenize(text, options.source_language, add_special_tokens)
        characters = self._max_length * self._longest_token
        text = text[-characters:] if self._side(options) == "left" else text[:characters]
        ids = self._tokenize(text, options.source_language, add_special_tokens)
        if len(ids) <= kept:
            return ids
        self._on_truncated()
        if options.truncation_side is None and kept:
            # Truncation by the tokenizer keeps the special tokens that it adds.
            ids = self._tokenize(text, options.source_language, add_special_tokens, kept)
        return self._cut(ids, kept, options)

    def _cut(self, ids: Sequence[int], kept: int, options: PromptOptions) -> list[int]:
        return list(ids[max(0, len(ids) - kept) :] if self._side(options) == "left" else ids[:kept])

    def _tokenize(
        self, text: str, source_language: str | None, add_special_tokens: bool, max_tokens: int | None = None
    ) -> list[int]:
        """The token ids of a text, truncated by the tokenizer to `max_tokens`."""
        language = None if source_language is None else self._languages.find(source_language, "src_lang")
        before, after = (language.before, language.after) if language and add_special_tokens else ((), ())
        truncation: dict[str, Any] = {}
        if max_tokens is not None:
            truncation = {"truncation": True, "max_length": max(0, max_tokens - len(before) - len(after))}
        ids = self._tokenizer(text, add_special_tokens=add_special_tokens and language is None, **truncation).input_ids
        return [*before, *ids, *after]

    def _kept_tokens(self, options: PromptOptions) -> int | None:
        """Most tokens that the options keep; None for all."""
        kept = options.truncate_to
        if kept is None:
            return None
        if kept < -1:
            raise InputError(f"truncate_prompt_tokens must be at least -1, not {kept}", "truncate_prompt_tokens")
        if kept > self._max_length:
            raise InputError(
                f"truncate_prompt_tokens is {kept}, but this model's maximum context length is {self._max_length}",
                "truncate_prompt_tokens",
            )
        return self._truncated_length if kept == -1 else kept

    def _side(self, options: PromptOptions) -> str:
        return options.truncation_side or self._tokenizer.truncation_side


def load_template(argument: EngineArgument) -> str:
    """The chat template of vLLM's argument `chat_template`: a file, or the template itself.

    Raises:
        ArgumentsError: there is no such file, or its text is no template.
    """
    template = argument.value
    description = f"argument chat_template (from {argument.origin})"
    try:
        template = Path(argument.value).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if not any(character in argument.value for character in _JINJA_CHARACTERS):
            message = f"{description} is {argument.value!r}, which cannot be read: {one_line(error)}"
            raise ArgumentsError(message) from error
    try:
        find_variables(template)
    except jinja2.TemplateError as error:
        raise ArgumentsError(f"{description} is no template: {one_line(error)}") from error
    return template
