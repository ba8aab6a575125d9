"""vLLM's engine, which is started with its layer for OpenAI's API."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from argparse import Namespace
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from runners.core.arguments import Arguments
from runners.core.errors import (
    ArgumentsError,
    EngineDeadError,
    InputError,
    ModelLoadError,
    OverloadedError,
    RunnerError,
)
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, Chat, Delta, PromptOptions, Sampling
from runners.core.request_record import current_record
from runners.core.runner import RunnerDetails
from runners.core.tokens import check_token_ids
from runners.core.tracing import engine_headers
from runners.generator.engine import check_characters
from runners.generator.vllm.command_line import parse_arguments
from runners.generator.vllm.deltas import DeltaReader
from runners.generator.vllm.errors import describe_error, input_errors
from runners.generator.vllm.openai_application import VllmOpenAIApplication
from runners.generator.vllm.sampling import check_length, make_sampling_params, max_output_tokens
from runners.modeling.dtypes import name_dtype

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.outputs import RequestOutput
    from vllm.renderers import TokenizeParams
    from vllm.v1.engine.async_llm import AsyncLLM

    from runners.core.admission import Admission, Admitted
    from runners.generator.vllm.recording import RecordingLLM

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
# vLLM refuses a request within this time, or not at all.
_REFUSAL_SECONDS = 0.2
_SHUTDOWN_SECONDS = 10.0
_EXIT_SECONDS = 5.0
_ABORT_SECONDS = 3.0
_LAST_ANSWERS_SECONDS = 0.5


class VllmEngine:
    """vLLM's AsyncLLM, which runs the model in a process of its own, and its OpenAI layer."""

    notes_records = True

    def __init__(
        self, engine: RecordingLLM, openai_application: VllmOpenAIApplication, lifespan: contextlib.AsyncExitStack
    ) -> None:
        self._engine = engine
        self._lifespan = lifespan
        self.stuck = False
        self._ids = itertools.count()
        self._defaults: dict[str, Any] = engine.model_config.get_diff_sampling_param()
        # A model that generates no text may have no tokenizer.
        self._special = frozenset(getattr(engine.get_tokenizer(), "all_special_ids", ()))
        self._loop = asyncio.get_running_loop()
        self.openai_application = openai_application

    @classmethod
    async def start(cls, arguments: Arguments, names: Sequence[str], admission: Admission) -> VllmEngine:
        """Start the engine; it is ready when this returns.

        Args:
            names: the names of the model in OpenAI's API.
            admission: admits the requests that vLLM's layer for OpenAI's API answers.

        Raises:
            ArgumentsError: vLLM refuses an argument; the message is vLLM's, in one line.
            ModelLoadError: vLLM cannot run the model.
        """
        engine: RecordingLLM | None = None
        try:
            parsed = await asyncio.to_thread(parse_arguments, arguments, names)
            await asyncio.to_thread(_check_memory, arguments, parsed)
            engine = await asyncio.to_thread(_create_engine, parsed)
            application, lifespan = await _create_application(engine, parsed)
            return cls(engine, VllmOpenAIApplication(application, admission), lifespan)
        except RunnerError:
            raise
        except Exception as error:
            logger.debug("vLLM did not start", exc_info=True)
            if engine is not None:
                await asyncio.to_thread(engine.shutdown, timeout=0)
            raise ModelLoadError(f"vLLM cannot run {arguments.model}: {describe_error(error)}") from error

    @property
    def max_length(self) -> int:
        return int(self._engine.model_config.max_model_len)

    @property
    def generates(self) -> bool:
        return self.openai_application.generates

    @property
    def details(self) -> RunnerDetails:
        config = self._engine.vllm_config
        dtype = name_dtype(config.model_config.dtype)
        return RunnerDetails("vllm", dtype, str(config.device_config.device_type), "continuous batches")

    @property
    def failed(self) -> bool:
        return bool(self._engine.errored)

    def owes_since(self) -> float | None:
        """See `Watched.owes_since`."""
        return self._engine.owed_outputs.since

    def describe_stall(self, seconds: float) -> str:
        """See `Watched.describe_stall`."""
        # Ray's actors have no process here.
        processes = getattr(self._engine.engine_core.resources.engine_manager, "processes", ())
        pids = ", ".join(str(process.pid) for process in processes) or "elsewhere"
        return f"vLLM's engine (process {pids}) has given no output for {seconds:.1f} s although requests wait"

    async def tokenize(self, prompt: str, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        if options.source_language is not None:
            raise InputError("src_lang is not supported where vLLM runs the model: it runs no model that translates")
        tokenizer = self._engine.get_tokenizer()
        check_characters(prompt, self.max_length, tokenizer.max_chars_per_token)
        if options.truncate_to is not None:
            return await asyncio.to_thread(self._encode_truncated, prompt, options)
        kwargs = {} if options.add_special_tokens is None else {"add_special_tokens": options.add_special_tokens}
        ids: list[int] = await asyncio.to_thread(partial(tokenizer.encode, prompt, **kwargs))
        return ids

    def _encode_truncated(self, prompt: str, options: PromptOptions) -> list[int]:
        with input_errors():
            ids = self._engine.get_tokenizer().encode(prompt, **self._tokenize_params(options).get_encode_kwargs())
        return self.truncate(ids, options)

    async def tokenize_chat(self, chat: Chat, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        return await self.openai_application.render_chat(chat, options)

    def truncate(self, prompt: Sequence[int], options: PromptOptions) -> list[int]:
        if options.truncate_to is None:
            return list(prompt)
        with input_errors():
            tokenized = {"prompt_token_ids": list(prompt)}
            kept = self._tokenize_params(options).apply_post_tokenization(self._engine.get_tokenizer(), tokenized)
        return list(kept["prompt_token_ids"])

    async def detokenize(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        def decode() -> str:
            tokenizer = self._engine.get_tokenizer()
            check_token_ids(ids, tokenizer.max_token_id + 1)
            return str(tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

        return await asyncio.to_thread(decode)

    async def describe_tokens(self, ids: Sequence[int]) -> tuple[list[str], list[bool]]:
        def describe() -> tuple[list[str], list[bool]]:
            tokenizer = self._engine.get_tokenizer()
            check_token_ids(ids, tokenizer.max_token_id + 1)
            strings = tokenizer.convert_ids_to_tokens(ids)
            return [string or "" for string in strings], [token in self._special for token in ids]

        return await asyncio.to_thread(describe)

    def _tokenize_params(self, options: PromptOptions) -> TokenizeParams:
        from vllm.renderers import TokenizeParams

        return TokenizeParams(
            self.max_length,
            # Truncation to -1 then leaves room for one token of output.
            max_output_tokens=1,
            truncate_prompt_tokens=options.truncate_to,
            truncation_side=options.truncation_side,
            add_special_tokens=options.add_special_tokens is not False,
        )

    async def generate(
        self, prompt: Sequence[int], sampling: Sampling, admitted: Admitted | None = None
    ) -> AsyncGenerator[Delta, None]:
        from vllm.exceptions import QueueOverflowError, VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        check_length(len(prompt), max_output_tokens(sampling), self.max_length)
        try:
            [rendered] = await self._engine.renderer.render_cmpl_async([{"prompt_token_ids": list(prompt)}])
            params = make_sampling_params(sampling, self._defaults)
            name = f"generate-{next(self._ids)}"
            headers = engine_headers(current_record.get())
            reader = DeltaReader(sampling, self._special)
            outputs = self._engine.generate(rendered, params, name, trace_headers=headers or None)
            async with contextlib.aclosing(outputs):
                first = await _accept(outputs, admitted)
                if admitted is not None:
                    admitted.start(len(prompt))
                yield reader.read(first)
                async for output in outputs:
                    yield reader.read(output)
        except VllmDeadError as error:
            raise EngineDeadError.of_server() from error
        except QueueOverflowError as error:
            raise OverloadedError(str(error), _RETRY_SECONDS) from error
        except (VLLMClientError, ValueError) as error:
            raise InputError(describe_error(error)) from error

    def close(self) -> None:
        closing = asyncio.run_coroutine_threadsafe(self._end_requests(), self._loop)
        with contextlib.suppress(TimeoutError):
            closing.result(_SHUTDOWN_SECONDS)
        self._engine.shutdown(timeout=_EXIT_SECONDS)

    async def _end_requests(self) -> None:
        """End what runs with the finish reason "abort", and give its answers time to be sent; stop vLLM's layer."""
        if not self._engine.errored:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ABORT_SECONDS):
                    await self._engine.pause_generation(mode="abort", clear_cache=False)
            await asyncio.sleep(_LAST_ANSWERS_SECONDS)
        await self._lifespan.aclose()


def _check_memory(arguments: Arguments, parsed: Namespace) -> None:
    # It imports vLLM.
    from runners.generator.vllm.memory import check_memory

    check_memory(arguments, parsed)


async def _accept(outputs: AsyncGenerator[RequestOutput, None], admitted: Admitted | None) -> RequestOutput:
    """The first output. A request that vLLM has not refused within `_REFUSAL_SECONDS` counts as accepted."""
    first = asyncio.ensure_future(anext(outputs))
    try:
        await asyncio.wait({first}, timeout=_REFUSAL_SECONDS)
        if admitted is not None and not (first.done() and first.exception()):
            admitted.on_queued()
        return await first
    finally:
        first.cancel()


def _create_engine(parsed: Namespace) -> RecordingLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext

    from runners.generator.vllm.recording import RecordingLLM

    arguments = AsyncEngineArgs.from_cli_args(parsed)
    try:
        config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
    except Exception as error:
        raise ArgumentsError(f"vLLM refuses the model or its arguments: {describe_error(error)}") from error
    engine: RecordingLLM = RecordingLLM.from_vllm_config(
        config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=arguments.enable_log_requests,
        disable_log_stats=arguments.disable_log_stats,
        aggregate_engine_logging=arguments.aggregate_engine_logging,
    )
    return engine


async def _create_application(engine: AsyncLLM, parsed: Namespace) -> tuple[FastAPI, contextlib.AsyncExitStack]:
    """vLLM's OpenAI layer, started.

    Returns:
        The application, and the stack that stops it.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await engine.get_supported_tasks()
    application: FastAPI = build_app(parsed, tasks, engine.model_config)
    await init_app_state(engine, application.state, parsed, tasks)
    # vLLM's handler for a dead engine sets this; this server polls `failed` instead.
    application.state.server = SimpleNamespace(should_exit=False)
    lifespan = contextlib.AsyncExitStack()
    await lifespan.enter_async_context(application.router.lifespan_context(application))
    return application, lifespan
