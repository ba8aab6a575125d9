"""The server's arguments in groups, as docs/reference/arguments.md and `launch.py --help` show them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from runners.core.answer_options import AnswerOptions, OverflowOptions, split_names
from runners.core.api_keys import digest_keys
from runners.core.argument_conversion import (
    check_host,
    check_ip_address,
    check_model_name,
    check_origin,
    check_root_path,
    check_tensor_protocol,
    check_token,
    lower_case,
    normalize_task,
    parse_count,
    parse_object,
    split_list,
)
from runners.core.request_limits import RequestLimits
from runners.core.task import Task

# A day, in seconds.
LONGEST_WAIT = 86_400
_TASK_NAMES = [f"`{task}`" for task in Task]
_Tokens: TypeAlias = Annotated[tuple[Annotated[str, AfterValidator(check_token)], ...], BeforeValidator(split_list)]
_Digests: TypeAlias = Annotated[tuple[bytes, ...] | None, BeforeValidator(digest_keys)]


def show_default(default: object) -> str:
    """A default as help and docs show it; empty for an argument that is unset or off."""
    if isinstance(default, tuple):
        return ",".join(default)
    return "" if default is None or default is False else str(default)


class ArgumentGroup(BaseModel):
    """Arguments that belong together; docs/reference/arguments.md and `launch.py --help` show their descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), coerce_numbers_to_str=True)

    title: ClassVar[str]


class LaunchArguments(ArgumentGroup):
    """The arguments that launch.py passes to `bentoml serve`; the service itself cannot read them."""

    title = "Server, of launch.py only"

    http_port: int = Field(8080, ge=1, le=65535, description="the server listens on this port for HTTP; alias `port`")
    host: Annotated[str, AfterValidator(check_ip_address)] = Field(
        "0.0.0.0", description="the server listens on this IP address for HTTP; gRPC listens on all addresses"
    )


class PredictArguments(ArgumentGroup):
    """The arguments of `launch.py predict`, which starts no server."""

    title = "Predictions, of predict only (docs/how-to/bulk.md)"

    input: str | None = Field(
        None,
        description="the texts are in this file, whose name ends with .jsonl, .ndjson, .csv, .parquet or .txt, or in "
        "the standard input (`-`); unset, they are on the command line or else in the standard input",
    )
    output: str = Field(
        "-",
        description="the answers go to this file, whose name ends with .jsonl, .ndjson, .csv or .parquet, or to the "
        "standard output (`-`)",
    )
    text_column: str = Field("text", min_length=1, description="the texts are in this column of the input")
    parameters: Annotated[dict[str, Any], BeforeValidator(parse_object)] = Field(
        {}, description='the `parameters` of a request of V1, as a JSON object: `{"top_k": 3}`'
    )
    ray: bool = Field(
        False,
        description="workers of Ray answer the texts, on this machine or on those of a cluster "
        "([docs/how-to/bulk.md](docs/how-to/bulk.md#many-machines)); `input` and `output` are files",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="so many of Ray's workers load the model; unset, one for each GPU, or for each machine if there "
        "are none",
    )


class ModelArguments(ArgumentGroup):
    title = "Model"

    model_name: Annotated[str, AfterValidator(check_model_name)] = Field(
        "model", min_length=1, description="clients use this name of the model in URLs"
    )
    model_dir: str = Field(
        "/mnt/models",
        description="the model is in this folder, or at this URI, such as `s3://bucket/bert/` "
        "([docs/how-to/storage.md](docs/how-to/storage.md)); it is ignored if `model_id` is set",
    )
    model_id: str | None = Field(
        None, description="the model has this id on the Hugging Face hub, or is in this folder"
    )
    model_revision: str | None = Field(
        None,
        description="the server loads this branch, tag or commit of the model from the hub; unset, its main branch",
    )
    tokenizer_revision: str | None = Field(
        None,
        description="the server loads this branch, tag or commit of the tokenizer from the hub; unset, "
        "`model_revision` applies",
    )
    task: Annotated[Task | None, BeforeValidator(normalize_task)] = Field(
        None,
        description=f"the server runs this task: {', '.join(_TASK_NAMES[:-1])} or {_TASK_NAMES[-1]}; unset, it infers "
        "the task from the model's config.json",
    )
    backend: Literal["auto", "huggingface", "vllm"] = Field(
        "auto",
        description="this engine runs the model: `auto` generates on vLLM if it is installed and supports the model "
        "on this device, else on `transformers`, and runs all other tasks on this server's own engine; `huggingface` "
        "never uses vLLM; `vllm` always does",
    )
    dtype: Literal["auto", "float32", "float", "float16", "half", "bfloat16"] | None = Field(
        None,
        description="the model computes in this data type; unset, it is float32; `auto` is float32 on a CPU; on a GPU "
        "it is the checkpoint's bfloat16 where the GPU has it, else float16, and if the model's numbers are too large "
        "for that, bfloat16 or float32 with a warning; an encoder on a CPU that is slower in the data type logs a "
        "warning, and does not start if it is more than 2 times slower; on vLLM, unset and `auto` are the checkpoint's "
        "data type, but float32 for bfloat16 on an x86 CPU without instructions for it, where the memory suffices",
    )
    max_length: Annotated[int | None, BeforeValidator(parse_count)] = Field(
        None,
        ge=1,
        description="encoders truncate texts to this many tokens, and generators refuse prompts that exceed it "
        "together with their output; unset, the limit is the model's, and for encoders the tokenizer's if that is "
        "smaller; it cannot exceed the positions of the model; alias `max_model_len`",
    )
    disable_lower_case: bool | None = Field(
        None,
        description="`true` keeps the case of texts, `false` converts them to lower case (KServe's default); unset, "
        "the tokenizer's own setting applies",
    )
    disable_special_tokens: bool = Field(
        False, description="the tokenizer adds no special tokens, such as [CLS] and [SEP]"
    )
    trust_remote_code: bool = Field(False, description="the server runs Python code from the model's repository")
    allow_pickle: bool = Field(
        False, description="the server loads `.bin` weights, which can run code, if the model has no safetensors"
    )
    tensor_input_names: Annotated[tuple[str, ...] | None, BeforeValidator(split_names)] = Field(
        None,
        description="the model, here or in a predictor, receives only these outputs of the tokenizer (names separated "
        "by commas); unset, it receives all that it accepts",
    )


class PredictorArguments(ArgumentGroup):
    title = "Predictor"

    predictor_host: Annotated[str, AfterValidator(check_host)] | None = Field(
        None,
        description="another server at this `host:port`, such as Triton, runs the model over the Open Inference "
        "Protocol; this server loads no weights, and converts texts to tensors and logits to answers "
        "([docs/how-to/predictor.md](docs/how-to/predictor.md))",
    )
    predictor_protocol: Annotated[Literal["v2", "grpc-v2"], BeforeValidator(check_tensor_protocol)] = Field(
        "v2",
        description="the server calls the predictor over REST (`v2`) or gRPC (`grpc-v2`); KServe's default `v1` cannot "
        "carry tensors",
    )
    predictor_use_ssl: bool = Field(False, description="the server calls the predictor over TLS")
    predictor_request_timeout_seconds: float = Field(
        600,
        gt=0,
        description="the predictor must answer a batch within this many seconds, retries included, else the client "
        "gets a 504",
    )
    predictor_request_retries: int = Field(
        0,
        ge=0,
        description="the server sends a batch again this many times if the predictor is unreachable or not ready",
    )
    enable_predictor_health_check: bool = Field(
        False,
        description="the server is ready only while the predictor's model is ready, which it checks once a second",
    )


class AnswerArguments(ArgumentGroup, OverflowOptions, AnswerOptions):
    title = "Answers of encoders"

    return_token_type_ids: bool = Field(
        False, description="the model receives token_type_ids even if its tokenizer does not return them by default"
    )
    return_probabilities: bool = Field(
        False,
        description="classification, text ranking and fill-mask answer with the probability of every class or token",
    )
    return_raw_logits: bool = Field(
        False, description="classification, text ranking and fill-mask answer with the logit of every class or token"
    )
    return_offsets_mapping: bool = Field(
        False,
        description="token classification adds each token's start and end in the text, in characters, as "
        "`offset_mapping`",
    )


class ServerArguments(ArgumentGroup):
    title = "Server"

    workers: int = Field(
        1,
        ge=1,
        description="this many processes serve, each with its own copy of the model and an equal share of the CPU "
        "cores; it must be 1 if vLLM runs the model",
    )
    api_key: _Digests = Field(
        None,
        repr=False,
        description="clients must send one of these keys (separated by commas) as `Authorization: Bearer KEY`, except "
        "for health, metrics and docs; prefer the environment, because command lines are visible to other users",
    )
    api_key_file: str | None = Field(
        None,
        description="the keys in this file are valid in addition to `api_key`: one a line, `#` starts a comment; the "
        "server reads the file again when it changes",
    )
    admin_api_key: _Digests = Field(
        None,
        repr=False,
        description="only these keys (separated by commas) allow loading and unloading models and adapters; unset, "
        "those of `api_key` do",
    )
    admin_api_key_file: str | None = Field(
        None, description="the keys in this file are valid in addition to `admin_api_key`; see `api_key_file`"
    )
    enable_repository: bool = Field(
        False, description="clients may load and unload models through the repository API even if no key is set"
    )
    enable_playground: bool = Field(
        True,
        description="the server has a page on which people try its models, at `/playground` and, for browsers, at `/` "
        "([docs/how-to/playground.md](docs/how-to/playground.md))",
    )
    enable_grpc: bool = Field(True, description="the server also serves the Open Inference Protocol over gRPC")
    grpc_port: int = Field(8081, ge=1, le=65535, description="the server listens on this port for gRPC")
    grpc_max_send_message_length: int = Field(
        8 * 2**20,
        ge=1,
        description="a gRPC answer may have at most this many bytes; a larger one becomes RESOURCE_EXHAUSTED",
    )
    grpc_max_receive_message_length: int = Field(
        8 * 2**20,
        ge=1,
        description="a gRPC request may have at most this many bytes; a larger one is refused with RESOURCE_EXHAUSTED",
    )
    ssl_certfile: str | None = Field(
        None, description="the server serves HTTP and gRPC over TLS with the certificate in this file (PEM)"
    )
    ssl_keyfile: str | None = Field(None, description="the private key of the certificate is in this file (PEM)")
    ssl_ca_certs: str | None = Field(
        None, description="clients must have a certificate that one of the authorities in this file (PEM) has signed"
    )
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest",
        description="the precision of matrix products in float32 on a GPU of compute capability 8.0 or above, of all "
        "models that vLLM does not run: `high` and `medium` round the factors to TF32, which has 10 bits of mantissa "
        "instead of 23; it has no effect on a CPU and in 16 bits",
    )
    compile_layers: bool = Field(
        False,
        description="`torch.compile` fuses additions, norms and activations in the layers of an encoder on a GPU; "
        "loads take a minute longer",
    )
    max_batch_tokens: int | None = Field(
        None,
        ge=1,
        description="an encoder computes batches of at most this many tokens; unset, 1536 on a CPU and 16384 on a GPU",
    )
    enable_latency_logging: bool = Field(
        False, description="the server logs the X-Request-Id, method, path, status and milliseconds of each request"
    )


class LifeCycleArguments(ArgumentGroup):
    title = "Life cycle (docs/explanation/life-cycle.md)"

    shutdown_delay_seconds: float = Field(
        0,
        ge=0,
        le=LONGEST_WAIT,
        description="after SIGTERM the server is not ready and still takes requests for this many seconds, in which a "
        "load balancer looks away",
    )
    drain_seconds: float = Field(
        20,
        ge=0,
        le=LONGEST_WAIT,
        description="after that delay the server takes no more requests, and those under way get this many seconds to "
        "end",
    )
    watchdog_seconds: float = Field(
        0,
        ge=0,
        le=LONGEST_WAIT,
        description="the server is not live while a batch takes longer than this many seconds, or vLLM's engine gives "
        "no output for so long while requests wait, and the log says where; choose more than the prefill of the "
        "longest prompt takes; loading a model does not count; 0: never",
    )
    on_worker_death: Literal["restart", "exit"] = Field(
        "restart",
        description="if a worker process dies, the server replaces it (`restart`), or ends with exit code 1 (`exit`)",
    )


class CrossOriginArguments(ArgumentGroup):
    title = "Web pages of other origins (CORS, docs/how-to/browsers.md)"

    allowed_origins: Annotated[
        tuple[Annotated[str, AfterValidator(check_origin)], ...], BeforeValidator(split_list)
    ] = Field(
        (),
        description="web pages of these origins, such as `https://chat.example.com`, may read answers (`*`: those of "
        "all origins); a JSON list, or separated by commas; unset, browsers show answers to no page of another origin",
    )
    allowed_methods: _Tokens = Field(("*",), description="such pages may use these methods (`*`: all)")
    allowed_headers: _Tokens = Field(
        ("*",), description="the requests of such pages may have these headers (`*`: all), such as `Authorization`"
    )
    allow_credentials: bool = Field(
        False,
        description="such pages may use the certificates, and the cookies of a proxy, that the browser has for this "
        "server; `allowed_origins` must name the origins then",
    )


class ProxyArguments(ArgumentGroup):
    title = "Behind a proxy"

    root_path: Annotated[str, AfterValidator(check_root_path)] | None = Field(
        None,
        description="clients see this server's paths behind this prefix, such as `/models/ner`: the server accepts "
        "paths with and without it, and its links have it "
        "([docs/how-to/networks.md](docs/how-to/networks.md))",
    )


class LogArguments(ArgumentGroup):
    title = "Log (docs/reference/logs.md has the fields)"

    log_format: Annotated[Literal["text", "json"], BeforeValidator(lower_case)] = Field(
        "text",
        description="`json` makes each line that the server and its libraries write a JSON object, errors that end the "
        "server included",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"] | None, BeforeValidator(lower_case)] = Field(
        None,
        description="the log has records of this level and above; those of libraries are one level less detailed; "
        "unset, it is `info`, or `debug` with BENTOML_DEBUG=true",
    )
    access_log: bool = Field(
        False,
        description="the log has a line for each HTTP request, gRPC call and message of a gRPC stream, with its ids, "
        "status, texts, tokens and milliseconds; health probes and /metrics only at the level `debug`",
    )
    log_inputs: int = Field(
        0,
        ge=0,
        description="the log has the first characters, at most this many, of up to 4 texts of each request; 0 keeps "
        "all texts out of it: think of whose texts they are, and who reads the log",
    )


class SeveralModelsArguments(ArgumentGroup):
    title = "Several models"

    models_file: str | None = Field(
        None,
        description="the server runs the models that this YAML, JSON or TOML file lists, which is a path or a URI "
        "([docs/how-to/several-models.md](docs/how-to/several-models.md))",
    )
    model_repository: str | None = Field(
        None, description="the server runs a model for each sub-folder of this folder; it excludes `models_file`"
    )
    ready_when: Literal["all", "any"] = Field(
        "all",
        description="the server is ready when `all` models that it loads at start are ready, or when `any` of them is",
    )
    on_load_failure: Literal["exit", "serve_others"] = Field(
        "exit",
        description="if one of several models fails to load at start, the server ends (`exit`) or serves the other "
        "models (`serve_others`)",
    )


class LimitArguments(ArgumentGroup, RequestLimits):
    title = "Limits (docs/reference/limits.md says what each protects)"


class ResourceArguments(ArgumentGroup):
    title = "BentoML"

    gpu: int | None = Field(
        None,
        ge=0,
        description="the service requests this many GPUs from BentoML (0: none, and models that vLLM does not run stay "
        "off them); unset: one for an encoder, or one for each worker where there are some; for a generator, the "
        "product of vLLM's parallel sizes. Outside a Bento, a machine without GPUs requests none. Worker k runs on GPU "
        "k, modulo their number; the start ends if PyTorch cannot use as many as are set",
    )
    gpu_type: str | None = Field(
        None, description="the service requests this type of GPU from BentoCloud, such as `nvidia-l4`"
    )
