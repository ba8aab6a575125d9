"""The flow of a generator: texts -> tokens -> engine -> deltas of text.

The engine, vLLM or `transformers`, is chosen when the model loads, and batches what runs at the same time; this module
admits requests, and tells the engine from the protocols.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from runners.core.admission import Admission, Admitted, check_prompts
from runners.core.arguments import Arguments
from runners.core.draining import wait_until
from runners.core.errors import (
    ArgumentsError,
    EngineDeadError,
    InputError,
    ModelLoadError,
    ModelNotReadyError,
    add_text_position,
    load_errors,
    with_text_position,
)
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, ChatEngine, Delta, PromptOptions
from runners.core.machine import limit_spinning
from runners.core.parallel_sampling import Sequences, run
from runners.core.predictions import MAIN, Options, OutputSpec, Prediction, Text, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import SupportedOptions
from runners.core.runner import Application, TextGenerator
from runners.core.task import Task, infer_task
from runners.generator import vllm
from runners.generator.vllm import VllmEngine

if TYPE_CHECKING:
    from runners.generator.engine import TransformersEngine

logger = logging.getLogger(__name__)

_OUTPUT = OutputSpec(MAIN, str, (-1,))
# Those of vLLM's arguments that have a meaning on `transformers` too.
_TOKENS_DETAILS = "enable_prompt_tokens_details"
# Token ids of which a list is made at once: a ms.
_IDS_AT_ONCE = 2**16
_HONOURED = frozenset({"chat_template", _TOKENS_DETAILS})


class GeneratorRunner:
    """One model that generates text, or whatever else vLLM does with one."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._engine: VllmEngine | TransformersEngine | None = None
        self._task = arguments.task
        self._admission = Admission(arguments)
        self._names = _served_names(arguments)

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
    def ready(self) -> bool:
        return self._engine is not None and not self._engine.failed

    @property
    def failed(self) -> bool:
        return self._engine is not None and self._engine.failed

    @property
    def busy(self) -> bool:
        return self._admission.requests > 0

    @property
    def default_options(self) -> Options:
        return Options()

    @property
    def properties(self) -> Mapping[str, str]:
        return {"task": str(self._task), "max_length": str(self.engine.max_length)}

    def class_name(self, index: int) -> str:
        raise NotImplementedError("a generator has no classes")

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
            raise ModelNotReadyError(f"Model with name {self.name} is not ready.")
        if self._engine.failed:
            raise EngineDeadError("the engine that ran the model has died")
        return self._engine

    async def load(self) -> None:
        with load_errors(self._arguments.model):
            engine = await self._start_engine()
        # What is loaded stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        logger.info("%s is ready: %s from %s", self.name, self._task, self._arguments.model)
        self._engine = engine

    async def unload(self) -> None:
        """Refuse what comes, let what is under way end, and stop the engine; `load` starts another."""
        engine, self._engine = self._engine, None
        if engine is None:
            return
        await wait_until(lambda: not self._admission.requests)
        await asyncio.to_thread(engine.close)
        del engine
        gc.unfreeze()
        gc.collect()

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    @property
    def limits(self) -> RequestLimits:
        """What one request may ask for."""
        return self._arguments

    def admit(self, characters: int = 0) -> AbstractContextManager[Admitted]:
        """Let a request in, from before its prompts are tokenized, for as long as the context lasts.

        Args:
            characters: of its prompts.

        Raises:
            OverloadedError: too many requests are under way, or too much waits.
        """
        return self._admission.admit(characters)

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        """Continue each text; all at once, so that the engine can batch them.

        Raises:
            InputError: a text cannot be continued; the message names its position.
            LimitExceededError: there are too many texts, or too long ones.
            OverloadedError: too many requests are under way.
        """
        self._arguments.check_texts(texts, options)
        for position, given in enumerate(texts):
            if isinstance(given, TextInput) and given.pair is not None:
                raise InputError(f"text {position} is a pair, and {self._task} takes single texts")
            if isinstance(given, TextInput) and given.words is not None:
                raise InputError(f"text {position} is split into words, and {self._task} takes whole texts")
        prompts = await _read_prompts(texts)
        outputs: list[list[str]] = [[] for _ in texts]
        with self.admit(check_prompts(self.limits, prompts)) as admitted:
            tokens = []
            for position, prompt in enumerate(prompts):
                with with_text_position(position):
                    tokens.append(await self.tokenize(prompt, options.prompt))
            sequences = Sequences(tokens, options.sampling)
            async with contextlib.aclosing(run(self.engine, sequences, admitted, _name_text)) as deltas:
                async for item in deltas:
                    if item is not None:
                        outputs[item[0]].append(item[1].text)
        return [Prediction({MAIN: Text("".join(parts))}) for parts in outputs]

    @property
    def generates(self) -> bool:
        """Whether it generates text; vLLM may embed or score instead."""
        return not isinstance(self._engine, VllmEngine) or self._engine.generates

    @property
    def openai_application(self) -> Application | None:
        """vLLM's own layer for OpenAI's API, an ASGI application; None on `transformers`."""
        return self._engine.application if isinstance(self._engine, VllmEngine) else None

    def serves_openai(self, path: str) -> bool:
        """Whether vLLM's own layer for OpenAI's API answers a path, such as /v1/completions."""
        return isinstance(self._engine, VllmEngine) and self._engine.serves(path)

    async def model_cards(self) -> list[dict[str, Any]]:
        """The model as OpenAI's API lists models, by vLLM, with its LoRA adapters; empty on `transformers`."""
        return await self._engine.model_cards() if isinstance(self._engine, VllmEngine) else []

    async def tokenize(self, prompt: str | Sequence[int], options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        """The token ids of a prompt; of one that is token ids already, those that are kept."""
        if isinstance(prompt, str):
            return await self.engine.tokenize(prompt, options)
        return self.engine.truncate(prompt, options)

    @property
    def chat_engine(self) -> ChatEngine:
        """The engine, where this server renders its chats: not on vLLM, which renders them itself."""
        engine = self.engine
        assert not isinstance(engine, VllmEngine), "vLLM renders its chats itself"
        return engine

    @property
    def tells_cached_tokens(self) -> bool:
        """Whether usage tells how much of a prompt was in a cache: vLLM's `--enable-prompt-tokens-details`."""
        given = self._arguments.engine.get(_TOKENS_DETAILS)
        return given is not None and given.value.lower() != "false"

    async def stream(self, given: TextInput | TokenInput, options: Options) -> AsyncGenerator[Delta | None, None]:
        """Continue a text, from None, once it is accepted; to close the iterator frees its sequence.

        Raises:
            InputError, OverloadedError: as `infer`.
        """
        [prompt] = await _read_prompts([given])
        with self.admit(check_prompts(self.limits, [prompt])) as admitted:
            sequences = Sequences([await self.tokenize(prompt, options.prompt)], options.sampling)
            async with contextlib.aclosing(run(self.engine, sequences, admitted)) as deltas:
                async for item in deltas:
                    yield None if item is None else item[1]

    async def _start_engine(self) -> VllmEngine | TransformersEngine:
        arguments = self._arguments
        limit_spinning()
        architectures, encoder_decoder = await asyncio.to_thread(_read_config, arguments)
        if self._task is None:
            self._task = infer_task(architectures)
        if self._task is Task.FILL_MASK:
            raise ModelLoadError("backend vllm cannot fill masks: leave it at auto")
        obstacle: str | None = "backend is huggingface"
        if arguments.backend != "huggingface":
            obstacle = await asyncio.to_thread(vllm.unsupported_reason, arguments, architectures, encoder_decoder)
        if obstacle is None:
            if arguments.workers > 1:
                # Each would be given the same devices, and nearly all of their memory.
                raise ArgumentsError(
                    f"workers is {arguments.workers}, but vLLM runs this model, and one engine batches all requests: "
                    "set it to 1; --data-parallel-size is for copies of the model"
                )
            return await VllmEngine.start(arguments, self._names)
        if arguments.backend == "vllm":
            raise ModelLoadError(f"backend vllm cannot run {arguments.model}: {obstacle}")
        logger.info("transformers runs %s, because %s", self.name, obstacle)
        arguments.ignore_engine_arguments(f"this model does not run on vLLM, because {obstacle}", _HONOURED)
        from runners.generator.engine import TransformersEngine

        engine = TransformersEngine(arguments)
        await asyncio.to_thread(engine.load)
        return engine


async def _read_prompts(texts: Sequence[TextInput | TokenInput]) -> list[str | list[int]]:
    """Texts, or lists of token ids, of which so many are made at a time that nothing else is held up."""
    prompts: list[str | list[int]] = []
    made = 0
    for given in texts:
        if isinstance(given, TextInput):
            prompts.append(given.text)
            continue
        prompt: list[int] = []
        for start in range(0, len(given.input_ids), _IDS_AT_ONCE):
            piece = given.input_ids[start : start + _IDS_AT_ONCE].tolist()
            prompt += piece
            made += len(piece)
            if made >= _IDS_AT_ONCE:
                made = 0
                await asyncio.sleep(0)
        prompts.append(prompt)
    return prompts


def _name_text(position: int, error: Exception) -> Exception:
    return add_text_position(error, position) if isinstance(error, InputError) else error


def _served_names(arguments: Arguments) -> tuple[str, ...]:
    """`model_name`, and vLLM's `served_model_name`, which alone counts where the former is not given."""
    given = arguments.engine.get("served_model_name")
    others = vllm.split_words(given.value) if given is not None else []
    own = [arguments.model_name] if "model_name" in arguments.model_fields_set or not others else []
    return tuple(dict.fromkeys([*own, *others]))


def _read_config(arguments: Arguments) -> tuple[list[str], bool]:
    """The model's architectures, and whether it is an encoder-decoder."""
    from runners.modeling.loading import load_config

    config: Any = load_config(arguments)
    return list(config.architectures or []), bool(config.is_encoder_decoder)
