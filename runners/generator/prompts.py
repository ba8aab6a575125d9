"""Texts and chats to the token ids of a prompt, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from runners.core.engine_arguments import EngineArgument
from runners.core.errors import ArgumentsError, InputError, one_line
from runners.core.generation import PromptOptions, check_characters
from runners.generator.chat_template import shape_messages
from runners.generator.languages import Languages
from runners.generator.templates import find_variables, render_template
from runners.generator.vocabulary import Vocabulary

# What it is given anyway: a request's tools are among the variables of a template.
_OF_ITS_CALL = frozenset({"tools"})
# What it takes beside the variables of a template.
_OF_TEMPLATES = frozenset({"add_generation_prompt", "continue_final_message", "documents"})
# What `apply_chat_template` takes beside, which is the server's alone.
_RESERVED = (frozenset(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters) | {"messages"}) - (
    _OF_TEMPLATES | _OF_ITS_CALL | {"self", "kwargs"}
)
_JINJA_CHARACTERS = "{}\n"


class Prompts:
    """The tokenizer of a model for its prompts; not thread-safe."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        languages: Languages,
        max_length: int,
        most_kept: int,
        add_special_tokens: bool,
        template: str | None,
        most_characters: int = 2**20,
    ) -> None:
        """
        Args:
            max_length: most tokens of a prompt.
            most_kept: to how many a prompt is truncated that is to be as long as the model takes.
            add_special_tokens: to texts, unless a request says otherwise.
            template: chat template instead of the tokenizer's.
            most_characters: that a template may write.
        """
        self._vocabulary = vocabulary
        self._tokenizer = vocabulary.tokenizer
        self._languages = languages
        self._max_length = max_length
        self._most_kept = most_kept
        self._add_special_tokens = add_special_tokens
        self._template = template
        self._special_tokens = dict(self._tokenizer.special_tokens_map)
        self._most_characters = most_characters
        self._longest_token = max(map(len, self._tokenizer.get_vocab()))

    def encode(self, text: str, options: PromptOptions) -> list[int]:
        """The token ids of a text.

        Raises:
            InputError: the text is so long that it is not tokenized, or the options do not fit the model.
        """
        asked = options.add_special_tokens
        return self._encode(text, options, self._add_special_tokens if asked is None else asked)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
    ) -> str:
        """The text of a chat by the chat template; variables that it does not have are left out, as by vLLM.

        Uses no tokenizer, and may run beside what does.

        Raises:
            InputError: the model has no chat template, or it refuses the messages.
        """
        if reserved := sorted(_RESERVED & variables.keys()):
            raise InputError(f"chat_template_kwargs must not have {', '.join(reserved)}", "chat_template_kwargs")
        if not (self._template or self._tokenizer.chat_template):
            raise InputError("this model has no chat template: use completions")
        given: Any = variables.get("tools", tools)
        try:
            template: str = self._template or self._tokenizer.get_chat_template(tools=given)
            known = (_OF_TEMPLATES | find_variables(template)) - _OF_ITS_CALL
            shaped = shape_messages(messages, template)
        except Exception as error:
            raise InputError(f"the chat template refuses the messages: {one_line(error)}") from error
        own = {name: value for name, value in variables.items() if name in known}
        return render_template(template, shaped, given, {**self._special_tokens, **own}, self._most_characters)

    def encode_chat(self, text: str, options: PromptOptions) -> list[int]:
        """The token ids of what `render` made; templates write the special tokens themselves.

        Raises:
            InputError: as `encode`.
        """
        return self._encode(text, options, bool(options.add_special_tokens))

    def truncate(self, ids: Sequence[int], options: PromptOptions) -> list[int]:
        """As many of the tokens as the options keep.

        Raises:
            InputError: more are to be kept than the model takes.
        """
        kept = self._kept(options)
        if kept is None or kept >= len(ids):
            return list(ids)
        return list(ids[len(ids) - kept :] if self._side(options) == "left" else ids[:kept])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones too.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        self._check(ids)
        return self._vocabulary.decode(ids)

    def strings(self, ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary has them; empty for ids without a token.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        self._check(ids)
        return [self._vocabulary.string(token) or "" for token in ids]

    def _check(self, ids: Sequence[int]) -> None:
        for token in ids:
            if not 0 <= token < self._vocabulary.size:
                last = self._vocabulary.size - 1
                raise InputError(f"tokens has token {token}, but the vocabulary ends at {last}", "tokens")

    def _encode(self, text: str, options: PromptOptions, add_special_tokens: bool) -> list[int]:
        kept = self._kept(options)
        if kept is None:
            check_characters(text, self._max_length, self._longest_token)
            return self._tokenize(text, options.source_language, add_special_tokens)
        most = self._max_length * self._longest_token
        left = self._side(options) == "left"
        text = text[-most:] if left else text[:most]
        if options.truncation_side is not None or kept == 0:
            return self.truncate(self._tokenize(text, options.source_language, add_special_tokens), options)
        # The tokenizer keeps the special tokens that it adds.
        return self.truncate(self._tokenize(text, options.source_language, add_special_tokens, kept), options)

    def _tokenize(
        self, text: str, source_language: str | None, add_special_tokens: bool, most: int | None = None
    ) -> list[int]:
        """The token ids of a text, of which the end is dropped where they are too many."""
        language = None if source_language is None else self._languages.find(source_language, "src_lang")
        before, after = (language.before, language.after) if language and add_special_tokens else ((), ())
        truncation = {} if most is None else {"truncation": True, "max_length": max(0, most - len(before) - len(after))}
        ids = self._tokenizer(text, add_special_tokens=add_special_tokens and language is None, **truncation).input_ids
        return [*before, *ids, *after]

    def _kept(self, options: PromptOptions) -> int | None:
        """Most tokens that are kept; None for all."""
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
        return self._most_kept if kept == -1 else kept

    def _side(self, options: PromptOptions) -> str:
        return options.truncation_side or self._tokenizer.truncation_side


def load_template(argument: EngineArgument) -> str:
    """The chat template of vLLM's argument: a file, or the template itself.

    Raises:
        ArgumentsError: there is no such file, or it is no template.
    """
    given = argument.value
    what = f"argument chat_template (from {argument.origin})"
    try:
        template = Path(given).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if not any(character in given for character in _JINJA_CHARACTERS):
            raise ArgumentsError(f"{what} is {given!r}, which cannot be read: {one_line(error)}") from error
        template = given
    try:
        find_variables(template)
    except jinja2.TemplateError as error:
        raise ArgumentsError(f"{what} is no template: {one_line(error)}") from error
    return template
