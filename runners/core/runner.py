"""The runners as protocols see them: a model that is loaded and asked, and one that generates text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from runners.core.admission import Admitted
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, ChatEngine, Delta, Engine, PromptOptions
from runners.core.predictions import Options, OutputSpec, Prediction, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import SupportedOptions
from runners.core.task import Task

# An ASGI application: a runner hands it on and does not speak HTTP itself.
Application = Callable[..., Awaitable[None]]


class Runner(Protocol):
    """A model that is loaded and asked."""

    @property
    def name(self) -> str:
        """The model's name in URLs."""

    @property
    def names(self) -> Sequence[str]:
        """All its names, the one above first."""

    @property
    def task(self) -> Task | None:
        """What it does; None until that is known."""

    @property
    def generator(self) -> TextGenerator | None:
        """The runner itself where its engine is one for generation; None for an encoder."""

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warmed."""

    @property
    def failed(self) -> bool:
        """Whether it has died for good, so that the process must end."""

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""

    @property
    def default_options(self) -> Options:
        """What the operator's arguments ask of every text."""

    def class_name(self, index: int) -> str:
        """What one of the classes is called that `logits` has scores for; for fill-mask a token of the vocabulary."""

    @property
    def properties(self) -> Mapping[str, str]:
        """What else a client may want to know of the model."""

    @property
    def supported_options(self) -> SupportedOptions:
        """The encoder's options that requests may set; none until the model is loaded."""

    def outputs(self, options: Options) -> Sequence[OutputSpec]:
        """The outputs of an answer to a request that names none; the columns of its records, if it has records."""

    def named_outputs(self) -> Sequence[OutputSpec]:
        """The outputs that a request gets only by their name."""

    async def load(self) -> None:
        """Load and warm the model.

        Raises:
            RunnerError: it cannot be served.
        """

    async def unload(self) -> None:
        """Refuse what comes, let what is under way end, and free the memory; `load` may follow."""

    def close(self) -> None:
        """Stop; what waits fails. Blocks until what runs is done."""

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        """One prediction a text, in order.

        Raises:
            InputError: a text cannot be served; the message names its position.
            ModelNotReadyError: the model is not loaded.
        """


class TextGenerator(Runner, Protocol):
    """A runner with an engine for generation: `transformers`, or vLLM, which may embed or score instead."""

    @property
    def limits(self) -> RequestLimits:
        """What one request may ask for."""

    @property
    def generates(self) -> bool:
        """Whether the model generates text; on vLLM it may embed or score instead."""

    @property
    def engine(self) -> Engine:
        """
        Raises:
            ModelNotReadyError: the model is not loaded.
            EngineDeadError: the engine has died.
        """

    @property
    def chat_engine(self) -> ChatEngine:
        """The engine, where this server renders its chats: not on vLLM, which renders them itself."""

    @property
    def openai_application(self) -> Application | None:
        """vLLM's own layer for OpenAI's API, an ASGI application; None on `transformers`."""

    @property
    def tells_cached_tokens(self) -> bool:
        """Whether usage has the number of cached tokens of a prompt."""

    def serves_openai(self, path: str) -> bool:
        """Whether vLLM's own layer for OpenAI's API answers a path, such as /v1/completions; no on `transformers`."""

    async def model_cards(self) -> list[dict[str, Any]]:
        """The model and its LoRA adapters as vLLM lists them; empty on `transformers`."""

    def admit(self, characters: int = 0) -> AbstractContextManager[Admitted]:
        """Let a request in, from before its prompts are tokenized, for as long as the context lasts.

        Args:
            characters: of its prompts.

        Raises:
            OverloadedError: too many requests are under way, or too much waits.
        """

    async def tokenize(self, prompt: str | Sequence[int], options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        """The token ids of a prompt; of one that is token ids already, those that are kept."""

    def stream(self, given: TextInput | TokenInput, options: Options) -> AsyncGenerator[Delta | None, None]:
        """Continue a text. None comes first, once the request is accepted; closing the iterator frees the sequence.

        Raises:
            InputError: the text cannot be continued.
            OverloadedError: too much is under way.
        """
