"""The interfaces of runners: `Runner` for every model, `TextGenerator` for a model that generates text."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

from runners.core.generation import AcceptedRequest, Delta, GenerationRequest, Prompt
from runners.core.predictions import Options, OutputSpec, Prediction, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import SupportedOptions
from runners.core.task import Task
from runners.core.tokens import DEFAULT_TOKENIZE_OPTIONS, TokenizedPrompt, TokenizeOptions
from runners.core.watchdog import Watched


class RunnerDetails(NamedTuple):
    """How a model runs, in a few words each, for metrics and logs; empty where it does not apply or is not known.

    Attributes:
        engine: encoder, transformers, vllm or predictor.
        device: as PyTorch names it: cpu, or cuda:0 for the first GPU.
        batching: which texts or sequences share a batch.
        linear_kernels: the kernels of packed linear layers, or stock.
    """

    engine: str = ""
    dtype: str = ""
    device: str = ""
    batching: str = ""
    linear_kernels: str = ""

    def describe_place(self) -> str:
        """Where the model runs, for the log: on cuda:0 in float16."""
        return f"on {self.device} in {self.dtype}"


class Runner(Protocol):
    """One model: it is loaded, answers requests, and may be unloaded."""

    @property
    def name(self) -> str:
        """The model's name in URLs."""

    @property
    def names(self) -> Sequence[str]:
        """All names of the model, beginning with `name`."""

    @property
    def version(self) -> str:
        """The model's version in URLs."""

    @property
    def task(self) -> Task | None:
        """The model's task; None until it is known."""

    @property
    def generator(self) -> TextGenerator | None:
        """The runner itself if it has an engine for generation; None for an encoder."""

    @property
    def loaded(self) -> bool:
        """Whether the model is loaded and warmed."""

    @property
    def ready(self) -> bool:
        """Whether the model is loaded, and its predictor, if it has one, is ready."""

    @property
    def failed(self) -> bool:
        """Whether the model has died, so that the process must end."""

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""

    @property
    def watched(self) -> Watched | None:
        """What the watchdog watches beside the device thread: an engine in a process of its own."""

    @property
    def default_options(self) -> Options:
        """The options of a request that sets none, from the operator's arguments."""

    def class_name(self, index: int) -> str:
        """The name of a class by its index in `logits`; for fill-mask a token of the vocabulary."""

    @property
    def properties(self) -> Mapping[str, str]:
        """Further properties of the model for clients."""

    @property
    def details(self) -> RunnerDetails:
        """How the loaded model runs."""

    @property
    def max_length(self) -> int:
        """Most tokens of a text; of a generator's prompt and its output together, of an encoder-decoder's prompt.

        Raises:
            ModelNotReadyError: the model is not loaded.
            EngineDeadError: the engine has died.
        """

    @property
    def max_batch_tokens(self) -> int:
        """Most tokens that the model computes at once; 0 where the engine decides.

        Raises:
            ModelNotReadyError: the model is not loaded.
        """

    @property
    def tokenizer_threads(self) -> int:
        """How many threads tokenize texts.

        Raises:
            ModelNotReadyError: the model is not loaded.
        """

    @property
    def supported_options(self) -> SupportedOptions:
        """The encoder's options that requests may set; none until the model is loaded."""

    def outputs(self, options: Options) -> Sequence[OutputSpec]:
        """The outputs of an answer to a request that names none; the columns of its records, if it has records."""

    def named_outputs(self) -> Sequence[OutputSpec]:
        """The outputs that a request gets only if it names them."""

    async def load(self) -> None:
        """Load and warm the model.

        Raises:
            RunnerError: the model cannot be served.
        """

    async def unload(self) -> None:
        """Refuse new requests, wait for those under way, and free the memory."""

    def close(self) -> None:
        """Stop: waiting requests fail. Blocks until the current batch is done."""

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        """A prediction for each text, in order.

        Raises:
            InputError: a text cannot be served; the message names its position.
            ModelNotReadyError: the model is not loaded.
        """

    async def tokenize(
        self, prompts: Sequence[Prompt], options: TokenizeOptions = DEFAULT_TOKENIZE_OPTIONS
    ) -> list[TokenizedPrompt]:
        """The tokens of each prompt, in order. An encoder takes texts only.

        Raises:
            LimitExceededError: there are too many prompts, or too long ones.
            OverloadedError: too many requests are under way, or too much waits.
            InputError: a prompt cannot be tokenized.
            ModelNotReadyError: the model is not loaded.
        """

    async def detokenize(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        """The text of each sequence of token ids, in order.

        Raises:
            LimitExceededError: there are too many sequences or tokens.
            OverloadedError: too many requests are under way, or too much waits.
            InputError: a token id is outside of the vocabulary.
            ModelNotReadyError: the model is not loaded.
        """


class TextGenerator(Runner, Protocol):
    """A runner with an engine for generation: `transformers`, or vLLM, which may embed or score instead.

    Each call that asks the engine for something is admitted first, and counts as a request until it is over.
    """

    @property
    def limits(self) -> RequestLimits:
        """The limits of one request."""

    @property
    def generates(self) -> bool:
        """Whether the model generates text; on vLLM it may embed or score instead."""

    @property
    def reports_cached_tokens(self) -> bool:
        """Whether usage has the number of cached tokens of the prompts."""

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AcceptedRequest]:
        """Continue prompts; the context begins once the request is accepted, and its end frees the sequences.

        Raises:
            LimitExceededError: there are too many prompts or outputs, or too many characters or tokens.
            OverloadedError: too many requests are under way, or too much waits.
            InputError: a prompt cannot be continued, or too many log probabilities are asked for.
            EngineDeadError: the engine has died.
        """

    def stream(self, text: TextInput | TokenInput, options: Options) -> AsyncGenerator[Delta | None, None]:
        """Continue a text. None comes first, once the request is accepted; closing the iterator frees the sequence.

        Raises:
            RunnerError: as `generate`.
        """

    @property
    def openai_application(self) -> OpenAIApplication | None:
        """The engine's own application for OpenAI's API: vLLM's. None if this server answers that API itself."""


class OpenAIApplication(Protocol):
    """An engine's own application for OpenAI's API, to which this server forwards requests.

    `scope`, `receive` and `send` are as ASGI defines them: runners pass them on and do not know HTTP.
    """

    def serves(self, path: str) -> bool:
        """Whether the application has a path, such as /v1/completions."""

    async def answer(self, characters: int, scope: Any, receive: Any, send: Any) -> None:
        """Admit a request and answer it.

        Args:
            characters: number of characters of the request's texts.

        Raises:
            OverloadedError: too many requests are under way, or too much waits; nothing has been sent then.
        """

    async def model_cards(self) -> list[dict[str, Any]]:
        """The model under each of its names and its LoRA adapters, as OpenAI's API lists models."""

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of the application."""
