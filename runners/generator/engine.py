"""The interface of the engines that run generators: vLLM and `transformers`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from runners.core.admission import Admitted
from runners.core.errors import InputError
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, Chat, Delta, PromptOptions, Sampling
from runners.core.runner import OpenAIApplication, RunnerDetails


def check_characters(text: str, max_length: int, longest_token: int) -> None:
    """Refuse a text that is too long before it is tokenized, which takes 20 s for 20 MB; vLLM does the same.

    Args:
        max_length: most tokens of a prompt.
        longest_token: number of characters of the vocabulary's longest token.

    Raises:
        InputError: the text has more characters than this many tokens can have.
    """
    if len(text) > (max_characters := max_length * longest_token):
        raise InputError(
            f"This model's maximum context length is {max_length} tokens, which have {max_characters} characters at "
            f"most, but the prompt has {len(text)} characters"
        )


class Engine(Protocol):
    """Runs the model of a generator."""

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its output together; of an encoder-decoder's prompt."""

    @property
    def failed(self) -> bool:
        """Whether the engine has died: it answers no further request."""

    @property
    def stuck(self) -> bool:
        """Whether the watchdog does not expect the engine to answer any more."""

    @property
    def generates(self) -> bool:
        """Whether the model generates text; on vLLM it may embed, score or classify instead."""

    @property
    def notes_records(self) -> bool:
        """Whether the engine itself notes texts and tokens in the records of requests."""

    @property
    def details(self) -> RunnerDetails:
        """How the model runs."""

    @property
    def openai_application(self) -> OpenAIApplication | None:
        """The engine's own application for OpenAI's API; None if this server answers it."""

    async def tokenize(self, prompt: str, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        """The token ids of a text, with the special tokens that the model expects.

        Raises:
            InputError: the text is too long, or the options do not fit the model.
        """

    def truncate(self, prompt: Sequence[int], options: PromptOptions) -> list[int]:
        """The tokens of a prompt that the options keep.

        Raises:
            InputError: the options keep more tokens than the model takes.
        """

    def generate(
        self, prompt: Sequence[int], sampling: Sampling, admitted: Admitted | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Continue a prompt; closing the iterator frees the sequence at once.

        Args:
            admitted: the request of the sequence. Requests share the model fairly. It is told when the sequence is
                accepted. None for a request of one sequence.

        Raises:
            InputError: the prompt is too long; the message has both lengths.
            EngineDeadError: the engine has died.
        """

    async def tokenize_chat(self, chat: Chat, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        """The token ids of a chat by the model's chat template.

        Raises:
            InputError: the model has no chat template, or the template refuses the messages; or as `tokenize`.
        """

    async def detokenize(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of tokens.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """

    async def describe_tokens(self, ids: Sequence[int]) -> tuple[list[str], list[bool]]:
        """Tokens as the vocabulary writes them, "" for ids without one, and whether each is a special token.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """

    def close(self) -> None:
        """Stop; sequences that run fail. Blocks until the engine has stopped."""
