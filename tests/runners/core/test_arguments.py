from __future__ import annotations

from typing import Any

import pytest

from runners.core.api_keys import digest_keys
from runners.core.argument_groups import PredictArguments
from runners.core.argument_names import WITHOUT_EFFECT
from runners.core.argument_sources import LAUNCH_VARIABLE, read_arguments, read_launch_arguments
from runners.core.arguments import ARGUMENT_NAMES, GROUPS, Arguments
from runners.core.command_line import SeparatedWords, parse_command_line, separate_words
from runners.core.engine_arguments import EngineArgument
from runners.core.errors import ArgumentsError
from runners.core.request_limits import RequestLimits


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--model_id=bert"], {"model_id": "bert"}),
        (["--model-id", "bert"], {"model_id": "bert"}),
        (["--model_name=a-b", "--return-probabilities"], {"model_name": "a-b", "return_probabilities": "true"}),
        (["--return_raw_logits", "false"], {"return_raw_logits": "false"}),
        (["--max_model_len=12"], {"max_length": "12"}),
        (["--max-length=12"], {"max_length": "12"}),
        (["--dtype=half", "--dtype=float32"], {"dtype": "float32"}),
        (["--model", "bert", "--revision=main"], {"model_id": "bert", "model_revision": "main"}),
        (["--enforce-eager", "--model_id=x"], {"enforce_eager": "true", "model_id": "x"}),
        (["--max-num-seqs", "4", "--seed=-1"], {"max_num_seqs": "4", "seed": "-1"}),
        (["-tp", "2", "-pp=3"], {"tensor_parallel_size": "2", "pipeline_parallel_size": "3"}),
        (["--lora-modules", "a=/x", '{"name": "b"}'], {"lora_modules": """a=/x '{"name": "b"}'"""}),
        (["--hf-overrides", '{"a": 1}'], {"hf_overrides": '{"a": 1}'}),
        (["--compilation-config.mode=3"], {"compilation_config.mode": "3"}),
        (["-cc.mode=3", "-O2"], {"cc.mode": "3", "optimization_level": "2"}),
        (["-O=1"], {"optimization_level": "1"}),
        (["-O", "0"], {"optimization_level": "0"}),
        (["--no-enable-prefix-caching"], {"no_enable_prefix_caching": "true"}),
        (["--port", "3000"], {"http_port": "3000"}),
        (["--event-loop", "uvloop"], {"event_loop": "uvloop"}),
        ([], {}),
    ],
)
def test_command_line_forms(words: list[str], values: dict[str, str]) -> None:
    assert parse_command_line(words) == values


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bert"], "the command line has a stray word 'bert'; arguments look like --name=value"),
        (["--model_id"], "the command line is wrong: argument --model_id/--model: expected one argument"),
        (["--model_n=x"], "unknown argument 'model_n' in the command line: did you mean model_name?"),
        (["--htp-port=1"], "unknown argument 'htp_port' in the command line: did you mean http_port?"),
        (["--max_thread=1"], "unknown argument 'max_thread' in the command line: did you mean max_threads?"),
        (["--max-num-seq=1"], "unknown argument 'max_num_seq' in the command line: did you mean max_num_seqs?"),
        (["--foo"], "unknown argument 'foo' in the command line; --help lists all arguments"),
    ],
)
def test_command_line_errors_are_one_clear_line(words: list[str], message: str) -> None:
    with pytest.raises(ArgumentsError) as error:
        parse_command_line(words)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("words", "own", "texts", "others"),
    [
        (["a b", "--model_id=m", "c"], {}, ["a b", "c"], ["--model_id=m"]),
        (["--model-id", "m", "a"], {}, ["a"], ["--model_id=m"]),
        (["--input", "-", "--text-column=b"], {"input": "-", "text_column": "b"}, [], []),
        # A flag takes booleans, and no text.
        (["--return_probabilities", "a"], {}, ["a"], ["--return_probabilities=true"]),
        (["--return_probabilities", "false", "a"], {}, ["a"], ["--return_probabilities=false"]),
        (["--output=a=b"], {"output": "a=b"}, [], []),
        # What follows one of vLLM's names is its.
        (["a", "--lora-modules", "x=/x", "y=/y", "--seed=1", "b"], {}, ["a", "b"], ["--lora-modules", "x=/x", "y=/y", "--seed=1"]),
        (["-tp=2", "a"], {}, ["a"], ["-tp=2"]),
        (["a", "--", "--model_id=m", "-5", "--"], {}, ["a", "--model_id=m", "-5", "--"], []),
        (["--modle_id=m", "a"], {}, ["a"], ["--modle_id=m"]),
        (["", "-"], {}, ["", "-"], []),
    ],
)  # fmt: skip
def test_texts_beside_arguments(words: list[str], own: dict[str, str], texts: list[str], others: list[str]) -> None:
    assert separate_words(words, PredictArguments) == SeparatedWords(own, texts, others)


def test_precedence() -> None:
    baked = {"model_id": "baked", "dtype": "bfloat16", "model_name": "baked", "max_length": 7}
    environment = {"RUNTIME_ARGS": "--model_id=args --dtype=half --model-name=args", "RUNTIME_DTYPE": "auto"}
    arguments = read_arguments({"model_id": "line"}, environment, baked)
    assert (arguments.model_id, arguments.dtype, arguments.model_name) == ("line", "auto", "args")
    assert arguments.max_length == 7
    assert arguments.task is None


def test_environment_names_every_argument() -> None:
    values: dict[str, Any] = {
        "model_name": "m", "model_dir": "/d", "model_id": "i", "model_revision": "r", "tokenizer_revision": "t",
        "task": "fill_mask", "backend": "huggingface", "dtype": "half", "max_length": 3, "disable_lower_case": True,
        "disable_special_tokens": True, "trust_remote_code": True, "allow_pickle": True,
        "tensor_input_names": ("input_ids", "attention_mask"), "predictor_host": "triton:8001",
        "predictor_protocol": "grpc-v2", "predictor_use_ssl": True, "predictor_request_timeout_seconds": 7.5,
        "predictor_request_retries": 2, "enable_predictor_health_check": True, "return_token_type_ids": True,
        "return_probabilities": True, "return_raw_logits": False, "return_offsets_mapping": True,
        "enable_playground": False, "enable_grpc": False, "grpc_port": 9, "grpc_max_send_message_length": 8, "grpc_max_receive_message_length": 7,
        "root_path": "/models/ner", "ssl_certfile": "/c", "ssl_keyfile": "/k", "ssl_ca_certs": "/a", "max_batch_tokens": 64,
        "matmul_precision": "high", "compile_layers": True,
        "api_key": ("a", "b"), "api_key_file": "/keys", "admin_api_key": ("c",), "admin_api_key_file": "/admins",
        "enable_repository": True, "allowed_origins": ("https://a.example",), "allowed_methods": ("GET", "POST"),
        "allowed_headers": ("Authorization",), "allow_credentials": True,
        "labels": True, "top_k": 3, "threshold": 0.25, "function_to_apply": "sigmoid", "targets": ("paris", "rome"),
        "aggregation_strategy": "max", "ignore_labels": ("O", "MISC"),
        "dimensions": 64, "normalize": False, "max_active_dims": 32, "prompt_name": "query", "candidate_labels": ("sports", "film"), "multi_label": True,
        "hypothesis_template": "It is {}.", "max_answer_len": 5, "handle_impossible_answer": True,
        "truncation": False, "truncation_side": "left", "stride": 16, "window_aggregation": "max", "return_truncated_tokens": True,
        "shutdown_delay_seconds": 5.5, "drain_seconds": 60.0, "watchdog_seconds": 120.0, "on_worker_death": "exit",
        "log_format": "json", "log_level": "error", "access_log": True, "log_inputs": 5,
        "enable_latency_logging": True, "workers": 3, "gpu": 2, "gpu_type": "nvidia-l4",
        "models_file": "/models.yaml", "model_repository": "/models", "ready_when": "any", "on_load_failure": "serve_others",
    }  # fmt: skip
    values |= {name: field.default + 1 for name, field in RequestLimits.model_fields.items()}
    assert set(values) == set(ARGUMENT_NAMES)
    environment = {
        f"RUNTIME_{name.upper()}": ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }
    values |= {name: digest_keys(values[name]) for name in ("api_key", "admin_api_key")}
    assert read_arguments({}, environment, {}).model_dump() == values


@pytest.mark.parametrize(
    ("command_line", "environment", "message"),
    [
        ({"dtype": "int4"}, {}, "argument dtype (from the command line) is 'int4': Input should be 'auto', 'float32',"),
        ({}, {"RUNTIME_MAX_LENGTH": "ten"}, "argument max_length (from RUNTIME_MAX_LENGTH) is 'ten': Input should be"),
        ({"max_length": "0"}, {}, "argument max_length (from the command line) is '0': Input should be greater than"),
        ({}, {"RUNTIME_ARGS": "--task=tagging"}, "argument task (from RUNTIME_ARGS) is 'tagging': Input should be"),
        ({}, {"RUNTIME_ARGS": "--task 'x"}, "RUNTIME_ARGS is not a command line: No closing quotation"),
        ({"trust_remote_code": "perhaps"}, {}, "argument trust_remote_code (from the command line) is 'perhaps': it must be true, yes, on"),
        ({"workers": "0"}, {}, "argument workers (from the command line) is '0': Input should be greater than or equal to 1"),
        ({"gpu": "1", "gpu_type": "nvidia-l4", "return_probabilities": "1", "return_raw_logits": "yes"}, {},
         "return_probabilities and return_raw_logits exclude each other: set one of them"),
        ({}, {"RUNTIME_COMMAND_LINE": "--task=x"}, "RUNTIME_COMMAND_LINE is for launch.py alone: set RUNTIME_ARGS"),
        ({"gpu": 0, "gpu_type": "nvidia-l4"}, {}, "gpu_type says which GPU, but gpu is 0: leave gpu_type out, or set gpu to 1"),
        ({"predictor_protocol": "v1"}, {}, "argument predictor_protocol (from the command line) is 'v1': V1 cannot carry tensors;"),
        ({"predictor_host": "http://triton:8000"}, {}, "argument predictor_host (from the command line) is 'http://triton:8000': it must be host:port, without"),
        ({"predictor_host": "triton:8000/v2"}, {}, "argument predictor_host (from the command line) is 'triton:8000/v2': it must be host:port, without"),
        ({"predictor_request_timeout_seconds": 0}, {}, "argument predictor_request_timeout_seconds (from the command line) is 0: "),
    ],
)  # fmt: skip
def test_wrong_values_are_one_clear_line(
    command_line: dict[str, object], environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ArgumentsError) as error:
        read_arguments(command_line, environment, {})
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ARGUMENT_NAMES)
def test_every_argument_is_in_one_group(name: str) -> None:
    assert len([group for group in GROUPS if name in group.model_fields]) == 1


def test_the_groups_have_all_arguments() -> None:
    assert {*ARGUMENT_NAMES, "engine"} == {*Arguments.model_fields}


@pytest.mark.parametrize("value", ["y", "YES", "t", "true", "On", "1"])
def test_kserve_s_words_for_true(value: str) -> None:
    assert read_arguments(parse_command_line(["--return_probabilities", value]), {}, {}).return_probabilities is True


@pytest.mark.parametrize("value", ["n", "NO", "f", "false", "Off", "0"])
def test_kserve_s_words_for_false(value: str) -> None:
    assert read_arguments(parse_command_line([f"--enable-grpc={value}"]), {}, {}).enable_grpc is False


def test_flags_of_kserve_without_effect_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Manifests carry them, and must still start."""
    words = [word for name in WITHOUT_EFFECT for word in (f"--{name}", "1")]
    assert read_arguments(parse_command_line([*words, "--model_name=m"]), {}, {}) == Arguments(model_name="m")
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} in the command line has no effect: {instead}" for name, instead in WITHOUT_EFFECT.items()
    ]


def test_what_only_launch_py_knows_is_warned_of_elsewhere(caplog: pytest.LogCaptureFixture) -> None:
    read_arguments({}, {"RUNTIME_ARGS": "--http_port=80", "RUNTIME_PORT": "tcp://10.0.0.1:80"}, {})
    for origin in ("RUNTIME_ARGS", "RUNTIME_PORT"):
        assert f"http_port in {origin} has no effect: it is for the command line of launch.py" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"http_port": "x"}, "argument http_port (from the command line) is 'x': Input should be a valid integer"),
        ({"http_port": "99999"}, "argument http_port (from the command line) is '99999': Input should be less than"),
        ({"host": "localhost"}, "argument host (from the command line) is 'localhost': it must be an IP address, such"),
    ],
)
def test_wrong_values_for_launch_py(values: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentsError) as error:
        read_launch_arguments(values, {})
    assert str(error.value).startswith(message)


def test_what_launch_py_hands_over_is_the_command_line() -> None:
    environment = {
        "RUNTIME_DTYPE": "half",
        "RUNTIME_TASK": "fill_mask",
        LAUNCH_VARIABLE: '{"dtype": "auto", "seed": "1"}',
    }
    arguments = read_arguments({}, environment, {"dtype": "bfloat16"})
    assert (arguments.dtype, arguments.task) == ("auto", "fill_mask")
    assert arguments.engine == {"seed": EngineArgument("1", "the command line")}


def test_arguments_of_vllm_come_from_everywhere() -> None:
    arguments = read_arguments(
        {"max_num_seqs": 4, "enforce_eager": True, "lora_modules": ["a=/x", "b=/y"]},
        {"RUNTIME_ARGS": "--max-num-seqs=1 --seed=1 --block_size=16", "RUNTIME_SEED": "2"},
        {"block_size": 8, "max_loras": 2},
    )
    assert {name: argument.value for name, argument in arguments.engine.items()} == {
        "max_num_seqs": "4", "enforce_eager": "true", "lora_modules": '["a=/x", "b=/y"]', "seed": "2",
        "block_size": "16", "max_loras": "2",
    }  # fmt: skip
    assert arguments.engine["seed"] == EngineArgument("2", "RUNTIME_SEED")


@pytest.mark.parametrize(
    ("command_line", "environment", "baked", "message"),
    [
        ({"modl_id": "x"}, {}, {}, "unknown argument 'modl_id' in the command line: did you mean model_id?"),
        ({}, {"RUNTIME_ARGS": "--tsk=x"}, {}, "unknown argument 'tsk' in RUNTIME_ARGS: did you mean task?"),
        ({}, {}, {"max_num_seq": 1}, "unknown argument 'max_num_seq' in the Bento: did you mean max_num_seqs?"),
        ({"foo": "1"}, {}, {}, "unknown argument 'foo' in the command line; --help lists all"),
    ],
)
def test_unknown_arguments(
    command_line: dict[str, object], environment: dict[str, str], baked: dict[str, object], message: str
) -> None:
    with pytest.raises(ArgumentsError) as error:
        read_arguments(command_line, environment, baked)
    assert str(error.value).startswith(message)


def test_where_vllm_does_not_run_its_arguments_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """KServe's manifests carry them whatever they serve."""
    given: dict[str, object] = {"max_num_seqs": 4, "no_enable_prefix_caching": True, "max_log_len": 100}
    read_arguments(given, {}, {}).warn_of_engine_arguments("this model does not run on vLLM")
    assert [record.getMessage() for record in caplog.records] == [
        "max_num_seqs in the command line has no effect: this model does not run on vLLM",
        "no_enable_prefix_caching in the command line has no effect: this model does not run on vLLM",
        "max_log_len in the command line has no effect: prompts are logged only with --log_inputs",
    ]


def test_unknown_variable_is_only_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    """Kubernetes gives every pod RUNTIME_SERVICE_HOST and the like where a Service is called "runtime"."""
    assert read_arguments({}, {"RUNTIME_SERVICE_HOST": "10.0.0.1"}, {}) == Arguments()
    assert [record.getMessage() for record in caplog.records] == [
        "RUNTIME_SERVICE_HOST is ignored: there is no argument service_host"
    ]


@pytest.mark.parametrize("value", ["0", "-1", "two"])
def test_parallel_sizes_are_positive(value: str) -> None:
    with pytest.raises(ArgumentsError, match=f"argument tensor_parallel_size .* is '{value}': it must be 1 or more"):
        _ = read_arguments({"tensor_parallel_size": value}, {}, {}).parallel_size


@pytest.mark.parametrize("text", ["fill_mask", "fill-mask", "Fill_Mask"])
def test_task_spellings(text: str) -> None:
    assert read_arguments({"task": text}, {}, {}).task == "fill_mask"


def test_empty_means_unset() -> None:
    assert read_arguments({"model_id": ""}, {"RUNTIME_TASK": ""}, {"dtype": None}) == Arguments()
