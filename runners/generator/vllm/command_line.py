"""The server's arguments as vLLM's own parser reads them."""

from __future__ import annotations

import logging
import math
import os
from argparse import Action, Namespace
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from runners.core.arguments import Arguments
from runners.core.engine_arguments import EngineArgument, split_words
from runners.core.errors import ArgumentsError, RunnerError
from runners.core.machine import available_memory
from runners.core.trace_settings import read_trace_settings
from runners.generator.vllm.dtype import choose_dtype
from runners.generator.vllm.errors import describe_error

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

logger = logging.getLogger(__name__)

# Arguments of vLLM's own HTTP server, which does not run here.
_HTTP_SERVER = frozenset(
    {
        "api_server_count", "asc", "disable_access_log_for_endpoints", "disable_uvicorn_access_log",
        "enable_ssl_refresh", "grpc", "h11_max_header_count", "h11_max_incomplete_event_size", "headless",
        "ssl_cert_reqs", "ssl_ciphers", "uds", "uvicorn_log_level",
    }
)  # fmt: skip
_COMPILATION = frozenset({"enforce_eager", "compilation_config", "cc", "optimization_level"})
_CACHE_SIZE = frozenset({"kv_cache_memory_bytes", "gpu_memory_utilization", "num_gpu_blocks_override"})
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on"}), frozenset({"false", "0", "no", "off"})
# vLLM would take 0.92 of a CPU machine's memory at once, as if it were a GPU's.
_CACHE_BYTES_ON_CPU = 4 * 2**30


def parse_arguments(arguments: Arguments, names: Sequence[str]) -> Namespace:
    """The arguments as vLLM's own parser returns them.

    Args:
        names: the names of the model in OpenAI's API.

    Raises:
        ArgumentsError: vLLM refuses an argument.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ArgumentsError(f"vLLM refuses the arguments: {' '.join(message.split())}")

    parser = make_arg_parser(Parser())
    words = [*_server_words(arguments, names), *_engine_words(arguments, parser)]
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
        raise ArgumentsError(f"vLLM refuses the arguments: {describe_error(error)}") from error
    if parsed.allowed_origins:
        raise ArgumentsError("allowed_origins in vLLM's --config is for vLLM's own HTTP server: set --allowed_origins")
    if parsed.api_key:
        raise ArgumentsError("api_key in vLLM's --config would be asked for by vLLM's routes alone: set --api_key")
    return parsed


def _server_words(arguments: Arguments, names: Sequence[str]) -> list[str]:
    """The arguments that this server shares with vLLM, and its defaults on a CPU."""
    from vllm.platforms import current_platform

    is_cpu = current_platform.is_cpu()
    shared = {
        "model": arguments.model,
        "max-model-len": arguments.max_length,
        "dtype": choose_dtype(arguments) if is_cpu else arguments.dtype,
        "revision": arguments.model_revision,
        "tokenizer-revision": arguments.tokenizer_revision or arguments.model_revision,
    }
    words = [f"--{name}={value}" for name, value in shared.items() if value is not None]
    words += ["--served-model-name", *names]
    # A signal to all processes of a container reaches the engine's too, which finishes its requests first.
    words.append(f"--shutdown-timeout={math.ceil(arguments.drain_seconds)}")
    traces = read_trace_settings(os.environ)
    # Its spans need its statistics.
    if traces is not None and traces.exports_otlp and "disable_log_stats" not in arguments.engine:
        words.append(f"--otlp-traces-endpoint={traces.endpoint}")
    if arguments.trust_remote_code:
        words.append("--trust-remote-code")
    if is_cpu:
        configured = {name.partition(".")[0] for name in arguments.engine}
        if not configured & _COMPILATION:
            # Compiling takes minutes and a C++ compiler, and gains a twentieth more tokens.
            words.append("--enforce-eager")
        if not configured & _CACHE_SIZE and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
            words.append(f"--kv-cache-memory-bytes={min(_CACHE_BYTES_ON_CPU, available_memory() // 2)}")
    return words


def _engine_words(arguments: Arguments, parser: FlexibleArgumentParser) -> list[str]:
    """The operator's arguments of vLLM, as words of its command line.

    Raises:
        ArgumentsError: this release of vLLM does not know an argument, or a flag is neither true nor false.
    """
    actions: dict[str, tuple[str, Action]] = {
        option.lstrip("-").replace("-", "_"): (option, action)
        for action in parser._actions
        for option in action.option_strings
    }
    words: list[str] = []
    for name, argument in arguments.engine.items():
        base, dot, key = name.partition(".")
        if base in _HTTP_SERVER:
            logger.warning("%s (from %s) has no effect: it is for vLLM's own HTTP server", name, argument.origin)
        elif base in actions:
            option, action = actions[base]
            if base != "served_model_name":
                words += _option_words(option + dot + key, action, argument, name, f"no_{base}" in actions)
        else:
            # Another release than that of runners/core/vllm_flags.py.
            raise ArgumentsError(f"argument {name} (from {argument.origin}) is unknown to this release of vLLM")
    return words


def _option_words(option: str, action: Action, argument: EngineArgument, name: str, has_opposite: bool) -> list[str]:
    """
    Args:
        has_opposite: whether there is an option `--no-...` that switches the flag off.
    """
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
