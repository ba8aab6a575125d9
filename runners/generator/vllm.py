"""A generator on vLLM, in this process: its engine, and its own OpenAI layer as an ASGI application.

vLLM's entry points move between releases; all that this server knows of them is in this module (0.32, 0.31).
Importing vLLM takes seconds and hundreds of MB, so it is imported only once a generator loads.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import importlib.util
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from argparse import Action, Namespace
from collections.abc import AsyncGenerator, Iterator, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import ValidationError

from runners.core.arguments import Arguments, EngineArgument
from runners.core.draining import DRAIN_SECONDS
from runners.core.errors import (
    ArgumentsError,
    EngineDeadError,
    GenerationFailedError,
    InputError,
    ModelLoadError,
    OverloadedError,
    RunnerError,
)
from runners.core.generation import (
    DEFAULT_PROMPT_OPTIONS,
    Constraint,
    Delta,
    FinishReason,
    PromptOptions,
    Sampling,
    check_characters,
)
from runners.core.machine import available_memory, count_cores

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.renderers import TokenizeParams
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM

    from runners.core.admission import Admitted

logger = logging.getLogger(__name__)

# What configures vLLM's own HTTP server, which does not run.
_OF_ITS_SERVER = frozenset(
    {
        "api_server_count", "asc", "disable_access_log_for_endpoints", "disable_uvicorn_access_log",
        "enable_ssl_refresh", "grpc", "h11_max_header_count", "h11_max_incomplete_event_size", "headless",
        "root_path", "ssl_cert_reqs", "ssl_ciphers", "uds", "uvicorn_log_level",
    }
)  # fmt: skip
_COMPILATION = frozenset({"enforce_eager", "compilation_config", "cc", "optimization_level"})
_CACHE_SIZE = frozenset({"kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override"})
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
# Of a CPU machine's memory vLLM would take 0.92 at once, as if it were a GPU's.
_CACHE_BYTES_ON_CPU = 4 * 2**30
_RETRY_SECONDS = 1.0
# In which vLLM looks at what it is asked for.
_REFUSAL_SECONDS = 0.2
_NOTHING = re.compile("(?!)")
_SHUTDOWN_SECONDS = 10.0
_EXIT_SECONDS = 5.0


def unsupported_reason(arguments: Arguments, architectures: Sequence[str], encoder_decoder: bool) -> str | None:
    """Why vLLM cannot run the model here, in words that follow "because"; None where it can.

    Imports vLLM, if it is installed.
    """
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if encoder_decoder:
        return f"vLLM does not run encoder-decoders such as {', '.join(architectures)}"
    try:
        _prepare_environment(arguments)
        from vllm.model_executor.models.registry import ModelRegistry
        from vllm.platforms import current_platform
    except ImportError as error:
        return f"vLLM cannot be imported: {_one_line(error)}"
    if current_platform.is_unspecified():
        return "this build of vLLM runs on no device of this machine"
    unsupported = sorted({*architectures} - {*ModelRegistry.get_supported_archs()})
    if arguments.backend == "auto" and (unsupported or not architectures):
        return f"vLLM has no {', '.join(unsupported) or 'architecture of that name'}"
    return None


def _prepare_environment(arguments: Arguments) -> None:
    """Set what vLLM reads when it is imported; what the operator has set stays."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    name_distribution()
    from vllm.platforms import current_platform

    chosen = {"VLLM_CPU_OMP_THREADS_BIND", "VLLM_ENABLE_V1_MULTIPROCESSING"} & {*os.environ}
    if current_platform.is_cpu() and arguments.parallel_size == 1 and not chosen:
        # Without these it keeps a core for its front end and binds threads, which costs a quarter of the tokens on few
        # cores, and nearly all of them where another process uses a core.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("OMP_NUM_THREADS", str(count_cores()))


def name_distribution() -> None:
    """Give the build for CPUs, whose distribution is `vllm-cpu`, the name by which vLLM looks for its own version.

    A folder, since the engine's process looks too: it inherits the path, not what this process has in memory.
    """
    with contextlib.suppress(PackageNotFoundError):
        version("vllm")
        return
    with contextlib.suppress(PackageNotFoundError):
        named = f"{version('vllm-cpu')}+cpu"
        # Nobody else may write where modules are imported from.
        folder = Path(tempfile.mkdtemp(prefix="vllm-metadata-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        metadata = folder / f"vllm-{named}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {named}\n", encoding="utf-8")
        sys.path.append(str(folder))


class VllmEngine:
    """vLLM's AsyncLLM, which runs the model in a process of its own."""

    def __init__(self, engine: AsyncLLM, application: FastAPI, lifespan: contextlib.AsyncExitStack) -> None:
        self._engine = engine
        self._lifespan = lifespan
        self._ids = itertools.count()
        self._defaults: dict[str, Any] = engine.model_config.get_diff_sampling_param()
        self._loop = asyncio.get_running_loop()
        self.application = application

    @classmethod
    async def start(cls, arguments: Arguments, names: Sequence[str]) -> VllmEngine:
        """Start the engine; it is ready when this returns.

        Args:
            names: the names under which OpenAI's API knows the model.

        Raises:
            ArgumentsError: vLLM refuses an argument; the message is vLLM's, in one line.
            ModelLoadError: vLLM cannot run the model.
        """
        engine: AsyncLLM | None = None
        try:
            parsed = await asyncio.to_thread(_parse, arguments, names)
            engine = await asyncio.to_thread(_create_engine, parsed)
            application, lifespan = await _create_application(engine, parsed)
            return cls(engine, application, lifespan)
        except RunnerError:
            raise
        except Exception as error:
            logger.debug("vLLM did not start", exc_info=True)
            if engine is not None:
                await asyncio.to_thread(engine.shutdown, timeout=0)
            raise ModelLoadError(f"vLLM cannot run {arguments.model}: {_one_line(error)}") from error

    @property
    def max_length(self) -> int:
        return int(self._engine.model_config.max_model_len)

    @property
    def generates(self) -> bool:
        """Whether it generates text; else it embeds, scores or classifies, over OpenAI's API only."""
        return hasattr(self.application.state, "openai_serving_completion")

    def serves(self, path: str) -> bool:
        """Whether its OpenAI layer has a route for a path."""
        return any(getattr(route, "path_regex", _NOTHING).match(path) for route in self.application.routes)

    @property
    def failed(self) -> bool:
        return bool(self._engine.errored)

    async def model_cards(self) -> list[dict[str, Any]]:
        """The model's names, and its LoRA adapters, as OpenAI's API lists models."""
        listed = await self.application.state.openai_serving_models.show_available_models()
        cards: list[dict[str, Any]] = listed.model_dump(mode="json")["data"]
        return cards

    async def tokenize(self, prompt: str, options: PromptOptions = DEFAULT_PROMPT_OPTIONS) -> list[int]:
        if options.source_language is not None:
            raise InputError("src_lang is not supported where vLLM runs the model: it runs no model that translates")
        tokenizer = self._engine.get_tokenizer()
        check_characters(prompt, self.max_length, tokenizer.max_chars_per_token)
        if options.truncate_to is not None:
            return await asyncio.to_thread(self._encode_truncated, prompt, options)
        special = {} if options.add_special_tokens is None else {"add_special_tokens": options.add_special_tokens}
        ids: list[int] = await asyncio.to_thread(partial(tokenizer.encode, prompt, **special))
        return ids

    def _encode_truncated(self, prompt: str, options: PromptOptions) -> list[int]:
        with _input_errors():
            ids = self._engine.get_tokenizer().encode(prompt, **self._tokenize_params(options).get_encode_kwargs())
        return self.truncate(ids, options)

    def truncate(self, prompt: Sequence[int], options: PromptOptions) -> list[int]:
        if options.truncate_to is None:
            return list(prompt)
        with _input_errors():
            given = {"prompt_token_ids": list(prompt)}
            kept = self._tokenize_params(options).apply_post_tokenization(self._engine.get_tokenizer(), given)
        return list(kept["prompt_token_ids"])

    def _tokenize_params(self, options: PromptOptions) -> TokenizeParams:
        from vllm.renderers import TokenizeParams

        return TokenizeParams(
            self.max_length,
            # Any output at all: -1 then leaves room for it.
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

        check_length(len(prompt), _most_tokens(sampling), self.max_length)
        try:
            [rendered] = await self._engine.renderer.render_cmpl_async([{"prompt_token_ids": list(prompt)}])
            outputs = self._engine.generate(rendered, self._sampling_params(sampling), f"generate-{next(self._ids)}")
            async with contextlib.aclosing(outputs):
                first = await _accept(outputs, admitted)
                if admitted is not None:
                    admitted.start(len(prompt))
                yield _delta(first.outputs[0])
                async for output in outputs:
                    yield _delta(output.outputs[0])
        except VllmDeadError as error:
            raise EngineDeadError("the engine that ran the model has died") from error
        except QueueOverflowError as error:
            raise OverloadedError(str(error), _RETRY_SECONDS) from error
        except (VLLMClientError, ValueError) as error:
            raise InputError(_one_line(error)) from error

    def close(self) -> None:
        leaving = asyncio.run_coroutine_threadsafe(self._lifespan.aclose(), self._loop)
        with contextlib.suppress(TimeoutError):
            leaving.result(_SHUTDOWN_SECONDS)
        self._engine.shutdown(timeout=_EXIT_SECONDS)

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        """What V1 and the Open Inference Protocol ask for, in vLLM's words.

        Raises:
            InputError: it asks for what those protocols have for other engines.
        """
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        if sampling.beam_search is not None:
            raise InputError("beam search is only supported by OpenAI's API where vLLM runs the model")
        if sampling.target_language is not None:
            raise InputError("tgt_lang is not supported where vLLM runs the model: it runs no model that translates")
        given = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
        }
        return SamplingParams(
            **{**self._defaults, **{name: value for name, value in given.items() if value is not None}}
            | {
                "max_tokens": _most_tokens(sampling),
                "min_tokens": sampling.min_tokens,
                "seed": sampling.seed,
                "stop": list(sampling.stop),
                "include_stop_str_in_output": sampling.include_stop,
                "stop_token_ids": [*self._defaults.get("stop_token_ids", ()), *sampling.stop_token_ids],
                "bad_words": list(sampling.bad_words),
                "allowed_token_ids": None if sampling.allowed_token_ids is None else list(sampling.allowed_token_ids),
                "skip_special_tokens": sampling.skip_special_tokens,
                "structured_outputs": _structured_outputs(sampling.constraint),
                "presence_penalty": sampling.presence_penalty,
                "frequency_penalty": sampling.frequency_penalty,
                "logit_bias": dict(sampling.logit_bias) or None,
                "ignore_eos": sampling.ignore_eos,
                "output_kind": RequestOutputKind.DELTA,
            }
        )


async def _accept(outputs: AsyncGenerator[RequestOutput, None], admitted: Admitted | None) -> RequestOutput:
    """The first output; what vLLM refuses, it refuses at once, and what it has not refused by then is accepted."""
    first = asyncio.ensure_future(anext(outputs))
    try:
        await asyncio.wait({first}, timeout=_REFUSAL_SECONDS)
        if admitted is not None and not (first.done() and first.exception()):
            admitted.on_queued()
        return await first
    finally:
        first.cancel()


def _most_tokens(sampling: Sampling) -> int | None:
    return sampling.default_tokens if sampling.max_tokens is None else sampling.max_tokens


@contextlib.contextmanager
def _input_errors() -> Iterator[None]:
    """What vLLM says of a request, as this server says it."""
    from vllm.exceptions import VLLMClientError

    try:
        yield
    except (VLLMClientError, ValueError) as error:
        raise InputError(_one_line(error)) from error


def check_length(prompt: int, max_tokens: int | None, max_length: int) -> None:
    """Refuse what does not fit a decoder's context, in vLLM's words.

    Raises:
        InputError: the prompt, or the prompt with its output, is too long, or the prompt is empty.
    """
    if not prompt:
        raise InputError("the prompt has no tokens; give at least one")
    if prompt >= max_length:
        raise InputError(
            f"This model's maximum context length is {max_length} tokens, but the prompt has {prompt} tokens; "
            "please shorten it"
        )
    if max_tokens is not None and prompt + max_tokens > max_length:
        raise InputError(
            f"This model's maximum context length is {max_length} tokens, but {prompt + max_tokens} were asked for: "
            f"{prompt} of the prompt and {max_tokens} of max_tokens; please reduce one of them"
        )


def _structured_outputs(constraint: Constraint | None) -> StructuredOutputsParams | None:
    from vllm.sampling_params import StructuredOutputsParams

    if constraint is None:
        return None
    value: Any = {"json_object": True, "choice": list(constraint.value)}.get(constraint.kind, constraint.value)
    return StructuredOutputsParams(**{constraint.kind: value})


def _delta(output: CompletionOutput) -> Delta:
    reason: FinishReason | None = None
    if output.finish_reason == "error":
        raise GenerationFailedError("this output has failed in vLLM; the server's log says where")
    if output.finish_reason is not None:
        reason = "length" if output.finish_reason == "length" else "stop"
    return Delta(output.text, tuple(output.token_ids), reason, stop_reason=output.stop_reason)


def _create_engine(parsed: Namespace) -> AsyncLLM:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs.from_cli_args(parsed)
    try:
        config = arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
    except Exception as error:
        raise ArgumentsError(f"vLLM refuses the model or its arguments: {_one_line(error)}") from error
    engine: AsyncLLM = AsyncLLM.from_vllm_config(
        config,
        usage_context=UsageContext.OPENAI_API_SERVER,
        enable_log_requests=arguments.enable_log_requests,
        disable_log_stats=arguments.disable_log_stats,
        aggregate_engine_logging=arguments.aggregate_engine_logging,
    )
    return engine


async def _create_application(engine: AsyncLLM, parsed: Namespace) -> tuple[FastAPI, contextlib.AsyncExitStack]:
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await engine.get_supported_tasks()
    application: FastAPI = build_app(parsed, tasks, engine.model_config)
    await init_app_state(engine, application.state, parsed, tasks)
    # Its handler for a dead engine asks its server to exit; ours looks at `failed`.
    application.state.server = SimpleNamespace(should_exit=False)
    lifespan = contextlib.AsyncExitStack()
    await lifespan.enter_async_context(application.router.lifespan_context(application))
    return application, lifespan


def _parse(arguments: Arguments, names: Sequence[str]) -> Namespace:
    """The arguments by vLLM's own parser.

    Raises:
        ArgumentsError: it refuses one.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ArgumentsError(f"vLLM refuses the arguments: {' '.join(message.split())}")

    parser = make_arg_parser(Parser())
    words = [*_own_words(arguments, names), *_engine_words(arguments, parser)]
    try:
        parsed: Namespace = parser.parse_args(words)
        if parsed.tool_parser_plugin:
            from vllm.tool_parsers import ToolParserManager

            ToolParserManager.import_tool_parser(parsed.tool_parser_plugin)
        validate_parsed_serve_args(parsed)
        validate_api_server_args(parsed)
    except RunnerError:
        raise
    except Exception as error:
        raise ArgumentsError(f"vLLM refuses the arguments: {_one_line(error)}") from error
    if parsed.api_key:
        raise ArgumentsError("api_key in vLLM's --config would be asked for by vLLM's routes alone: set --api_key")
    return parsed


def _own_words(arguments: Arguments, names: Sequence[str]) -> list[str]:
    """This server's arguments under vLLM's names, and what this server chooses on a CPU."""
    from vllm.platforms import current_platform

    given = {
        "model": arguments.model,
        "max-model-len": arguments.max_length,
        "dtype": arguments.dtype,
        "revision": arguments.model_revision,
        "tokenizer-revision": arguments.tokenizer_revision or arguments.model_revision,
    }
    words = [f"--{name}={value}" for name, value in given.items() if value is not None]
    words += ["--served-model-name", *names]
    # BentoML ends the engine's process together with this one: it is to finish what runs, not to cut it off.
    words.append(f"--shutdown-timeout={DRAIN_SECONDS:.0f}")
    if arguments.trust_remote_code:
        words.append("--trust-remote-code")
    if current_platform.is_cpu():
        chosen = {name.partition(".")[0] for name in arguments.engine}
        if not chosen & _COMPILATION:
            # Compiling takes minutes and a C++ compiler, for a twentieth more tokens.
            words.append("--enforce-eager")
        if not chosen & _CACHE_SIZE and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            words.append(f"--kv-cache-memory-bytes={min(_CACHE_BYTES_ON_CPU, available_memory() // 2)}")
    return words


def _engine_words(arguments: Arguments, parser: FlexibleArgumentParser) -> list[str]:
    """The operator's arguments for vLLM, in the form that each has there."""
    actions: dict[str, tuple[str, Action]] = {
        option.lstrip("-").replace("-", "_"): (option, action)
        for action in parser._actions
        for option in action.option_strings
    }
    words: list[str] = []
    for name, argument in arguments.engine.items():
        base, dot, key = name.partition(".")
        if base in _OF_ITS_SERVER:
            logger.warning("%s (from %s) has no effect: it is for vLLM's own HTTP server", name, argument.origin)
        elif base in actions:
            option, action = actions[base]
            if base != "served_model_name":
                words += _words(option + dot + key, action, argument, name, f"no_{base}" in actions)
        else:
            # Another release than that of runners/core/vllm_flags.py.
            raise ArgumentsError(f"argument {name} (from {argument.origin}) is unknown to this release of vLLM")
    return words


def _words(option: str, action: Action, argument: EngineArgument, name: str, has_opposite: bool) -> list[str]:
    value = argument.value
    if action.nargs == 0:
        if value.lower() in _TRUE:
            return [option]
        if value.lower() in _FALSE:
            return [f"--no-{option.removeprefix('--')}"] if has_opposite else []
        raise ArgumentsError(f"argument {name} (from {argument.origin}) is {value!r}: it is a flag, true or false")
    if action.nargs in ("+", "*"):
        return [option, *split_words(value)]
    # A long option takes its value with "=", so that the value may begin with "-".
    return [f"{option}={value}"] if option.startswith("--") and name != "config" else [option, value]


def split_words(value: str) -> list[str]:
    """The words of a list: `a b`, quoted as in a shell, or a JSON list; a JSON object is one word."""
    if value.startswith("{"):
        return [value]
    if value.startswith("["):
        with contextlib.suppress(ValueError):
            return [item if isinstance(item, str) else json.dumps(item) for item in json.loads(value)]
    return shlex.split(value)


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return " ".join(str(error).split()) or type(error).__name__
