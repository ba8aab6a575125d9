"""Generators run by `transformers`, in continuous batches of our own.

The event loop checks requests and hands out text; a thread tokenizes; another one loads the model and then does nothing
but run the decode loop. torch and transformers are imported in that thread: importing this module stays cheap.

Not applied of a generation_config.json: beam search, no_repeat_ngram_size, bad_words_ids, suppress_tokens, min_length,
forced_eos_token_id and other processors; of it hold the temperature, top_k, top_p, min_p and repetition_penalty, where
set, the start, forced first and end tokens, and the length of an encoder-decoder's output.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from runners.arguments import Arguments
from runners.cores import count_cores
from runners.errors import EngineDeadError, ModelNotReadyError
from runners.generation import USUAL_PROMPT, Delta, PromptOptions, Sampling, check_characters, truncate
from runners.metrics import Load

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from runners.generator.limits import Defaults, Limits
    from runners.generator.scheduler import Scheduler

logger = logging.getLogger(__name__)

_LONGEST_STEP_SECONDS = 10


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

    async def tokenize(self, prompt: str, options: PromptOptions = USUAL_PROMPT) -> list[int]:
        """The token ids of a prompt, with the special tokens that the model expects, too many as they may be.

        Raises:
            InputError: the prompt is so long that it is not tokenized.
        """
        loaded = self._model()
        tokenizer = loaded.tokenizer
        check_characters(prompt, loaded.limits.prompt, loaded.longest_token)
        special = not self._arguments.disable_special_tokens
        if options.add_special_tokens is not None:
            special = options.add_special_tokens

        def encode() -> list[int]:
            ids: list[int] = tokenizer(prompt, add_special_tokens=special).input_ids
            return list(truncate(ids, options, loaded.limits.prompt, _side(tokenizer)))

        return await asyncio.get_running_loop().run_in_executor(self._tokenizer_thread, encode)

    async def tokenize_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
        options: PromptOptions = USUAL_PROMPT,
    ) -> list[int]:
        """The token ids of a chat by the model's chat template.

        Args:
            messages: their content is a string or a list of parts with a `type` and a `text`.
            variables: of the template.

        Raises:
            InputError: the model has no chat template, or it refuses the messages.
        """
        from runners.generator.chat_template import render_chat

        loaded = self._model()
        tokenizer = loaded.tokenizer

        def render() -> list[int]:
            text = render_chat(tokenizer, messages, tools, variables)
            check_characters(text, loaded.limits.prompt, loaded.longest_token)
            # Templates write the special tokens themselves.
            ids: list[int] = tokenizer(text, add_special_tokens=bool(options.add_special_tokens)).input_ids
            return list(truncate(ids, options, loaded.limits.prompt, _side(tokenizer)))

        return await asyncio.get_running_loop().run_in_executor(self._tokenizer_thread, render)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt, special tokens included.

        Raises:
            InputError: a token is outside of the vocabulary.
        """
        from runners.generator.text import decode

        loaded = self._model()
        loaded.defaults.check(token_ids)
        decoding = partial(decode, loaded.tokenizer, token_ids, skip_special_tokens=False)
        return await asyncio.get_running_loop().run_in_executor(self._tokenizer_thread, decoding)

    async def name_tokens(self, token_ids: Sequence[int]) -> list[str]:
        """The tokens as the vocabulary has them."""
        loaded = self._model()
        loaded.defaults.check(token_ids)
        return list(loaded.tokenizer.convert_ids_to_tokens(list(token_ids)))

    async def generate(self, prompt: Sequence[int], sampling: Sampling) -> AsyncGenerator[Delta, None]:
        """Continue a prompt; to close the iterator frees the sequence before the next step.

        Raises:
            InputError: the prompt is empty or too long, or a token id, also of logit_bias, outside of the vocabulary.
            ModelNotReadyError: the model is not loaded, or the server is shutting down.
            EngineDeadError: the model thread has died.
        """
        from runners.generator.scheduler import Generation, Request

        loaded = self._model()
        loaded.defaults.check(prompt)
        room = loaded.limits.room(len(prompt), sampling.max_tokens)
        is_decoder = loaded.defaults.decoder_start is None
        output = [] if loaded.defaults.decoder_start is None else [loaded.defaults.decoder_start]
        request = Request(
            prompt=prompt,
            counted=prompt if is_decoder else output,
            context=prompt if is_decoder else (),
            settings=loaded.defaults.resolve(sampling),
            seed=sampling.seed,
            max_tokens=room,
            stop=tuple(stop for stop in sampling.stop if stop),
            eos=frozenset() if sampling.ignore_eos else loaded.defaults.eos,
        )
        generation = Generation(request, loaded.tokenizer)
        loaded.scheduler.submit(generation)
        try:
            while True:
                item = await generation.queue.get()
                if isinstance(item, Exception):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            generation.cancelled = True

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
        from runners.generator.limits import Defaults, Limits
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
        tokenizer = load_tokenizer(arguments)
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
            Scheduler(
                decoder, defaults.vocabulary, defaults.forced_first, max_batch_tokens, Load(arguments.model_name)
            ),
        )


def _side(tokenizer: PreTrainedTokenizerBase) -> Literal["left", "right"]:
    """Where the tokenizer drops tokens."""
    return "left" if tokenizer.truncation_side == "left" else "right"
