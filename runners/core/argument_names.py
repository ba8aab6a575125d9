"""The names of arguments: this server's, KServe's and vLLM's, with their aliases."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping

from runners.core.argument_groups import LaunchArguments
from runners.core.arguments import ARGUMENT_NAMES
from runners.core.vllm_flags import OPTIONS, SHORT, SWITCHES

# vLLM's names for arguments of this server, and vLLM's short names for those that determine the number of GPUs.
ALIASES: Mapping[str, str] = {
    "max_model_len": "max_length",
    "model": "model_id",
    "port": "http_port",
    "revision": "model_revision",
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "dpl": "data_parallel_size_local",
}
# KServe's flags that have no effect here, each with what to use instead. They are accepted with a warning, so that
# KServe's manifests start this server unchanged.
WITHOUT_EFFECT: Mapping[str, str] = {
    "access_log_format": "--access_log logs a line for every request, in the form of --log_format",
    "configure_logging": "--log_format and --log_level configure the log",
    "disable_log_requests": "prompts are logged only with --log_inputs",
    "enable_docs_url": "/docs is always served",
    "event_loop": "every worker runs on uvloop",
    "log_config_file": "--log_format and --log_level configure the log",
    "max_asyncio_workers": "requests wait in the model's queue; --max_concurrent_requests limits its length",
    "max_threads": "gRPC is served without threads; --max_concurrent_requests limits the running requests",
    "protocol": "--predictor_protocol sets the protocol of a predictor",
}
_OWN_NAMES = frozenset({*ARGUMENT_NAMES, *LaunchArguments.model_fields, *WITHOUT_EFFECT})
_VLLM_NAMES = frozenset({*OPTIONS, *SHORT, *SWITCHES, *(f"no_{name}" for name in SWITCHES)})
# vLLM's long names that neither this server nor an alias has.
VLLM_ONLY = sorted({*OPTIONS, *SWITCHES} - _OWN_NAMES - {*ALIASES})


def normalize_name(name: str) -> str:
    """The name with `_` for `-`; an alias becomes the name that it stands for."""
    # The part after a dot is a key of a JSON argument, as in --compilation_config.mode.
    name, dot, key = name.strip().partition(".")
    name = name.replace("-", "_")
    return ALIASES.get(name, name) + dot + key


def is_known(name: str) -> bool:
    """Whether a normalized name is an argument of this server, of KServe or of vLLM."""
    return name.partition(".")[0] in _OWN_NAMES | _VLLM_NAMES


def suggest_name(name: str, others: Collection[str] = ()) -> str:
    """The end of a message about an unknown argument.

    Args:
        others: names that are known beside those of arguments.
    """
    # This server's names are suggested before vLLM's.
    for names in (_OWN_NAMES | {*ALIASES, *others}, _VLLM_NAMES):
        # KServe accepts abbreviations; other unknown names are mostly typing errors.
        longer = [known for known in names if known.startswith(name)]
        close = longer if len(longer) == 1 else difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.75)
        if close:
            return f": did you mean {close[0]}?"
    return "; --help lists all arguments"
