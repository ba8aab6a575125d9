"""Generators run by `transformers`, in continuous batches of our own.

The event loop checks requests and hands out text; a thread tokenizes; another one loads the model and then does nothing
but run the decode loop. torch and transformers are imported in that thread: importing this module stays cheap.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from runners.arguments import Arguments
from runners.cores import count_cores
from runners.errors import EngineDeadError, InputError, ModelNotReadyError
from runners.generation import Delta, PromptOptions, Sampling, check_characters
from runners.metrics import Load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from runners.generator.beams import Hypothesis
    from runners.generator.defaults import Defaults
    from runners.generator.limits import Limits
    from runners.generator.scheduler import Output, Request, Scheduler

logger = logging.getLogger(__name__)

_LONGEST_STEP_SECONDS = 10
_NO_OPTIONS = PromptOptions()


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Everything that exists once the model is loaded."""

    tokenizer: PreTrainedTokenizerBase
    longest_token: int
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

    async def tokenize(self, prompt: str, options: PromptOptions = _NO_OPTIONS) -> list[int]:
        """The token ids of a prompt, with the special tokens that the model expects, too many as they may be.

        Raises:
            InputError: the prompt is so long that it is not tokenized.
        """
        loaded = self._model()
        tokenizer = loaded.tokenizer
        check_characters(prompt, loaded.limits.prompt, loaded.longest_token)

        def encode() -> list[int]:
            languages = loaded.defaults.languages
            return languages.encode(
                tokenizer, prompt, options.source_language, not self._arguments.disable_special_tokens
            )

        return await asyncio.get_running_loop().run_in_executor(self._tokenizer_thread, encode)

    async def tokenize_chat(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None, **options: Any
    ) -> list[int]:
        """The token ids of a chat by the model's chat template; `options` are the template's variables.

        Raises:
            InputError: the model has no chat template, or it refuses the messages.
        """
        loaded = self._model()
        tokenizer = loaded.tokenizer
        if not tokenizer.chat_template:
            raise InputError("this model has no chat template: use completions")
        if not options.get("continue_final_message"):
            options.setdefault("add_generation_prompt", True)

        def render() -> list[int]:
            from jinja2 import TemplateError

            try:
                text = str(
                    tokenizer.apply_chat_template(
                        [dict(message) for message in messages],
                        tools=None if tools is None else [dict(tool) for tool in tools],
                        tokenize=False,
                        **options,
                    )
                )
            except (TemplateError, TypeError, ValueError) as error:
                raise InputError(f"the chat template refuses the messages: {error}") from error
            check_characters(text, loaded.limits.prompt, loaded.longest_token)
            # Templates write the special tokens themselves.
            ids: list[int] = tokenizer(text, add_special_tokens=False).input_ids
            return ids

        return await asyncio.get_running_loop().run_in_executor(self._tokenizer_thread, render)

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Continue a prompt; to close the iterator frees the sequence before the next step.

        What beams find comes at the end, a delta a choice.

        Raises:
            InputError: the prompt is empty or too long, or a parameter is not for this model.
            ModelNotReadyError: the model is not loaded, or the server is shutting down.
            EngineDeadError: the model thread has died.
        """
        from runners.generator.scheduler import Generation

        loaded = self._model()
        request = self._request(loaded, prompt, sampling)
        generation = Generation(request, loaded.tokenizer)
        loaded.scheduler.submit(generation)
        try:
            while True:
                item = await generation.queue.get()
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, list):
                    # Long texts of many choices would hold up the model, or the event loop.
                    for delta in await asyncio.get_running_loop().run_in_executor(
                        self._tokenizer_thread, _tell_found, request, loaded.tokenizer, item
                    ):
                        yield delta
                    return
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            generation.cancelled = True

    def _request(self, loaded: _Loaded, prompt: Sequence[int], sampling: Sampling) -> Request:
        from runners.generator.scheduler import Request

        defaults = loaded.defaults
        defaults.check(prompt)
        room = loaded.limits.room(len(prompt), sampling.max_tokens)
        if sampling.max_tokens is None:
            room = min(room, defaults.max_tokens or room)
        settings, processors = defaults.process(defaults.resolve(sampling), sampling, prompt, room)
        is_decoder = defaults.decoder_start is None
        return Request(
            prompt=prompt,
            counted=prompt if defaults.decoder_start is None else [defaults.decoder_start],
            context=prompt if is_decoder else (),
            settings=settings,
            seed=sampling.seed,
            max_tokens=room,
            stop=tuple(stop for stop in sampling.stop if stop) or defaults.stop,
            eos=frozenset() if sampling.ignore_eos else defaults.eos,
            processors=processors,
            beams=defaults.find_beams(sampling),
        )

    def close(self) -> None:
        """Stop the threads; what runs fails. Returns when the step that runs is done."""
        self._closed = True
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)
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

        from runners.encoder.linear import warm_linears
        from runners.generator.decoding import Decoder
        from runners.generator.defaults import Defaults
        from runners.generator.limits import Limits
        from runners.generator.probe import choose_batching, speed_up
        from runners.generator.scheduler import MAX_ROWS, Scheduler
        from runners.loading import load_config, load_model, load_tokenizer, resolve_batch_tokens

        # What is worth saying about a load is said in our own errors and log lines.
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        arguments = self._arguments
        torch.set_num_threads(count_cores(arguments.workers))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = load_config(arguments)
        tokenizer = load_tokenizer(arguments, needs_fast=False)
        auto_class: type[Any] = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
        model = load_model(arguments, auto_class, device, unused_prefixes=())
        defaults = Defaults.of(model, tokenizer)
        limits = Limits.of(model, tokenizer, arguments.max_length)
        logger.info("%s", speed_up(model))
        decoder = Decoder(model, defaults.decoder_start)
        logger.info("%s", choose_batching(decoder))
        warm_linears(model, range(1, MAX_ROWS + 1))
        max_batch_tokens = resolve_batch_tokens(arguments, device)
        # What is loaded stays: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        return _Loaded(
            tokenizer,
            max(map(len, tokenizer.get_vocab())),
            limits,
            defaults,
            Scheduler(decoder, defaults.vocabulary, max_batch_tokens, Load(arguments.model_name)),
        )


def _tell_found(request: Request, tokenizer: PreTrainedTokenizerBase, found: Sequence[Hypothesis]) -> list[Delta]:
    """What beams have found, as deltas."""
    from runners.generator.scheduler import Output

    return [_tell(Output(request, tokenizer), hypothesis, choice) for choice, hypothesis in enumerate(found)]


def _tell(output: Output, hypothesis: Hypothesis, choice: int) -> Delta:
    """A whole sequence as one delta; a stop string cuts it."""
    taken: list[Delta] = []
    for token in hypothesis.tokens:
        taken.append(output.take(token, None))
        if output.finished:
            break
    return replace(
        taken[-1],
        text="".join(delta.text for delta in taken),
        token_ids=hypothesis.tokens[: len(taken)],
        choice=choice,
    )
