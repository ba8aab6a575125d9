"""Every argument of the server: one model, read from the command line, the environment and the Bento.

What has no name here may be one of vLLM's, whose names runners/core/vllm_flags.py has: it is kept as it was given, and
vLLM's own parser judges its value once vLLM runs.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import math
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from runners.core.answer_options import AnswerOptions, ReadingOptions, split_names
from runners.core.api_keys import digest_keys
from runners.core.errors import ArgumentsError
from runners.core.request_limits import RequestLimits
from runners.core.task import Task
from runners.core.vllm_flags import OPTIONS, SHORT, SWITCHES

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "RUNTIME_"
ENVIRONMENT_COMMAND_LINE = "RUNTIME_ARGS"
# vLLM's own name for `api_key`; what this server is to keep from everybody, vLLM would only keep from its own routes.
_VLLM_KEY = "VLLM_API_KEY"
# launch.py's own command line, which a built Bento would not hear of otherwise; JSON, strongest of all.
HANDED_OVER = "RUNTIME_COMMAND_LINE"
# vLLM's names for arguments of this server, and its short ones for those that say how many GPUs it needs.
_ALIASES = {
    "max_model_len": "max_length",
    "model": "model_id",
    "port": "http_port",
    "revision": "model_revision",
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "dp": "data_parallel_size",
    "dpl": "data_parallel_size_local",
}
# vLLM's values for as long a context as its memory allows.
_FITTING = frozenset({"auto", "-1"})
_HOST = re.compile(r"([^\s/:@]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")
_SHORT_OPTION = re.compile(r"-(?P<name>[a-z]+(\.[\w.]+)?)(=(?P<value>.*))?$", re.DOTALL)
# vLLM's -O3, -O=3 and -O 3.
_OPTIMIZATION = re.compile(r"-O=?(?P<level>\d*)$")
# KServe's flags that mean nothing here, and what there is instead: taken with a warning, so that manifests still start.
WITHOUT_EFFECT: Mapping[str, str] = {
    "access_log_format": "--enable_latency_logging logs a line for every request",
    "configure_logging": "BentoML configures the log; BENTOML_DEBUG=true shows more of it",
    "disable_log_requests": "prompts are never logged",
    "enable_docs_url": "/docs is always there",
    "event_loop": "every worker runs on uvloop",
    "log_config_file": "BentoML configures the log; BENTOML_DEBUG=true shows more of it",
    "max_asyncio_workers": "requests wait for the model in its own queue; --max_concurrent_requests bounds it",
    "max_threads": "gRPC is served without threads; --max_concurrent_requests bounds what is under way",
    "protocol": "--predictor_protocol is how a predictor is spoken to",
}
_WITHOUT_VALUE = frozenset({"disable_log_requests"})
# vLLM's that need another word than its not running.
_INSTEAD = {"max_log_len": "prompts are never logged"}
_BOOLEANS = "it must be true, yes, on, t, y or 1, or false, no, off, f, n or 0"
_VLLM_NAMES = frozenset({*OPTIONS, *SHORT, *SWITCHES, *(f"no_{name}" for name in SWITCHES)})


@dataclass(frozen=True, slots=True)
class EngineArgument:
    """An argument that is vLLM's.

    Attributes:
        value: as given; several words are quoted as in a shell, `true` and `false` are a flag's.
        origin: where it came from.
    """

    value: str
    origin: str


def _count(value: object) -> object:
    """vLLM's short numbers: 2k is 2000, 2K is 2048."""
    if isinstance(value, str) and (short := re.fullmatch(r"(\d+)([kKmM])", value.strip())):
        return int(short[1]) * {"k": 10**3, "K": 2**10, "m": 10**6, "M": 2**20}[short[2]]
    return value


def _tensor_protocol(value: object) -> object:
    """KServe's default is v1, over which it sends what no predictor understands."""
    if value == "v1":
        raise ValueError("V1 cannot carry tensors; it must be v2 (REST) or grpc-v2")
    return value


_Digests: TypeAlias = Annotated[tuple[bytes, ...] | None, BeforeValidator(digest_keys)]


def _ip_address(value: str) -> str:
    try:
        ip_address(value)
    except ValueError:
        raise ValueError("it must be an IP address, such as 0.0.0.0 or 127.0.0.1") from None
    return value


def _task_name(value: object) -> object:
    return value.strip().lower().replace("-", "_") if isinstance(value, str) else value


class _Group(BaseModel):
    """Arguments that belong together; the descriptions are those of the README and of `launch.py --help`."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True)

    title: ClassVar[str]


class LaunchArguments(_Group):
    """What launch.py tells `bentoml serve`; the service itself cannot."""

    title = "Server, of launch.py only"

    http_port: int = Field(8080, ge=1, le=65535, description="port of HTTP; also called `port`")
    host: Annotated[str, AfterValidator(_ip_address)] = Field(
        "0.0.0.0", description="IP address on which HTTP is served; gRPC is served on all"
    )


class ModelArguments(_Group):
    title = "Model"

    model_name: str = Field("model", min_length=1, description="name of the model in URLs")
    model_dir: str = Field(
        "/mnt/models", description="folder of the model, or a URI of it such as `s3://bucket/bert/` "
        "([docs/how-to/storage.md](docs/how-to/storage.md)); ignored where `model_id` is set",
    )  # fmt: skip
    model_id: str | None = Field(None, description="Hugging Face hub id, or a folder")
    model_revision: str | None = Field(None, description="branch, tag or commit of the model on the hub")
    tokenizer_revision: str | None = Field(None, description="the same for the tokenizer; `model_revision` if unset")
    task: Annotated[Task | None, BeforeValidator(_task_name)] = Field(
        None, description="`fill_mask`, `token_classification`, `sequence_classification`, `text_embedding`, "
        "`text_ranking`, `zero_shot_classification`, `question_answering`, `text_generation` or `text2text_generation`"
        "; inferred from the model's config.json if unset",
    )  # fmt: skip
    backend: Literal["auto", "huggingface", "vllm"] = Field(
        "auto", description="`auto` generates on vLLM where it is installed and runs the model on this device, else on "
        "`transformers`, and runs all other tasks on this server's own engine; `huggingface` never takes vLLM, `vllm` "
        "always",
    )  # fmt: skip
    dtype: Literal["auto", "float32", "float", "float16", "half", "bfloat16"] | None = Field(
        None, description="float32 if unset, `auto` is float16 on a GPU and float32 on a CPU; on vLLM both are the "
        "checkpoint's own",
    )  # fmt: skip
    max_length: Annotated[int | None, BeforeValidator(_count)] = Field(
        None, ge=1, description="longest text in tokens, longer ones are truncated; for generation prompt and output "
        "together, longer ones are refused; also called `max_model_len`; no more than the model has positions "
        "for; without it the model's own limit holds, and for encoders the tokenizer's where that is smaller",
    )  # fmt: skip
    disable_lower_case: bool | None = Field(
        None, description="`true` never lower-cases, `false` always does (KServe's default); if unset the tokenizer's "
        "own casing holds",
    )  # fmt: skip
    disable_special_tokens: bool = Field(False, description="tokenize without [CLS], [SEP] and their like")
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")
    allow_pickle: bool = Field(False, description="load `.bin` weights where a model has no safetensors")
    tensor_input_names: Annotated[tuple[str, ...] | None, BeforeValidator(split_names)] = Field(
        None, description="comma list of the tokenizer's outputs that the model, here or in a predictor, is given; all "
        "that it takes if unset",
    )  # fmt: skip


class PredictorArguments(_Group):
    title = "Predictor"

    predictor_host: str | None = Field(
        None, description="`host:port` of a Triton or other server of the Open Inference Protocol that runs the model; "
        "no weights are loaded here, texts become tensors and logits become answers ([docs/how-to/predictor.md]("
        "docs/how-to/predictor.md))",
    )  # fmt: skip
    predictor_protocol: Annotated[Literal["v2", "grpc-v2"], BeforeValidator(_tensor_protocol)] = Field(
        "v2", description="`v2` is REST, `grpc-v2` gRPC; KServe's default `v1` cannot carry tensors"
    )
    predictor_use_ssl: bool = Field(False, description="speak TLS with the predictor")
    predictor_request_timeout_seconds: float = Field(
        600, gt=0, description="longest that the predictor may take for a batch, retries included; then a 504"
    )
    predictor_request_retries: int = Field(
        0, ge=0, description="how often a batch is sent again to a predictor that could not be reached or was not ready"
    )
    enable_predictor_health_check: bool = Field(
        False, description="be ready only while the predictor's model is, which is asked once a second"
    )


class AnswerArguments(_Group, ReadingOptions, AnswerOptions):
    title = "Answers of encoders"

    return_token_type_ids: bool = Field(
        False, description="give the model token_type_ids also where its tokenizer would not"
    )
    return_probabilities: bool = Field(False, description="answer with the probability of every class")
    return_raw_logits: bool = Field(False, description="answer with the logit of every class")
    return_offsets_mapping: bool = Field(
        False, description="token classification: add each token's start and end in the text as `offset_mapping`"
    )


class ServerArguments(_Group):
    title = "Server"

    workers: int = Field(
        1, ge=1, description="processes that serve, each with a copy of the model and its share of the cores; 1 where "
        "vLLM runs the model",
    )  # fmt: skip
    api_key: _Digests = Field(
        None, repr=False, description="comma list of keys; clients must send one as `Authorization: Bearer KEY` on all "
        "routes but health, metrics and docs; better set in the environment, since command lines can be seen",
    )  # fmt: skip
    api_key_file: str | None = Field(
        None, description="file of keys, one a line, `#` before a comment; read again when it changes; beside those of "
        "`api_key`",
    )  # fmt: skip
    admin_api_key: _Digests = Field(
        None, repr=False, description="comma list of keys, the only ones that may load and unload models and adapters; "
        "if unset those of `api_key` may",
    )  # fmt: skip
    admin_api_key_file: str | None = Field(None, description="the same from a file, as `api_key_file`")
    enable_repository: bool = Field(
        False, description="load and unload models by the repository's calls also without any key"
    )
    enable_grpc: bool = Field(True, description="serve the Open Inference Protocol over gRPC too")
    grpc_port: int = Field(8081, ge=1, le=65535, description="port of gRPC")
    grpc_max_send_message_length: int = Field(
        8 * 2**20, ge=1, description="largest answer over gRPC in bytes, a larger one is RESOURCE_EXHAUSTED"
    )
    grpc_max_receive_message_length: int = Field(
        8 * 2**20, ge=1, description="largest request over gRPC in bytes, a larger one is RESOURCE_EXHAUSTED"
    )
    ssl_certfile: str | None = Field(
        None, description="file of a certificate (PEM), with which HTTP and gRPC are served over TLS"
    )
    ssl_keyfile: str | None = Field(None, description="file of the certificate's private key (PEM)")
    ssl_ca_certs: str | None = Field(
        None, description="file of authorities (PEM): clients of HTTP and gRPC must have a certificate of one of them"
    )
    max_batch_tokens: int | None = Field(
        None, ge=1, description="most tokens the model computes at once; if unset 1536 on a CPU and 16384 on a GPU"
    )
    enable_latency_logging: bool = Field(
        False, description="log a line for every request: its X-Request-Id, method, path, status and milliseconds"
    )


class LimitArguments(_Group, RequestLimits):
    title = "Limits (docs/reference/limits.md says what each protects)"


class ResourceArguments(_Group):
    title = "BentoML"

    gpu: int | None = Field(
        None, ge=0, description="GPUs the service asks BentoML for, 0 for none; if unset as many as vLLM's parallel "
        "sizes make, where a GPU is present and in every Bento",
    )  # fmt: skip
    gpu_type: str | None = Field(None, description="BentoCloud's GPU type, such as `nvidia-l4`")


class Arguments(
    ServerArguments, LimitArguments, ModelArguments, AnswerArguments, PredictorArguments, ResourceArguments
):
    """All arguments of the service, under the names of KServe's Hugging Face runtime."""

    engine: Mapping[str, EngineArgument] = Field({}, exclude=True, repr=False)

    @model_validator(mode="after")
    def _check_combinations(self) -> Arguments:
        if self.return_probabilities and self.return_raw_logits:
            raise ValueError("return_probabilities and return_raw_logits exclude each other: set one of them")
        if (self.ssl_certfile is None) is not (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile go together: set both or none")
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ValueError("ssl_ca_certs is for clients over TLS: set ssl_certfile and ssl_keyfile too")
        if self.gpu_type and self.gpu == 0:
            raise ValueError("gpu_type says which GPU, but gpu is 0: leave one of them out")
        if self.predictor_host is not None and not _HOST.fullmatch(self.predictor_host):
            raise ValueError(
                f"predictor_host is {self.predictor_host!r}: it must be host:port, without http:// (predictor_use_ssl "
                "is for TLS) and without a path"
            )
        return self

    @property
    def model(self) -> str:
        """The folder or hub id to load."""
        return self.model_id or self.model_dir

    @property
    def parallel_size(self) -> int:
        """The GPUs that vLLM's parallelism takes on this machine: tensor x pipeline x data parallel.

        Raises:
            ArgumentsError: one of the sizes is no positive number.
        """
        local = "data_parallel_size_local" if "data_parallel_size_local" in self.engine else "data_parallel_size"
        sizes = [
            _positive(name, self.engine[name])
            for name in ("tensor_parallel_size", "pipeline_parallel_size", local)
            if name in self.engine
        ]
        return math.prod(sizes)

    def ignore_engine_arguments(self, reason: str, honoured: Collection[str] = ()) -> None:
        """Called where vLLM does not run the model: manifests carry its arguments whatever they serve.

        Args:
            reason: why vLLM's arguments have no meaning.
            honoured: those that have it nevertheless.
        """
        for name, argument in self.engine.items():
            if name not in honoured:
                logger.warning("%s in %s has no effect: %s", name, argument.origin, _INSTEAD.get(name, reason))


def _positive(name: str, argument: EngineArgument) -> int:
    if not argument.value.isdecimal() or int(argument.value) < 1:
        raise ArgumentsError(f"argument {name} (from {argument.origin}) is {argument.value!r}: it must be 1 or more")
    return int(argument.value)


_Given = TypeVar("_Given", bound=_Group)
_SERVICE_GROUPS = tuple(base for base in Arguments.__bases__ if issubclass(base, _Group))
GROUPS: tuple[type[_Group], ...] = (LaunchArguments, *_SERVICE_GROUPS)
ARGUMENT_NAMES = tuple(name for group in _SERVICE_GROUPS for name in group.model_fields)
# Their values appear in no message.
_SECRET = frozenset({"api_key", "admin_api_key"})
_OWN_NAMES = frozenset({*ARGUMENT_NAMES, *LaunchArguments.model_fields, *WITHOUT_EFFECT})


def create_parser() -> argparse.ArgumentParser:
    """The parser of this server's own and KServe's names, in groups for `--help`; it takes every value as it is."""
    parser = argparse.ArgumentParser(
        add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False
    )
    for group in GROUPS:
        options = parser.add_argument_group(group.title)
        for name, field in group.model_fields.items():
            names = [name, *(alias for alias, target in _ALIASES.items() if target == name)]
            default = "" if field.default is None or field.default is False else f"; default {field.default}"
            _add(options, names, field.annotation in (bool, bool | None), f"{field.description}{default}")
    ignored = parser.add_argument_group("KServe's, accepted without effect")
    for name, instead in WITHOUT_EFFECT.items():
        _add(ignored, [name], name in _WITHOUT_VALUE, instead)
    others = sorted({*OPTIONS, *SWITCHES} - _OWN_NAMES - {*_ALIASES})
    names = [*(f"--{name}" for name in others), *(f"-{name}" for name in sorted(SHORT))]
    parser.add_argument_group("vLLM's (docs.vllm.ai has what they do; flags also as --no_...)", " ".join(names))
    return parser


def _add(options: Any, names: Sequence[str], is_flag: bool, description: str) -> None:
    text = re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", description).replace("`", "").replace("%", "%%")
    words = [f"--{name}" for name in names]
    if is_flag:
        options.add_argument(*words, dest=names[0], nargs="?", const="true", metavar="true|false", help=text)
    else:
        options.add_argument(*words, dest=names[0], metavar="VALUE", help=text)


def parse_command_line(words: Sequence[str], origin: str = "the command line") -> dict[str, str]:
    """Parse `--name=value`, `--name value` and bare `--flag`; `-` and `_` are the same in names.

    Args:
        words: the words after the program's name.
        origin: what to call the command line in an error.

    Returns:
        The values as given, by argument name; no value is validated. Several words after a name that is not this
        server's own are one value, quoted as in a shell.

    Raises:
        ArgumentsError: an unknown name, a missing value or a stray word.
    """
    try:
        namespace, rest = create_parser().parse_known_args([_canonical_word(word) for word in words])
    except argparse.ArgumentError as error:
        raise ArgumentsError(f"{origin} is wrong: {error}") from error
    values: dict[str, str] = vars(namespace)
    for name, given in _group(rest, origin):
        _check_name(name, origin)
        values[name] = given[0] if len(given) == 1 else shlex.join(given) or "true"
    return values


def _group(words: Iterable[str], origin: str) -> list[tuple[str, list[str]]]:
    """The words of each option together: `--lora_modules a=x b=y` is one."""
    options: list[tuple[str, list[str]]] = []
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            options.append((_canonical_name(name), [value] if equals else []))
        elif short := _SHORT_OPTION.match(word):
            value = short["value"]
            options.append((_canonical_name(short["name"]), [] if value is None else [value]))
        elif options:
            options[-1][1].append(word)
        else:
            raise ArgumentsError(f"{origin} has a stray word {word!r}; arguments look like --name=value")
    return options


def read_arguments(
    command_line: Mapping[str, object], environment: Mapping[str, str], baked: Mapping[str, object]
) -> Arguments:
    """Merge the sources; command line > environment > baked into the Bento > default.

    In the environment `RUNTIME_<ARGUMENT>` is stronger than the same argument in `RUNTIME_ARGS`. Empty variables count
    as unset. An unknown `RUNTIME_...` variable is only warned of: Kubernetes sets some of that form for a Service
    called "runtime". What is vLLM's is in `engine`.

    Raises:
        ArgumentsError: one line that names the argument, where it came from and what is allowed.
    """
    values: dict[str, object] = {}
    engine: dict[str, EngineArgument] = {}
    origins: dict[str, str] = {}

    def take(source: Mapping[str, object], origin: str, meant: bool = True) -> None:
        for given_name, value in source.items():
            if value is None or value == "":
                continue
            name = _canonical_name(given_name)
            if name == "max_length" and str(value) in _FITTING:
                engine["max_model_len"] = EngineArgument(str(value), origin)
            elif name in WITHOUT_EFFECT:
                logger.warning("%s in %s has no effect: %s", name, origin, WITHOUT_EFFECT[name])
            elif name in LaunchArguments.model_fields:
                logger.warning("%s in %s has no effect: it is for the command line of launch.py", name, origin)
            elif name in ARGUMENT_NAMES:
                values[name] = value
                origins[name] = origin
            elif not meant and not _is_known(name):
                logger.warning("%s is ignored: there is no argument %s", origin, name)
            else:
                _check_name(name, origin)
                engine[name] = EngineArgument(_as_text(value), origin)

    take({"api_key": environment.get(_VLLM_KEY)}, _VLLM_KEY)
    take(baked, "the Bento")
    try:
        words = shlex.split(environment.get(ENVIRONMENT_COMMAND_LINE, ""))
    except ValueError as error:
        raise ArgumentsError(f"{ENVIRONMENT_COMMAND_LINE} is not a command line: {error}") from error
    take(parse_command_line(words, ENVIRONMENT_COMMAND_LINE), ENVIRONMENT_COMMAND_LINE)
    for variable, value in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in (ENVIRONMENT_COMMAND_LINE, HANDED_OVER):
            continue
        take({variable.removeprefix(ENVIRONMENT_PREFIX).lower(): value}, variable, meant=False)
    try:
        handed_over = json.loads(environment.get(HANDED_OVER, "{}"))
    except ValueError:
        raise ArgumentsError(f"{HANDED_OVER} is for launch.py alone: set {ENVIRONMENT_COMMAND_LINE}") from None
    take({**command_line, **handed_over}, "the command line")
    return _validate(Arguments, {**values, "engine": engine}, origins)


def forget_keys(environment: MutableMapping[str, str]) -> None:
    """Take out of an environment that has been read what may hold keys in plain text."""
    for variable in (ENVIRONMENT_COMMAND_LINE, HANDED_OVER, _VLLM_KEY, *map(_variable, _SECRET)):
        environment.pop(variable, None)


def _variable(name: str) -> str:
    return f"{ENVIRONMENT_PREFIX}{name.upper()}"


def read_launch_arguments(values: Mapping[str, str]) -> LaunchArguments:
    """
    Raises:
        ArgumentsError: one line that names the argument and what is allowed.
    """
    return _validate(LaunchArguments, values, {})


def _validate(model: type[_Given], values: Mapping[str, object], origins: Mapping[str, str]) -> _Given:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ArgumentsError("; ".join(_describe(problem, origins) for problem in error.errors())) from error


def _canonical_word(word: str) -> str:
    if level := _OPTIMIZATION.match(word):
        return "--optimization_level" + (f"={level['level']}" if level["level"] else "")
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _canonical_name(name: str) -> str:
    # What follows a dot is a key of a JSON argument, as in --compilation_config.mode.
    name, dot, key = name.strip().partition(".")
    name = name.replace("-", "_")
    return _ALIASES.get(name, name) + dot + key


def _as_text(value: object) -> str:
    """A value as vLLM's parser reads it; an argument file has typed ones."""
    return value if isinstance(value, str) else json.dumps(value)


def _is_known(name: str) -> bool:
    return name.partition(".")[0] in _OWN_NAMES | _VLLM_NAMES


def _check_name(name: str, origin: str) -> None:
    if not _is_known(name):
        raise ArgumentsError(unknown_argument(name, origin))


def unknown_argument(name: str, origin: str) -> str:
    """Say that there is no such argument, and which it might have been: one of this server's before one of vLLM's."""
    for names in (_OWN_NAMES | {*_ALIASES}, _VLLM_NAMES):
        # KServe takes an abbreviation; a typo is more often near.
        longer = [each for each in names if each.startswith(name)]
        close = longer if len(longer) == 1 else difflib.get_close_matches(name, sorted(names), n=1, cutoff=0.75)
        if close:
            return f"unknown argument {name!r} in {origin}: did you mean {close[0]}?"
    return f"unknown argument {name!r} in {origin}: `python launch.py --help` shows all that there are"


def _describe(problem: Mapping[str, object], origins: Mapping[str, str]) -> str:
    location = problem["loc"]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not isinstance(location, tuple) or not location:
        return message
    name = str(location[0])
    if problem["type"] == "bool_parsing":
        message = _BOOLEANS
    if name in _SECRET:
        return f"argument {name} (from {origins.get(name, 'the command line')}) is wrong: {message}"
    return f"argument {name} (from {origins.get(name, 'the command line')}) is {problem['input']!r}: {message}"
