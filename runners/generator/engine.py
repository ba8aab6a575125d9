"""Generators run by `transformers`, in continuous batches of our own.

The event loop checks requests and hands out text; a thread tokenizes; another one loads the model and then does nothing
but run the decode loop. torch and transformers are imported in that thread: importing this module stays cheap.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from runners.core.arguments import Arguments
from runners.core.errors import EngineDeadError, InputError, ModelNotReadyError
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, Delta, PromptOptions, Sampling
from runners.core.machine import count_cores
from runners.core.metrics import QueueMetrics

if TYPE_CHECKING:
    from runners.core.admission import Admitted
    from runners.generator.beams import Hypothesis
    from runners.generator.constraints import GrammarMatcher, Grammars
    from runners.generator.generation_defaults import Defaults
    from runners.generator.generation_request import Generation, Request
    from runners.generator.length_limits import Limits
    from runners.generator.prompts import Prompts
    from runners.generator.scheduler import Scheduler
    from runners.generator.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_LONGEST_STEP_SECONDS = 10
_GRAMMAR_THREADS = 2
# Most logits of a prompt, 1 GiB in float32, where a model cannot stop in between to have those taken that it has.
_MOST_LOGITS = 2**28


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Everything that exists once the model is loaded."""

    vocabulary: Vocabulary
    prompts: Prompts
    grammars: Grammars
    limits: Limits
    defaults: Defaults
    scheduler: Scheduler


class TransformersEngine:
    """A causal model or an encoder-decoder, run in a thread of its own."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._loaded: _Loaded | None = None
        self._closed = False
        self._tokenizer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")
        self._template_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="template")
        # More than one: a slow grammar is not to keep others waiting.
        self._grammar_threads = ThreadPoolExecutor(max_workers=_GRAMMAR_THREADS, thread_name_prefix="grammar")
        self._model_thread: threading.Thread | None = None

    @property
    def max_length(self) -> int:
        """Most tokens of a causal model's prompt and output together, and of an encoder-decoder's prompt."""
        return self._model().limits.prompt

    @property
    def failed(self) -> bool:
        return self._loaded is not None and self._loaded.scheduler.failed

    @property
    def count(self) -> int:
        """How many sequences wait or run."""
        return self._model().scheduler.count

    def load(self) -> None:
        """Load and warm the model; blocks until it is ready.

        Raises:
            ModelLoadError: the model cannot be generated with.
        """
        loading: Future[_Loaded] = Future()
        self._model_thread = threading.Thread(target=self._work, args=(loading,), name="model", daemon=True)
        self._model_thread.start()
        self._loaded = loading.result()

    async def tokenize(self, prompt: str, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        """The token ids of a prompt, with the special tokens that the model expects, too many as they may be.

        Raises:
            InputError: the prompt is so long that it is not tokenized, or the options do not fit the model.
        """
        prompts = self._model().prompts
        return await self._tokenizing(lambda: prompts.encode(prompt, options))

    async def tokenize_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any] = MappingProxyType({}),
        options: PromptOptions = DEFAULT_PROMPT_OPTIONS,
    ) -> list[int]:
        """The token ids of a chat by the model's chat template.

        Raises:
            InputError: the model has no chat template, or it refuses the messages, or as `tokenize`.
        """
        prompts = self._model().prompts
        if not variables.get("continue_final_message"):
            variables = {"add_generation_prompt": True, **variables}
        text = await self._rendering(lambda: prompts.render(messages, tools, variables))
        return await self._tokenizing(lambda: prompts.encode_chat(text, options))

    def truncate(self, prompt: Sequence[int], options: PromptOptions) -> list[int]:
        """As many tokens of a prompt as the options keep.

        Raises:
            InputError: more are to be kept than the model takes.
        """
        return self._model().prompts.truncate(prompt, options)

    async def detokenize(self, ids: Sequence[int]) -> str:
        """The text of tokens, special ones too.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        prompts = self._model().prompts
        return await self._tokenizing(lambda: prompts.decode(ids))

    async def token_strings(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary has them.

        Raises:
            InputError: a token id is outside of the vocabulary.
        """
        prompts = self._model().prompts
        return await self._tokenizing(lambda: prompts.strings(ids))

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, admitted: Admitted | None = None
    ) -> AsyncGenerator[Delta, None]:
        """Continue a prompt; to close the iterator frees the sequence before the next step.

        What beams find comes at the end, a delta a choice.

        Raises:
            InputError: the prompt is empty or too long, a token id is outside of the vocabulary, the constraint cannot
                be used, or parameters contradict each other.
            ModelNotReadyError: the model is not loaded, or the server is shutting down.
            EngineDeadError: the model thread has died.
        """
        from runners.generator.generation_request import Generation

        loaded = self._model()
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
                    raise item
                deltas = [item] if isinstance(item, Delta) else await self._tell_found(loaded, request, item)
                for delta in deltas:
                    yield await self._with_prompt_logprobs(generation, delta) if is_first else delta
                    is_first = False
                if deltas[-1].finish_reason is not None:
                    return
        finally:
            loaded.scheduler.cancel(generation)

    async def _tell_found(self, loaded: _Loaded, request: Request, found: Sequence[Hypothesis]) -> list[Delta]:
        """The texts of beams: they are long, and neither the model nor the event loop nor prompts wait for all."""
        from runners.generator.generation_request import tell_found

        return [
            await self._tokenizing(partial(tell_found, request, loaded.vocabulary, hypothesis, choice))
            for choice, hypothesis in enumerate(found)
        ]

    async def _make_request(self, loaded: _Loaded, prompt: Sequence[int], sampling: Sampling) -> Request:
        from runners.generator.generation_request import Request
        from runners.generator.sampling_checks import find_ends, resolve

        defaults, tokenizer = loaded.defaults, loaded.vocabulary.tokenizer
        room = loaded.limits.room(len(prompt), sampling.max_tokens)
        defaults.check(prompt)
        if sampling.max_tokens is None:
            room = min(room, defaults.limit(sampling) or room)
        if sampling.min_tokens > room:
            raise InputError(f"min_tokens is {sampling.min_tokens}, but max_tokens is {room}", "min_tokens")
        if sampling.prompt_logprobs is not None:
            self._check_scored(loaded, prompt)
        settings = (
            await self._tokenizing(lambda: resolve(sampling, defaults, tokenizer))
            if sampling.bad_words
            else resolve(sampling, defaults, tokenizer)
        )
        settings, processors = defaults.process(settings, sampling, prompt, room)
        is_decoder = defaults.decoder_start is None
        output = [] if defaults.decoder_start is None else [defaults.decoder_start]
        return Request(
            prompt=prompt,
            counted=prompt if is_decoder else output,
            context=prompt if is_decoder else (),
            settings=settings,
            seed=sampling.seed,
            max_tokens=room,
            ends=find_ends(sampling, defaults, tokenizer.eos_token_id),
            stop=tuple(stop for stop in sampling.stop if stop) or defaults.stop,
            include_stop=sampling.include_stop,
            skip_special_tokens=sampling.skip_special_tokens,
            prompt_logprobs=sampling.prompt_logprobs,
            processors=processors,
            matcher=await self._compile(loaded.grammars, sampling),
            beams=defaults.find_beams(sampling) if room else None,
        )

    async def _compile(self, grammars: Grammars, sampling: Sampling) -> GrammarMatcher | None:
        constraint = sampling.constraint
        if constraint is None:
            return None
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._grammar_threads, grammars.compile, constraint)

    def _check_scored(self, loaded: _Loaded, prompt: Sequence[int]) -> None:
        """Refuse log probabilities of a prompt where they cannot be had.

        Raises:
            InputError: the model is an encoder-decoder, or the prompt is too long for it.
        """
        if loaded.defaults.decoder_start is not None:
            raise InputError("an encoder-decoder has no log probabilities of its prompt", "prompt_logprobs")
        if not loaded.scheduler.computes_in_parts and len(prompt) * loaded.defaults.vocabulary > _MOST_LOGITS:
            most = _MOST_LOGITS // loaded.defaults.vocabulary
            raise InputError(
                f"this model gives log probabilities of prompts of {most} tokens at most, not {len(prompt)}",
                "prompt_logprobs",
            )

    async def _with_prompt_logprobs(self, generation: Generation, delta: Delta) -> Delta:
        from runners.generator.logprobs import PromptDescription

        scores, request = generation.prompt_scores, generation.request
        if scores is None:
            return delta
        vocabulary = self._model().vocabulary
        described = PromptDescription(vocabulary, request.prompt, scores, request.skip_special_tokens)
        while not described.is_complete:
            await self._tokenizing(described.extend)
        return replace(delta, prompt_logprobs=tuple(described.positions))

    async def _tokenizing(self, work: Callable[[], _Result]) -> _Result:
        """Do what takes a tokenizer's time in its own thread."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer_thread, work)

    async def _rendering(self, work: Callable[[], str]) -> str:
        """Run a chat template in a thread of its own, where nothing but other chats waits for it."""
        from runners.generator.templates import SECONDS, TimedJob

        loop = asyncio.get_running_loop()
        job = TimedJob(work, SECONDS)
        running = self._template_thread.submit(job.run)

        def watch() -> None:
            # Also where the caller has left: the template would run on.
            if not running.done() and (seconds := job.interrupt()) > 0:
                loop.call_later(seconds, watch)

        loop.call_later(SECONDS, watch)
        return await asyncio.wrap_future(running)

    def close(self) -> None:
        """Stop the threads; what runs fails. Returns when the step that runs is done."""
        self._closed = True
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)
        self._template_thread.shutdown(wait=False, cancel_futures=True)
        self._grammar_threads.shutdown(wait=False, cancel_futures=True)
        if self._loaded is not None:
            self._loaded.scheduler.close()
            if self._model_thread is not None and self._model_thread is not threading.current_thread():
                # A thread that is killed inside torch takes the process down with a message.
                self._model_thread.join(_LONGEST_STEP_SECONDS)

    def _model(self) -> _Loaded:
        if self._loaded is None or self._closed:
            raise ModelNotReadyError("the server is shutting down" if self._closed else "the model is not loaded yet")
        if self._loaded.scheduler.failed:
            raise EngineDeadError("the engine has died: the server stops")
        return self._loaded

    def _work(self, loading: Future[_Loaded]) -> None:
        """The model thread: load, then run the decode loop until it is closed.

        libgomp wants this to be one thread: where another has run a parallel operator before, steps take longer.
        """
        try:
            loaded = self._load()
        except BaseException as error:
            loading.set_exception(error)
            return
        loading.set_result(loaded)
        loaded.scheduler.run()

    def _load(self) -> _Loaded:
        import torch
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
        from transformers.utils import logging as transformers_logging

        from runners.generator.constraints import Grammars
        from runners.generator.decoder import Decoder
        from runners.generator.generation_defaults import Defaults, leave_defaults
        from runners.generator.length_limits import Limits
        from runners.generator.probe import choose_batching, speed_up
        from runners.generator.prompts import Prompts, load_template
        from runners.generator.row_budget import MAX_ROWS
        from runners.generator.scheduler import Scheduler
        from runners.generator.vocabulary import Vocabulary
        from runners.modeling.loading import load_config, load_model, load_tokenizer, resolve_batch_tokens
        from runners.modeling.model_files import load_json
        from runners.modeling.packed_linear import warm_linears
        from runners.modeling.weights import copy_mapped_weights

        # What is worth saying about a load is said in our own errors and log lines.
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        arguments = self._arguments
        given_template = arguments.engine.get("chat_template")
        template = None if given_template is None else load_template(given_template)
        torch.set_num_threads(count_cores(arguments.workers))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = load_config(arguments)
        # `transformers` would take its own defaults, without a word, for a file that is no JSON.
        load_json(arguments, "generation_config.json")
        tokenizer = load_tokenizer(arguments, needs_fast=False)
        if not config.is_encoder_decoder:
            # The end of a prompt is what is gone on with; vLLM does the same.
            tokenizer.truncation_side = "left"
        auto_class: type[Any] = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = load_model(arguments, auto_class, device, unused_prefixes=())
        defaults = Defaults.of(model, tokenizer)
        limits = Limits.of(model, tokenizer, arguments.max_length)
        leave_defaults(model)
        logger.info("%s", speed_up(model))
        copy_mapped_weights(model)
        decoder = Decoder(model, defaults.decoder_start)
        logger.info("%s", choose_batching(decoder))
        warm_linears(model, range(1, MAX_ROWS + 1))
        max_batch_tokens = resolve_batch_tokens(arguments, device)
        vocabulary = Vocabulary(tokenizer, defaults.vocabulary)
        # Of a causal model's context a token is left for the output, as vLLM does.
        most_kept = limits.prompt - (0 if config.is_encoder_decoder else 1)
        return _Loaded(
            vocabulary,
            Prompts(
                vocabulary,
                defaults.languages,
                limits.prompt,
                most_kept,
                not arguments.disable_special_tokens,
                template,
                arguments.max_text_characters,
            ),
            Grammars(vocabulary, defaults.vocabulary, defaults.eos),
            limits,
            defaults,
            Scheduler(decoder, defaults.vocabulary, max_batch_tokens, QueueMetrics(arguments.model_name)),
        )
