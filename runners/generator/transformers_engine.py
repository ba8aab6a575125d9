"""The engine that runs generators by `transformers`, in continuous batches of this server's own.

The event loop checks requests and hands out text. One thread tokenizes, one renders chat templates, a few compile
grammars; the device thread loads the model and runs the steps of the decode loop. torch and transformers are imported
in that thread, so that importing this module stays cheap.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

from runners.core.arguments import Arguments
from runners.core.device_thread import DeviceThread
from runners.core.errors import EngineDeadError, ModelNotReadyError
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, Chat, Delta, PromptOptions, Sampling
from runners.core.generation_metrics import GenerationMetrics, SequenceMetrics
from runners.core.machine import count_cores
from runners.core.request_record import current_record
from runners.core.runner import OpenAIApplication, RunnerDetails

if TYPE_CHECKING:
    from runners.core.admission import Admitted
    from runners.generator.beams import Hypothesis
    from runners.generator.constraints import GrammarMatcher, Grammars
    from runners.generator.loader import LoadedGenerator
    from runners.generator.sequence_state import Generation, Request

T = TypeVar("T")

_GRAMMAR_THREADS = 2


class TransformersEngine:
    """Runs a causal model or an encoder-decoder in the device thread."""

    generates = True
    notes_records = False
    openai_application: OpenAIApplication | None = None

    def __init__(self, arguments: Arguments, device: DeviceThread | None = None) -> None:
        """
        Args:
            device: the thread that all models share; None for one of its own.
        """
        self._arguments = arguments
        self._device = device or DeviceThread()
        self._owns_device = device is None
        self._loaded: LoadedGenerator | None = None
        self._metrics = GenerationMetrics(arguments.model_name)
        self._closed = False
        self._tokenizer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self._template_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="template")
        # More than one thread, so that a slow grammar does not block others.
        self._grammar_threads = ThreadPoolExecutor(max_workers=_GRAMMAR_THREADS, thread_name_prefix="grammar")

    @property
    def max_length(self) -> int:
        """Most tokens of a causal model's prompt and output together, and of an encoder-decoder's prompt."""
        return self._model().limits.prompt

    @property
    def failed(self) -> bool:
        return self._loaded is not None and self._loaded.scheduler.failed

    @property
    def stuck(self) -> bool:
        return self._device.stuck

    @property
    def details(self) -> RunnerDetails:
        # Metrics ask for them also when the server ends.
        return RunnerDetails() if self._loaded is None else self._loaded.details

    @property
    def count(self) -> int:
        """Number of sequences that wait or run."""
        return self._model().scheduler.count

    def load(self) -> None:
        """Load and warm the model; blocks until it is ready.

        Raises:
            ModelLoadError: the model cannot be generated with.
        """
        # The result of a job may outlive it, so it is not the model.
        self._device.run(self._load).result()

    async def tokenize(self, prompt: str, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        """As `Engine.tokenize`. The result may have more tokens than the model takes; `generate` refuses these."""
        prompts = self._model().prompts
        return await self._run_in_tokenizer_thread(lambda: prompts.encode(prompt, options))

    async def tokenize_chat(self, chat: Chat, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        prompts = self._model().prompts
        variables = chat.variables
        if not variables.get("continue_final_message"):
            variables = {"add_generation_prompt": True, **variables}
        text = await self._run_in_template_thread(lambda: prompts.render(chat.messages, chat.tools, variables))
        return await self._run_in_tokenizer_thread(lambda: prompts.encode_chat(text, options))

    def truncate(self, prompt: Sequence[int], options: PromptOptions) -> list[int]:
        return self._model().prompts.truncate(prompt, options)

    async def detokenize(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        prompts = self._model().prompts
        return await self._run_in_tokenizer_thread(lambda: prompts.decode(ids, skip_special_tokens))

    async def describe_tokens(self, ids: Sequence[int]) -> tuple[list[str], list[bool]]:
        prompts = self._model().prompts
        return await self._run_in_tokenizer_thread(lambda: prompts.describe(ids))

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, admitted: Admitted | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Continue a prompt; closing the iterator frees the sequence before the next step.

        Beam search yields a delta for each choice, at the end.

        Raises:
            InputError: the prompt is empty or too long, a token id is outside of the vocabulary, the constraint cannot
                be used, or parameters contradict each other.
            ModelNotReadyError: the model is not loaded, or the server is shutting down.
            EngineDeadError: the engine has died.
        """
        from runners.generator.sequence_state import Generation

        loaded = self._model()
        record = current_record.get()
        counted = SequenceMetrics(self._metrics, perf_counter() if record is None else record.started, len(prompt))
        request = await self._make_request(loaded, prompt, sampling)
        generation = Generation(request, loaded.vocabulary, object() if admitted is None else admitted)
        loaded.scheduler.submit(generation)
        try:
            if admitted is not None:
                admitted.on_queued()
            is_first = True
            while True:
                item = await generation.queue.get()
                if is_first and admitted is not None:
                    admitted.start(len(prompt))
                if isinstance(item, Exception):
                    counted.end("error")
                    raise item
                deltas = [item] if isinstance(item, Delta) else await self._describe_beams(loaded, request, item)
                counted.add(deltas)
                for delta in deltas:
                    yield await self._with_prompt_logprobs(generation, delta) if is_first else delta
                    is_first = False
                if deltas[-1].finish_reason is not None:
                    return
        finally:
            counted.end("abort")
            loaded.scheduler.cancel(generation)

    async def _describe_beams(
        self, loaded: LoadedGenerator, request: Request, hypotheses: Sequence[Hypothesis]
    ) -> list[Delta]:
        """The deltas of beams. They are long, so that each is a task of its own in the tokenizer thread."""
        from runners.generator.sequence_state import describe_beam

        return [
            await self._run_in_tokenizer_thread(partial(describe_beam, request, loaded.vocabulary, hypothesis, choice))
            for choice, hypothesis in enumerate(hypotheses)
        ]

    async def _make_request(self, loaded: LoadedGenerator, prompt: Sequence[int], sampling: Sampling) -> Request:
        max_tokens = loaded.limit_output(prompt, sampling)
        if sampling.bad_words:
            settings = await self._run_in_tokenizer_thread(lambda: loaded.resolve(sampling))
        else:
            settings = loaded.resolve(sampling)
        matcher = await self._compile(loaded.grammars, sampling)
        return loaded.make_request(prompt, sampling, max_tokens, settings, matcher)

    async def _compile(self, grammars: Grammars, sampling: Sampling) -> GrammarMatcher | None:
        constraint = sampling.constraint
        if constraint is None:
            return None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._grammar_threads, grammars.compile, constraint)

    async def _with_prompt_logprobs(self, generation: Generation, delta: Delta) -> Delta:
        from runners.generator.logprobs import PromptDescription

        scores, request = generation.prompt_scores, generation.request
        if scores is None:
            return delta
        vocabulary = self._model().vocabulary
        described = PromptDescription(vocabulary, request.prompt, scores, request.skip_special_tokens)
        while not described.is_complete:
            await self._run_in_tokenizer_thread(described.extend)
        return replace(delta, prompt_logprobs=tuple(described.positions))

    async def _run_in_tokenizer_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer_thread, work)

    async def _run_in_template_thread(self, work: Callable[[], str]) -> str:
        """Run a chat template in a thread in which only other chats wait for it.

        Raises:
            InputError: the template takes too long.
        """
        from runners.generator.chat_templates import SECONDS, TimedJob

        loop = asyncio.get_running_loop()
        job = TimedJob(work, SECONDS)
        running = self._template_thread.submit(job.run)

        def interrupt_when_due() -> None:
            # Also after the caller has been cancelled: the template would go on.
            if not running.done() and (seconds := job.interrupt()) > 0:
                loop.call_later(seconds, interrupt_when_due)

        loop.call_later(SECONDS, interrupt_when_due)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Stop the threads; requests that run fail. Returns once the current step is done."""
        self._closed = True
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)
        self._template_thread.shutdown(wait=False, cancel_futures=True)
        self._grammar_threads.shutdown(wait=False, cancel_futures=True)
        if self._loaded is not None:
            self._loaded.scheduler.close()
            self._device.detach(self._loaded.scheduler)
        if self._owns_device:
            self._device.close()

    def _model(self) -> LoadedGenerator:
        if self._closed:
            raise ModelNotReadyError.of_shutdown()
        if self._loaded is None:
            raise ModelNotReadyError("the model is not loaded yet")
        if self._loaded.scheduler.failed:
            raise EngineDeadError.of_server()
        return self._loaded

    def _load(self) -> None:
        """Called in the device thread."""
        from runners.generator.loader import load_generator
        from runners.modeling.device_failures import device_failures
        from runners.modeling.devices import choose_device

        self._device.control_spinning(count_cores(self._arguments.workers))
        device = choose_device(self._arguments, self._device.position)
        with device_failures(device):
            self._loaded = load_generator(self._arguments, self._device.changed, device)
        self._device.attach(self._loaded.scheduler)
