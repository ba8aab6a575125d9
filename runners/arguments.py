"""Every argument of the server: one model, read from the command line, the environment and the Bento."""

from __future__ import annotations

import argparse
import difflib
import logging
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from runners.errors import ArgumentsError
from runners.task import Task

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "RUNTIME_"
ENVIRONMENT_COMMAND_LINE = "RUNTIME_ARGS"
_ALIASES = {"max_model_len": "max_length"}
# KServe's other flags, which manifests carry: taken with a warning, so that these still start.
_WITHOUT_EFFECT = frozenset(
    {
        "access_log_format", "configure_logging", "disable_log_requests", "enable_docs_url", "enable_grpc",
        "enable_latency_logging", "enable_predictor_health_check", "event_loop",
        "grpc_max_receive_message_length", "grpc_max_send_message_length", "grpc_port", "http_port",
        "log_config_file", "max_asyncio_workers", "max_log_len", "max_threads", "predictor_host",
        "predictor_protocol", "predictor_request_retries", "predictor_request_timeout_seconds",
        "predictor_use_ssl", "protocol", "ssl_certfile", "ssl_keyfile", "timeout_keep_alive", "workers",
    }
)  # fmt: skip
_KSERVE_SWITCHES = frozenset({"disable_log_requests", "enable_predictor_health_check"})


def _split_names(value: object) -> object:
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _task_name(value: object) -> object:
    return value.strip().lower().replace("-", "_") if isinstance(value, str) else value


class Arguments(BaseModel):
    """The arguments, under the names of KServe's Hugging Face runtime; the descriptions are the README's table."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True)

    model_name: str = Field("model", min_length=1, description="name of the model in URLs")
    model_dir: str = Field("/mnt/models", description="folder of the model; ignored where `model_id` is set")
    model_id: str | None = Field(None, description="Hugging Face hub id, or a folder")
    model_revision: str | None = Field(None, description="branch, tag or commit of the model on the hub")
    tokenizer_revision: str | None = Field(None, description="the same for the tokenizer; `model_revision` if unset")
    task: Annotated[Task | None, BeforeValidator(_task_name)] = Field(
        None, description="`fill_mask`, `token_classification`, `sequence_classification` or `text_embedding`; "
        "inferred from the model's architectures if unset",
    )  # fmt: skip
    backend: Literal["auto", "huggingface", "vllm"] = Field(
        "auto", description="`auto` and `huggingface` are the same for these tasks; `vllm` does not run them"
    )
    dtype: Literal["auto", "float32", "float", "float16", "half", "bfloat16"] = Field(
        "float32", description="`auto` is float16 on a GPU and float32 on a CPU"
    )
    max_length: int | None = Field(
        None, ge=1, description="longest text in tokens, longer ones are truncated; also called `max_model_len`; "
        "the model's and the tokenizer's own limits hold where they are smaller",
    )  # fmt: skip
    disable_lower_case: bool | None = Field(
        None, description="`true` never lower-cases, `false` always does (KServe's default); if unset the tokenizer's "
        "own casing holds",
    )  # fmt: skip
    disable_special_tokens: bool = Field(False, description="tokenize without [CLS], [SEP] and their like")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    allow_pickle: bool = Field(False, description="load `.bin` weights where a model has no safetensors")
    tensor_input_names: Annotated[tuple[str, ...] | None, BeforeValidator(_split_names)] = Field(
        None, description="comma list of the tokenizer's outputs that the model is given; all that it takes if unset"
    )
    return_token_type_ids: bool = Field(
        False, description="give the model token_type_ids also where its tokenizer would not"
    )
    return_probabilities: bool = Field(False, description="answer with the probability of every class")
    return_raw_logits: bool = Field(False, description="answer with the logit of every class")
    return_offsets_mapping: bool = Field(
        False, description="token classification: add each token's start and end in the text as `offset_mapping`"
    )
    max_request_bytes: int = Field(32 * 2**20, ge=1, description="largest request body in bytes, a larger one is a 413")
    max_batch_tokens: int | None = Field(
        None, ge=1, description="most tokens the model computes at once; if unset 1536 on a CPU and 16384 on a GPU"
    )
    max_concurrent_requests: int = Field(
        512, ge=1, description="most requests under way at once, further ones are a 429 with Retry-After"
    )
    gpu: int | None = Field(
        None, ge=0, description="GPUs the service asks BentoML for, 0 for none; if unset 1 where a GPU is present and "
        "in every Bento",
    )  # fmt: skip
    gpu_type: str | None = Field(None, description="BentoCloud's GPU type, such as `nvidia-l4`")

    @model_validator(mode="after")
    def _check_combinations(self) -> Arguments:
        if self.return_probabilities and self.return_raw_logits:
            raise ValueError("return_probabilities and return_raw_logits exclude each other: set one of them")
        if self.gpu_type and self.gpu == 0:
            raise ValueError("gpu_type says which GPU, but gpu is 0: leave one of them out")
        return self

    @property
    def model(self) -> str:
        """The folder or hub id to load."""
        return self.model_id or self.model_dir


def parse_command_line(words: Sequence[str], origin: str = "the command line") -> dict[str, str]:
    """Parse `--name=value`, `--name value` and bare `--flag`; `-` and `_` are the same in names.

    Args:
        words: the words after the program's name.
        origin: what to call the command line in an error.

    Returns:
        The values as given, by argument name; nothing is validated but the names.

    Raises:
        ArgumentsError: an unknown argument, a missing value or a stray word.
    """
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False
    )
    for name, field in Arguments.model_fields.items():
        names = [name, *(alias for alias, target in _ALIASES.items() if target == name)]
        is_flag = field.annotation in (bool, bool | None)
        options = [f"--{name}" for name in names]
        if is_flag:
            parser.add_argument(*options, dest=name, nargs="?", const="true")
        else:
            parser.add_argument(*options, dest=name)
    for name in _WITHOUT_EFFECT:
        if name in _KSERVE_SWITCHES:
            parser.add_argument(f"--{name}", nargs="?", const="true")
        else:
            parser.add_argument(f"--{name}")
    try:
        namespace, rest = parser.parse_known_args([_canonical_word(word) for word in words])
    except argparse.ArgumentError as error:
        raise ArgumentsError(f"{origin} is wrong: {error}") from error
    if rest:
        if rest[0].startswith("--"):
            raise ArgumentsError(_unknown_argument(rest[0].removeprefix("--").partition("=")[0], origin))
        raise ArgumentsError(f"{origin} has a stray word {rest[0]!r}; arguments look like --name=value")
    values: dict[str, str] = vars(namespace)
    return values


def read_arguments(
    command_line: Mapping[str, object], environment: Mapping[str, str], baked: Mapping[str, object]
) -> Arguments:
    """Merge the sources; command line > environment > baked into the Bento > default.

    In the environment `RUNTIME_<ARGUMENT>` is stronger than the same argument in `RUNTIME_ARGS`. Empty variables count
    as unset. An unknown `RUNTIME_...` variable is only warned of: Kubernetes sets some of that form for a Service
    called "runtime".

    Raises:
        ArgumentsError: one line that names the argument, where it came from and what is allowed.
    """
    values: dict[str, object] = {}
    origins: dict[str, str] = {}

    def take(source: Mapping[str, object], origin: str) -> None:
        for given_name, value in source.items():
            if value is None or value == "":
                continue
            name = _canonical_name(given_name)
            if name in _WITHOUT_EFFECT:
                logger.warning("%s in %s has no effect on this server", name, origin)
                continue
            if name not in Arguments.model_fields:
                raise ArgumentsError(_unknown_argument(given_name, origin))
            values[name] = value
            origins[name] = origin

    take(baked, "the Bento")
    try:
        words = shlex.split(environment.get(ENVIRONMENT_COMMAND_LINE, ""))
    except ValueError as error:
        raise ArgumentsError(f"{ENVIRONMENT_COMMAND_LINE} is not a command line: {error}") from error
    take(parse_command_line(words, ENVIRONMENT_COMMAND_LINE), ENVIRONMENT_COMMAND_LINE)
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == ENVIRONMENT_COMMAND_LINE:
            continue
        name = _canonical_name(variable.removeprefix(ENVIRONMENT_PREFIX).lower())
        if name in Arguments.model_fields:
            take({name: value}, variable)
        else:
            logger.warning("%s is ignored: there is no argument %s", variable, name)
    take(command_line, "the command line")

    try:
        return Arguments.model_validate(values)
    except ValidationError as error:
        raise ArgumentsError("; ".join(_describe(problem, origins) for problem in error.errors())) from error


def _canonical_word(word: str) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value


def _canonical_name(name: str) -> str:
    name = name.strip().replace("-", "_")
    return _ALIASES.get(name, name)


def _unknown_argument(name: str, origin: str) -> str:
    close = difflib.get_close_matches(name, Arguments.model_fields, n=1, cutoff=0.75)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(Arguments.model_fields)}"
    return f"unknown argument {name!r} in {origin}: {hint}"


def _describe(problem: Mapping[str, object], origins: Mapping[str, str]) -> str:
    location = problem["loc"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not isinstance(location, tuple) or not location:
        return message
    name = str(location[0])
    return f"argument {name} (from {origins.get(name, 'the command line')}) is {problem['input']!r}: {message}"
