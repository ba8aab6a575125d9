"""The flow of a generator: a request is checked, admitted, tokenized and run by the engine, vLLM or `transformers`.

The engine is chosen when the model loads, and batches the sequences that run at the same time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from runners.core.admission import Admission
from runners.core.allocator import inherit_default_allocator, prepare_allocator
from runners.core.arguments import Arguments
from runners.core.declarations import FIRST_VERSION
from runners.core.device_thread import DeviceThread
from runners.core.errors import (
    ArgumentsError,
    EngineDeadError,
    InputError,
    ModelLoadError,
    ModelNotReadyError,
    describe_text_error,
    with_text_position,
)
from runners.core.garbage import freeze_objects
from runners.core.generation import (
    AcceptedRequest,
    Chat,
    Delta,
    EchoedPrompt,
    GenerationRequest,
    Prompt,
    PromptOptions,
)
from runners.core.input_log import log_inputs
from runners.core.metrics import watch_waiting_tokens
from runners.core.predictions import MAIN, Options, OutputSpec, Prediction, Text, TextInput, TokenInput
from runners.core.prompt_limits import check_prompts
from runners.core.request_limits import RequestLimits
from runners.core.request_options import SupportedOptions
from runners.core.request_record import current_record
from runners.core.runner import OpenAIApplication, RunnerDetails, TextGenerator
from runners.core.spinning import inherit_short_spinning, prepare_spin_control
from runners.core.task import Task, infer_task
from runners.core.tokens import DEFAULT_TOKENIZE_OPTIONS, TokenizedPrompt, TokenizeOptions
from runners.generator.parallel_sampling import DescribeError, Sequences, keep_error, limit_logprobs, run
from runners.generator.vllm.engine import VllmEngine
from runners.generator.vllm.installation import unsupported_reason
from runners.modeling.load_errors import load_errors

if TYPE_CHECKING:
    from runners.generator.transformers_engine import TransformersEngine

logger = logging.getLogger(__name__)

_OUTPUT = OutputSpec(MAIN, str, (-1,))
_PROMPT_TOKENS_DETAILS = "enable_prompt_tokens_details"
# Arguments of vLLM that have an effect on `transformers` too.
_HONOURED = frozenset({"chat_template", "served_model_name", _PROMPT_TOKENS_DETAILS})
# Token ids that are put into a list before other tasks of the event loop run: a ms.
_IDS_AT_ONCE = 2**16


class GeneratorRunner:
    """One model that generates text; on vLLM it may embed, score or classify instead."""

    def __init__(self, arguments: Arguments, device: DeviceThread | None = None, version: str = FIRST_VERSION) -> None:
        """
        Args:
            device: the thread in which `transformers` runs all models; None for one of the model's own.
        """
        self.version = version
        self._arguments = arguments
        self._device = device
        self._engine: VllmEngine | TransformersEngine | None = None
        self._task = arguments.task
        self.admission = Admission(arguments)
        self._names = arguments.names
        watch_waiting_tokens(arguments.model_name, self.admission)

    @property
    def name(self) -> str:
        return self._names[0]

    @property
    def names(self) -> Sequence[str]:
        return self._names

    @property
    def task(self) -> Task | None:
        return self._task

    @property
    def generator(self) -> TextGenerator:
        return self

    @property
    def loaded(self) -> bool:
        return self._engine is not None and not self._engine.failed

    @property
    def ready(self) -> bool:
        return self._engine is not None and not self._engine.failed and not self._engine.stuck

    @property
    def failed(self) -> bool:
        return self._engine is not None and self._engine.failed

    @property
    def busy(self) -> bool:
        return self.admission.requests > 0

    @property
    def watched(self) -> VllmEngine | None:
        return self._engine if isinstance(self._engine, VllmEngine) else None

    @property
    def default_options(self) -> Options:
        return Options()

    @property
    def properties(self) -> Mapping[str, str]:
        return {"task": str(self._task), "max_length": str(self.engine.max_length)}

    def class_name(self, index: int) -> str:
        raise NotImplementedError("a generator has no classes")

    @property
    def details(self) -> RunnerDetails:
        return self.engine.details

    @property
    def max_batch_tokens(self) -> int:
        return self._arguments.max_batch_tokens or 0

    @property
    def tokenizer_threads(self) -> int:
        return 1

    @property
    def supported_options(self) -> SupportedOptions:
        return SupportedOptions(self._task)

    def outputs(self, options: Options) -> Sequence[OutputSpec]:
        return [_OUTPUT]

    def named_outputs(self) -> Sequence[OutputSpec]:
        return []

    @property
    def engine(self) -> VllmEngine | TransformersEngine:
        """
        Raises:
            ModelNotReadyError: it is not loaded.
            EngineDeadError: it has died.
        """
        if self._engine is None:
            raise ModelNotReadyError.of_model(self.name)
        if self._engine.failed:
            raise EngineDeadError.of_server()
        return self._engine

    async def load(self) -> None:
        with load_errors(self._arguments.model, self._arguments.model_revision):
            engine = await self._start_engine()
        await asyncio.to_thread(freeze_objects)
        where = engine.details.describe_place()
        logger.info("%s is ready: %s from %s %s", self.name, self._task, self._arguments.model, where)
        self._engine = engine

    async def unload(self) -> None:
        """Refuse new requests, wait for those under way, and stop the engine; `load` starts another."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        await self.admission.drain()
        await asyncio.to_thread(engine.close)
        del engine
        from runners.modeling.devices import free_unloaded

        await asyncio.to_thread(free_unloaded)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    @property
    def limits(self) -> RequestLimits:
        return self._arguments

    @property
    def generates(self) -> bool:
        return self._engine is None or self._engine.generates

    @property
    def max_length(self) -> int:
        return self.engine.max_length

    @property
    def reports_cached_tokens(self) -> bool:
        """Whether usage has the number of cached tokens of the prompts: vLLM's `--enable-prompt-tokens-details`."""
        argument = self._arguments.engine.get(_PROMPT_TOKENS_DETAILS)
        return argument is not None and argument.value.lower() != "false"

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        """Continue each text; all at once, so that the engine can batch them.

        Raises:
            InputError: a text cannot be continued; the message names its position.
            LimitExceededError: there are too many texts, or too long ones.
            OverloadedError: too many requests are under way.
        """
        self.limits.check("max_client_batch_size", len(texts), "texts")
        for position, text in enumerate(texts):
            if isinstance(text, TextInput) and text.pair is not None:
                raise InputError(f"text {position} is a pair, and {self._task} takes single texts")
            if isinstance(text, TextInput) and text.words is not None:
                raise InputError(f"text {position} is split into words, and {self._task} takes whole texts")
        outputs: list[list[str]] = [[] for _ in texts]
        async with self._generate(_make_request(texts, options), describe_text_error) as accepted:
            async for index, delta in accepted.deltas:
                outputs[index].append(delta.text)
        return [Prediction({MAIN: Text("".join(parts))}) for parts in outputs]

    async def stream(self, text: TextInput | TokenInput, options: Options) -> AsyncGenerator[Delta | None, None]:
        async with self.generate(_make_request([text], options)) as accepted:
            yield None
            async for _, delta in accepted.deltas:
                yield delta

    def generate(self, request: GenerationRequest) -> AbstractAsyncContextManager[AcceptedRequest]:
        return self._generate(request, keep_error)

    @contextlib.asynccontextmanager
    async def _generate(
        self, request: GenerationRequest, describe_error: DescribeError
    ) -> AsyncIterator[AcceptedRequest]:
        log_inputs(request.prompts, self._arguments.log_inputs)
        with self.admission.admit(check_prompts(self.limits, request.prompts, request.choices)) as admitted:
            prompts = []
            for position, prompt in enumerate(request.prompts):
                try:
                    prompts.append(await self._tokenize(prompt, request.options))
                except InputError as error:
                    raise describe_error(position, error) from error.__cause__
            if (record := current_record.get()) is not None:
                record.sampling = request.sampling
                if not self.engine.notes_records:
                    record.texts += len(prompts)
                    record.prompt_tokens += sum(map(len, prompts))
            echoes = await self._echo(request, prompts) if request.echo else ()
            sequences = Sequences(prompts, request.sampling, request.choices)
            sequences.check_request()
            async with run(self.engine, sequences, admitted, describe_error) as deltas:
                checked = limit_logprobs(deltas, sequences) if request.collected else deltas
                yield AcceptedRequest(prompts, request.choices, echoes, checked)

    async def tokenize(
        self, prompts: Sequence[Prompt], options: TokenizeOptions = DEFAULT_TOKENIZE_OPTIONS
    ) -> list[TokenizedPrompt]:
        if options.prompt_name is not None:
            raise InputError(
                f"prompt_name does not apply to {self._task}, whose model has no named prompts", "prompt_name"
            )
        log_inputs(prompts, self._arguments.log_inputs)
        self.limits.check("max_client_batch_size", len(prompts), "prompts")
        describe_error = keep_error if len(prompts) == 1 else describe_text_error
        tokenized = []
        with self.admission.admit(check_prompts(self.limits, prompts, choices=0)):
            for position, prompt in enumerate(prompts):
                try:
                    tokenized.append(await self._list_tokens(prompt, options))
                except InputError as error:
                    raise describe_error(position, error) from error.__cause__
        return tokenized

    async def _list_tokens(self, prompt: Prompt, options: TokenizeOptions) -> TokenizedPrompt:
        ids = await self._tokenize(prompt, PromptOptions(options.add_special_tokens))
        if not options.details:
            return TokenizedPrompt(ids)
        strings, special = await self.engine.describe_tokens(ids)
        return TokenizedPrompt(ids, prompt if isinstance(prompt, str) else None, strings, special)

    async def detokenize(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        self.limits.check("max_client_batch_size", len(ids), "sequences of tokens")
        self.limits.check("max_queue_tokens", sum(map(len, ids)), "tokens of all sequences")
        texts = []
        with self.admission.admit():
            for position, each in enumerate(ids):
                with with_text_position(position):
                    texts.append(await self.engine.detokenize(each, skip_special_tokens))
        return texts

    @property
    def openai_application(self) -> OpenAIApplication | None:
        return None if self._engine is None else self._engine.openai_application

    async def _tokenize(self, prompt: Prompt, options: PromptOptions) -> list[int]:
        """The token ids of a prompt; of token ids, those that the options keep."""
        match prompt:
            case str():
                return await self.engine.tokenize(prompt, options)
            case Chat():
                return await self.engine.tokenize_chat(prompt, options)
            case np.ndarray():
                return self.engine.truncate(await _list_ids(prompt), options)
            case _:
                return self.engine.truncate(prompt, options)

    async def _echo(self, request: GenerationRequest, prompts: Sequence[Sequence[int]]) -> list[EchoedPrompt]:
        """The prompts as text.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        engine = self.engine
        echoes = []
        for prompt, ids in zip(request.prompts, prompts, strict=True):
            is_whole = isinstance(prompt, str) and request.options.truncate_to is None
            text = str(prompt) if is_whole else await engine.detokenize(ids)
            has_first = request.sampling.prompt_logprobs is not None and bool(ids)
            echoes.append(EchoedPrompt(text, await engine.detokenize(ids[:1]) if has_first else ""))
        return echoes

    async def _start_engine(self) -> VllmEngine | TransformersEngine:
        arguments = self._arguments
        prepare_spin_control()
        prepare_allocator()
        architectures, encoder_decoder = await asyncio.to_thread(_read_config, arguments)
        if self._task is None:
            self._task = infer_task(architectures)
        if self._task is Task.FILL_MASK:
            raise ModelLoadError("backend vllm cannot fill masks: leave it at auto")
        reason: str | None = "backend is huggingface"
        if arguments.backend != "huggingface":
            reason = await asyncio.to_thread(unsupported_reason, arguments, architectures, encoder_decoder)
        if reason is None:
            if arguments.workers > 1:
                # Each worker would use the same devices, and nearly all of their memory.
                raise ArgumentsError(
                    f"workers is {arguments.workers}, but vLLM runs this model, and one engine batches all requests: "
                    "set it to 1; --data-parallel-size is for copies of the model"
                )
            inherit_short_spinning()
            inherit_default_allocator()
            return await VllmEngine.start(arguments, self._names, self.admission)
        if arguments.backend == "vllm":
            raise ModelLoadError(f"backend vllm cannot run {arguments.model}: {reason}")
        logger.info("transformers runs %s, because %s", self.name, reason)
        arguments.warn_of_engine_arguments(f"this model does not run on vLLM, because {reason}", _HONOURED)
        from runners.generator.transformers_engine import TransformersEngine

        engine = TransformersEngine(arguments, self._device)
        await asyncio.to_thread(engine.load)
        return engine


def _make_request(texts: Sequence[TextInput | TokenInput], options: Options) -> GenerationRequest:
    """The request of V1 or the Open Inference Protocol."""
    prompts = [text.text if isinstance(text, TextInput) else text.input_ids for text in texts]
    return GenerationRequest(prompts, options.sampling, options.prompt)


async def _list_ids(ids: NDArray[np.int64]) -> list[int]:
    """Token ids as a list; other tasks of the event loop run in between."""
    listed: list[int] = []
    for start in range(0, len(ids), _IDS_AT_ONCE):
        listed += ids[start : start + _IDS_AT_ONCE].tolist()
        await asyncio.sleep(0)
    return listed


def _read_config(arguments: Arguments) -> tuple[list[str], bool]:
    """The model's architectures, and whether it is an encoder-decoder."""
    from runners.modeling.loading import load_config

    config: Any = load_config(arguments)
    return list(config.architectures or []), bool(config.is_encoder_decoder)
