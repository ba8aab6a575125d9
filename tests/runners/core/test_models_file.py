from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from runners.core.api_keys import digest_keys
from runners.core.argument_groups import LaunchArguments
from runners.core.argument_sources import read_configuration
from runners.core.arguments import SERVER_NAMES
from runners.core.declarations import Configuration
from runners.core.errors import ArgumentsError
from runners.core.file_values import MAX_BYTES


def read(
    folder: Path,
    text: str | bytes,
    command_line: dict[str, object] | None = None,
    environment: dict[str, str] | None = None,
    baked: dict[str, object] | None = None,
    name: str = "models.yaml",
) -> Configuration:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_configuration({"models_file": str(path), **(command_line or {})}, environment or {}, baked or {})


def refuse(folder: Path, text: str | bytes, name: str = "models.yaml", **sources: Any) -> str:
    """The message, with the name of the file instead of its path."""
    with pytest.raises(ArgumentsError) as error:
        read(folder, text, name=name, **sources)
    message = str(error.value).replace(f"{folder}/", "")
    assert "\n" not in message
    return message


# What a file declares

YAML = """\
# The server
dtype: float16
max-queue-tokens: 9

models:
  - model_id: dslim/bert-base-NER
    task: token-classification
  - name: ner
    version: 1.10
    load: false
    model-dir: models/ner
    max_model_len: 2K
    targets: [paris, rome]
    seed: 3
    enforce_eager: true
    hf_overrides: {a: [1, "x"]}
"""
JSON = """\
{
  "dtype": "float16",
  "max_queue_tokens": 9,
  "models": [

    {"model_id": "dslim/bert-base-NER", "task": "token-classification"},

    {"name": "ner", "version": 1.10, "load": false, "model_dir": "models/ner",
     "max_model_len": "2K", "targets": ["paris", "rome"], "seed": 3, "enforce_eager": true,
     "hf_overrides": {"a": [1, "x"]}}
  ]
}
"""
TOML = """\
dtype = "float16"
max_queue_tokens = 9

[[models]]
model_id = "dslim/bert-base-NER"
task = "token-classification"

[[models]]
name = "ner"
version = 1.10
load = false
model_dir = "models/ner"
max_model_len = "2K"
targets = ["paris", "rome"]
seed = 3
enforce_eager = true
[models.hf_overrides]
a = [1, "x"]
"""


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [("models.yaml", YAML, (6, 8)), ("models.YML", YAML, (6, 8)), ("models.json", JSON, (6, 8)), ("models.toml", TOML, (4, 8))],
)  # fmt: skip
def test_a_file_declares_models(name: str, text: str, lines: tuple[int, int], tmp_path: Path) -> None:
    configuration = read(tmp_path, text, name=name)
    first, second = configuration.models
    assert (first.name, first.version, first.load) == ("bert-base-NER", "1", True)
    assert (second.name, second.version, second.load) == ("ner", "1.10", False)
    assert [each.origin for each in configuration.models] == [f"{tmp_path / name}:{line}" for line in lines]
    assert first.arguments.task == "token_classification"
    assert second.arguments.model_dir == str(tmp_path / "models" / "ner")
    assert (second.arguments.max_length, second.arguments.targets) == (2048, ("paris", "rome"))
    assert {name: argument.value for name, argument in second.arguments.engine.items()} == {
        "seed": "3", "enforce_eager": "true", "hf_overrides": '{"a": [1, "x"]}',
    }  # fmt: skip
    for arguments in (configuration.arguments, first.arguments, second.arguments):
        assert (arguments.dtype, arguments.max_queue_tokens) == ("float16", 9)


@pytest.mark.parametrize("suffix", ["yaml", "json", "toml"])
def test_the_origin_of_vllm_s_arguments_is_their_line(suffix: str, tmp_path: Path) -> None:
    text = {"yaml": YAML, "json": JSON, "toml": TOML}[suffix]
    [_, model] = read(tmp_path, text, name=f"models.{suffix}").models
    line = {"yaml": 14, "json": 9, "toml": 15}[suffix]
    assert text.splitlines()[line - 1].strip(' "').startswith(("seed", "max_model_len"))
    assert model.arguments.engine["seed"].origin == f"{tmp_path}/models.{suffix}:{line}"


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        ("model_id: dslim/bert-base-NER", "bert-base-NER"),
        ("model: dslim/bert-base-NER", "bert-base-NER"),
        ("model_dir: /models/ner/", "ner"),
        ("model_dir: ner", "ner"),
        ("model_dir: s3://bucket/ner/?key=secret", "ner"),
        ("model_dir: hf://dslim/bert-base-NER:main", "bert-base-NER"),
        ("model_dir: ner\n  model_name: a", "a"),
        ("model_dir: ner\n  name: 1.10", "1.10"),
        ("model_dir: ner\n  name: no", "no"),
    ],
)
def test_the_name_of_a_model(entry: str, name: str, tmp_path: Path) -> None:
    [model] = read(tmp_path, f"models:\n- {entry}").models
    assert model.name == name


@pytest.mark.parametrize(
    ("written", "version"),
    [("2", "2"), ("1.10", "1.10"), ("'1.10'", "1.10"), ("010", "010"), ("2026-11-27", "2026-11-27"), ("v1_a", "v1_a"), ("12e5432", "12e5432"), ("", "1")],
)  # fmt: skip
def test_versions_are_text(written: str, version: str, tmp_path: Path) -> None:
    [model] = read(tmp_path, f"models:\n- model_dir: ner\n  version: {written}").models
    assert model.version == version


def test_relative_folders_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file" / "mine").mkdir(parents=True)
    (tmp_path / "file" / "models.yaml").write_text(
        "models: [{model_dir: a}, {model_id: mine}, {model_id: owner/hub}, {model_dir: /root}, {model_dir: 's3://b/x'}]"
    )
    monkeypatch.chdir(tmp_path)
    models = read_configuration({"models_file": "file/models.yaml"}, {}, {}).models
    file = str(tmp_path / "file")
    assert [each.arguments.model for each in models] == [f"{file}/a", f"{file}/mine", "owner/hub", "/root", "s3://b/x"]
    assert models[0].origin == "file/models.yaml:1"


def test_one_model_without_a_file() -> None:
    configuration = read_configuration({"model_name": "m", "model_id": "x", "max_queue_tokens": 9}, {}, {})
    [model] = configuration.models
    assert model.arguments == configuration.arguments
    assert (model.name, model.version, model.load, model.origin) == ("m", "1", True, "the command line")


# Precedence


@pytest.mark.parametrize("missing", range(5))
def test_precedence_for_a_model(missing: int, tmp_path: Path) -> None:
    """Its entry, the command line, a variable, RUNTIME_ARGS, the top of the file, the Bento."""
    sizes = [11, 12, 13, 14, 15, 16]
    written = ["" if index < missing else str(size) for index, size in enumerate(sizes)]
    entry, line, variable, words, top, baked = written
    text = f"max_batch_tokens: {top}\nmodels:\n- model_dir: x\n  max_batch_tokens: {entry}\n- model_dir: y"
    environment = {"RUNTIME_MAX_BATCH_TOKENS": variable, "RUNTIME_ARGS": f"--max_batch_tokens={words}"}
    configuration = read(tmp_path, text, {"max_batch_tokens": line}, environment, {"max_batch_tokens": baked})
    with_entry, without = (each.arguments.max_batch_tokens for each in configuration.models)
    assert with_entry == sizes[missing]
    assert without == configuration.arguments.max_batch_tokens == sizes[max(missing, 1)]


def test_precedence_of_vllm_s_arguments(tmp_path: Path) -> None:
    """The last of a flag and its negation is the one that vLLM takes."""
    text = "seed: 1\nno_enable_prefix_caching: true\nmodels: [{model_dir: x, seed: 3, enable-prefix-caching: true}, {model_dir: y}]"
    first, second = (each.arguments.engine for each in read(tmp_path, text, {"seed": 2}).models)
    assert (first["seed"].value, second["seed"].value) == ("3", "2")
    assert [*first] == ["no_enable_prefix_caching", "seed", "enable_prefix_caching"]


@pytest.mark.parametrize(
    ("command_line", "baked", "names"),
    [
        ({"models_file": "models.yaml"}, {"model_id": "owner/baked", "model_name": "b", "model_revision": "v1"}, ["x"]),
        ({"models_file": "models.yaml"}, {"model_repository": "repository"}, ["x"]),
        ({"model_id": "owner/mine"}, {"models_file": "models.yaml"}, ["model"]),
        ({}, {"models_file": "models.yaml"}, ["x"]),
    ],
)
def test_what_the_operator_names_replaces_what_the_bento_names(
    command_line: dict[str, object], baked: dict[str, object], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    (tmp_path / "models.yaml").write_text("models: [{model_dir: x}]")
    monkeypatch.chdir(tmp_path)
    configuration = read_configuration(command_line, {}, baked)
    assert [each.name for each in configuration.models] == names
    [model] = configuration.models
    assert (model.arguments.model_id, model.arguments.model_revision) in [(None, None), ("owner/mine", None)]


def test_the_server_s_arguments_are_replaced_for_all_models(tmp_path: Path) -> None:
    configuration = read(tmp_path, "workers: 2\nmodels: [{model_dir: x}, {model_dir: y, task: fill_mask}]")
    replaced = configuration.replace_server_arguments(configuration.arguments.model_copy(update={"workers": 5}))
    assert [each.arguments.workers for each in replaced.models] == [5, 5]
    assert [each.arguments.task for each in replaced.models] == [None, "fill_mask"]
    assert replaced.arguments.workers == 5


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"command_line": {"model_id": "x"}}, "model_id (from the command line) names one model, but models_file (from the command line) several: leave out model_id or models_file"),
        ({"environment": {"RUNTIME_MODEL_DIR": "/m"}}, "model_dir (from RUNTIME_MODEL_DIR) names one model, but models_file (from the command line) several: leave out model_dir or models_file"),
        ({"command_line": {"model_repository": "/m"}}, "models_file (from the command line) and model_repository (from the command line) exclude each other: set one of them"),
    ],
)  # fmt: skip
def test_what_names_one_model_beside_a_file(sources: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert refuse(tmp_path, "models: [{model_dir: x}]", **sources) == message


def test_kserve_s_model_name_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    [model] = read(tmp_path, "model_name: y\nmodels: [{model_dir: x}]", {"model_name": "m"}).models
    assert model.name == "x"
    assert [record.getMessage() for record in caplog.records] == [
        "model_name in the command line has no effect: models_file names the models",
        f"model_name in {tmp_path}/models.yaml:1 has no effect: each model has its own name",
    ]


# Variables


def test_variables_are_replaced_in_values(tmp_path: Path) -> None:
    text = """
    api_key: ${KEY}
    models:
    - model_dir: "${ROOT}/${NAME}"
      name: ${NAME}
      version: ${VERSION}
      load: ${LOAD}
      dtype: ${EMPTY}
      targets: [a, "${NAME}"]
      hf_overrides: {"${NAME}": "${NAME}"}
      hypothesis_template: "It costs $1 {} ${{ x }}."
    """
    environment = {"KEY": "a,b", "ROOT": "/models", "NAME": "x, dtype: half", "VERSION": "7", "LOAD": "no", "EMPTY": ""}
    configuration = read(tmp_path, text, environment=environment)
    [model] = configuration.models
    assert configuration.arguments.api_key == digest_keys("a,b")
    assert (model.name, model.version, model.load) == ("x, dtype: half", "7", False)
    assert (model.arguments.model_dir, model.arguments.dtype) == ("/models/x, dtype: half", None)
    assert model.arguments.targets == ("a", "x, dtype: half")
    assert model.arguments.engine["hf_overrides"].value == '{"${NAME}": "x, dtype: half"}'
    assert model.arguments.hypothesis_template == "It costs $1 {} ${{ x }}."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("api_key: a${KEY}\nmodels: [{model_dir: x}]", "models.yaml:1: argument api_key has ${KEY}, but the environment has no KEY"),
        ("models:\n- model_dir: x\n  task: ${TASK}", "models.yaml:3: argument task of model 'x' has ${TASK}, but the environment has no TASK"),
        ("models:\n- model_dir: ${DIR}", "models.yaml:2: argument model_dir of model 1 has ${DIR}, but the environment has no DIR"),
        ("models:\n- model_dir: x\n  a: 1\n  hf_overrides: {a: ['${X:-1}']}", "models.yaml:3: unknown argument 'a' of model 'x'; --help lists all arguments"),
        ("models:\n- model_dir: x\n  hf_overrides:\n    a: ['${X:-1}']", "models.yaml:3: argument hf_overrides of model 'x' has ${X:-1}: only ${VARIABLE} is replaced"),
    ],
)  # fmt: skip
def test_variables_that_cannot_be_replaced(text: str, message: str, tmp_path: Path) -> None:
    assert refuse(tmp_path, text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:\n- model_dir: x\n  dtype: ${S}", "models.yaml:3: argument dtype of model 'x' is '${S}': Input should be 'auto', "),
        ("models:\n- model_dir: x\n  dtype: a-${S}", "models.yaml:3: argument dtype of model 'x' is 'a-${S}': Input should be"),
        ("models:\n- model_dir: x\n  load: ${S}", "models.yaml:3: argument load of model 'x' is '${S}': it must be true, "),
        ("models:\n- model_dir: x\n  version: ${S} 1", "models.yaml:3: argument version of model 'x' is '${S} 1': it must have only letters, "),
        ("models:\n- model_dir: x\n  targets: [a, {b: \"${S}\"}]", "models.yaml:3: argument targets of model 'x' is ['a', {'b': '${S}'}]: "),
        ("models:\n- model_dir: x\n  predictor_host: http://${S}", "models.yaml:3: argument predictor_host of model 'x' is 'http://${S}': it must be host:port, "),
        ("workers: ${S}\nmodels: [{model_dir: x}]", "models.yaml:1: argument workers is '${S}': Input should be a valid integer, "),
    ],
)  # fmt: skip
def test_what_a_variable_contains_is_not_in_errors(text: str, message: str, tmp_path: Path) -> None:
    refusal = refuse(tmp_path, text, environment={"S": "a secret"})
    assert refusal.startswith(message)
    assert "a secret" not in refusal


# Errors


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:\n- name: ner\n  model_dir: x\n  tsak: x", "models.yaml:4: unknown argument 'tsak' of model 'ner': did you mean task?"),
        ("models:\n- model_dir: x\n  vesion: 2", "models.yaml:3: unknown argument 'vesion' of model 'x': did you mean version?"),
        ("dtpe: half\nmodels: [{model_dir: x}]", "models.yaml:1: unknown argument 'dtpe': did you mean dtype?"),
        ("model: []", "models.yaml:1: model cannot be at the top of the file: it is for one model: set it in an item of models"),
        ("tsak:\nmodels: [{model_dir: x}]", "models.yaml:1: unknown argument 'tsak': did you mean task?"),
        ('"a\\nb": ${X}', "models.yaml:1: unknown argument 'a\\nb'; --help lists all arguments"),
        ("models:\n- model_dir: [a]\n  name: ner", "models.yaml:2: argument model_dir of model 'ner' is ['a']: Input should be a valid string"),
        ("modls: []", "models.yaml:1: unknown argument 'modls': did you mean models?"),
        ("models:\n- model_dir: ner\n  dtype: flaot16", "models.yaml:3: argument dtype of model 'ner' is 'flaot16': Input should be 'auto', "),
        ("models:\n- model_dir: ner\n  max_length: 0", "models.yaml:3: argument max_length of model 'ner' is 0: Input should be greater "),
        ("models:\n- model_dir: ner\n  load: maybe", "models.yaml:3: argument load of model 'ner' is 'maybe': it must be true, yes, on"),
        ("models:\n- model_dir: ner\n  version: 1/2", "models.yaml:3: argument version of model 'ner' is '1/2': it must have only letters, digits, "),
        ("models:\n- model_dir: ner\n  version: true", "models.yaml:3: argument version of model 'ner' is True: Input should be a valid string"),
        ("models:\n- model_dir: ner\n  name: [a]", "models.yaml:3: argument model_name of model 1 is ['a']: Input should be a valid string"),
        ("dtype: flaot16\nmodels: [{model_dir: x}]", "models.yaml:1: argument dtype is 'flaot16': Input should be 'auto', "),
        ("models:\n- {model_dir: x, return_probabilities: 1, return_raw_logits: 1}", "models.yaml:2: model 'x': return_probabilities and return_raw_logits exclude"),
        ("gpu: 0\ngpu_type: t4\nmodels: [{model_dir: x}]", "models.yaml: gpu_type says which GPU, but gpu is 0"),
        ("models:\n- model_dir: x\n\n  tp: 0.5", "argument tensor_parallel_size (from models.yaml:4) is '0.5': it must be 1 or more"),
        ("models:\n- task: fill_mask", "models.yaml:2: model 1 has neither model_id nor model_dir: set one of them"),
        ("models:\n- name: ner", "models.yaml:2: model 'ner' has neither model_id nor model_dir: set one of them"),
        ("models:\n- model_dir: s3://", "models.yaml:2: model 1 needs a name"),
        ("models:\n- model_dir: x\n  name: a\n  model_name: b", "models.yaml:4: argument model_name of model 'b' is given twice, also in models.yaml:3"),
        ("models:\n- model_dir: x\n  max_length: 1\n  max-model-len: 1", "models.yaml:4: argument max_length of model 'x' is given twice, also in models.yaml:3"),
        ("max_length: 1\nmax-model-len: 1\nmodels: [{model_dir: x}]", "models.yaml:2: max_length is given twice, also in models.yaml:1"),
        ("models:\n- model_dir: x\n- model_dir: y/x", "models.yaml:3: version '1' of model 'x' is declared twice, also in models.yaml:2"),
        ("models:\n- {model_dir: x, served_model_name: x z}\n- {model_dir: y, served_model_name: y z}", "models.yaml:3: version '1' of model 'z' is declared twice, also in models.yaml:2"),
        ("models: [{model_dir: x}, {model_dir: x}]", "models.yaml:1: version '1' of model 'x' is declared twice, also in models.yaml:1"),
        ("", "models.yaml:1: the file has no list `models`"),
        ("dtype: half", "models.yaml:1: the file has no list `models`"),
        ("\nmodels: []", "models.yaml:2: `models` must have at least one model"),
        ("\nmodels:", "models.yaml:2: `models` must be a list"),
        ("models: {a: b}", "models.yaml:1: `models` must be a list"),
        ("models:\n- a\n", "models.yaml:2: item 1 of `models` must be a mapping of arguments to values"),
        ("- a", "models.yaml:1: the top of the file must be a mapping of names to values"),
        ("\nmodels_file: x\nmodels: []", "models.yaml:2: models_file cannot be at the top of the file: a models file cannot name another"),
        ("model_repository: x", "models.yaml:1: model_repository cannot be at the top of the file: a models file excludes a repository"),
        ("models:\n- model_dir: x\n  models_file: y", "models.yaml:3: argument models_file of model 'x' is for the whole server: set it "),
        ("models:\n- model_dir: x\n  port: 80", "models.yaml:3: argument port of model 'x' is for the whole server: set it on the command line of launch.py"),
        # The file itself
        ("models: [\n- a", "models.yaml:2: not valid YAML: "),
        ("models: 'a\n\n\nb", "models.yaml:1: not valid YAML: found unexpected end of stream"),
        ("a: 1\nb: *secret", "models.yaml:2: anchors (&) and aliases (*) are not supported"),
        ("a: 1\nb: &secret 1", "models.yaml:2: anchors (&) and aliases (*) are not supported"),
        ("api_key: !secret!key x", "models.yaml:1: not valid YAML: found undefined tag handle"),
        ("a: !secret x", "models.yaml:1: tags (!) other than those of text, numbers and booleans are not supported"),
        ("a: !!int x", "models.yaml:1: not valid YAML: a value is not of its type, int"),
        ("a: 1\na: 2", "models.yaml:2: 'a' is given twice, also in line 1"),
        ("models:\n- x: {b: 1, c: 1,\n   b: 2}", "models.yaml:3: 'b' is given twice, also in line 2"),
        ("? [a]\n: b", "models.yaml:1: a name must be text"),
        ("a: 1\n---\nb: 2", "models.yaml:2: not valid YAML: but found another document"),
        ("a:\n" + "[" * 50, "models.yaml:2: more than 32 lists and mappings in each other"),
        ("a: 1\nb: \0", "models.yaml:2: not valid YAML: special characters are not allowed"),
        (b"a: 1\nb: \xff", "models.yaml:2: the file is not UTF-8"),
        ("a" * (MAX_BYTES + 1), "models.yaml is larger than 1 MiB"),
    ],
)  # fmt: skip
def test_errors_are_one_line_with_the_place(text: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError) as error:
        _ = read(tmp_path, text).parallel_size
    shown = str(error.value).replace(f"{tmp_path}/", "")
    assert shown.startswith(message)
    assert "\n" not in shown


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.json", '{"models": [\n{"model_dir": "x",\n"dtype": "x"}]}', "m.json:3: argument dtype of model 'x' is 'x': "),
        ("m.json", '{"models": [\n{"model_dir": "x",\n}]}', "m.json:3: not valid JSON: Expecting property name enclosed in double quotes"),
        ("m.json", '{"a": 1,\n\n"a": 2}', "m.json:3: 'a' is given twice, also in line 1"),
        ("m.json", '{\n"a": NaN}', "m.json:2: not valid JSON: NaN is no number"),
        ("m.json", '{\n"a": ' + "9" * 5000 + "}", "m.json:2: not valid JSON: Exceeds the limit"),
        ("m.json", "\n" + "[" * 40 + "]" * 40, "m.json:2: more than 32 lists and mappings in each other"),
        ("m.json", "[" * 100_000 + "]" * 100_000, "m.json:1: more than 32 lists and mappings in each other"),
        ("m.json", "[]", "m.json:1: the top of the file must be a mapping of names to values"),
        ("m.toml", '[[models]]\nmodel_dir = "x"\n\ndtype = "x"', "m.toml:4: argument dtype of model 'x' is 'x': "),
        ("m.toml", 'models = [\n{model_dir = "x"},\n\n{model_dir = "y", tsak = 1}]', "m.toml:4: unknown argument 'tsak' of model 'y': did you mean task?"),
        ("m.toml", 'x = """\n[[models]]\n"""\n', "m.toml:1: unknown argument 'x'"),
        ("m.toml", '"dtype" = "x" # y = [\n[[models]]\nmodel_dir = "x"', "m.toml:1: argument dtype is 'x': "),
        ("m.toml", "a = 1\nb = \n", "m.toml:2: not valid TOML: Invalid value"),
        ("m.toml", "a = 1\na = 2\n", "m.toml:2: not valid TOML: Cannot overwrite a value"),
        ("m.toml", "a = [", "m.toml:1: not valid TOML: Invalid value"),
        ("m.toml", "seed = 2026-01-01\n", "m.toml:1: argument seed is a date: write it in quotes"),
        ("m.toml", "seed = " + "[" * 50 + "]" * 50, "m.toml:1: argument seed has more than 32 lists and mappings in each other"),
        ("m.toml", "[seed" + ".a" * 3000 + "]", "m.toml:1: argument seed has more than 32 lists and mappings in each other"),
        ("m.ini", "", "m.ini has an unknown suffix: it must be .yaml (or .yml), .json or .toml"),
        ("models", "", "models has an unknown suffix: it must be .yaml (or .yml), .json or .toml"),
    ],
)  # fmt: skip
def test_errors_in_other_formats(name: str, text: str, message: str, tmp_path: Path) -> None:
    assert refuse(tmp_path, text, name).startswith(message)


@pytest.mark.parametrize(
    ("make", "reason"),
    [(lambda path: None, "No such file or directory"), (lambda path: path.mkdir(), "Is a directory")],
)
def test_a_file_that_cannot_be_read(make: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    make(path)
    with pytest.raises(ArgumentsError) as error:
        read_configuration({"models_file": str(path)}, {}, {})
    assert str(error.value) == f"{path} cannot be read: {reason}"


@pytest.mark.parametrize("name", sorted({*SERVER_NAMES, *LaunchArguments.model_fields} - {"max_batch_tokens"}))
def test_the_server_s_arguments_are_not_for_one_model(name: str, tmp_path: Path) -> None:
    message = refuse(tmp_path, f"models:\n- model_dir: x\n  {name}: secret-value")
    assert message.startswith(f"models.yaml:3: argument {name} of model 'x' is for the whole server: set it ")
    assert "secret-value" not in message


@pytest.mark.parametrize("value", ["{a: secret}", "[secret, 1]", "[[secret]]", "secret\nb: }"])
@pytest.mark.parametrize("name", ["api_key", "admin_api_key"])
def test_keys_are_never_shown(name: str, value: str, tmp_path: Path) -> None:
    assert "secret" not in refuse(tmp_path, f"{name}: {value}\nmodels: [{{model_dir: x, dtype: y}}]")


def test_lists_of_keys(tmp_path: Path) -> None:
    assert read(tmp_path, "api_key: a,b\nmodels: [{model_dir: x}]").arguments.api_key == digest_keys("a,b")


# Properties

# Without digits: PyYAML writes the text 1e5 as YAML 1.1 does, without quotes.
TEXT = st.text(
    st.characters(exclude_categories=["C", "N", "Z"], exclude_characters="$\ufeff") | st.just(" "),
    min_size=1,
    max_size=12,
)
NAMES = st.from_regex(r"[A-Za-z0-9 .:_#-]{1,12}", fullmatch=True)
SCALARS = TEXT | st.booleans() | st.integers(-(2**40), 2**40) | st.sampled_from([0.5, -1.25, 100.125])
JSONS = st.recursive(
    SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(NAMES, each, max_size=3), max_leaves=6
)
MODEL = st.fixed_dictionaries(
    {"model_dir": NAMES.map(lambda name: f"/{name}"), "version": st.from_regex(r"[A-Za-z0-9._-]{1,8}", fullmatch=True) | st.integers(0, 99)},
    optional={
        "load": st.booleans(), "task": st.sampled_from(["fill-mask", "text_embedding"]), "max-model-len": st.integers(1, 999),
        "return_probabilities": st.booleans(), "targets": st.lists(TEXT, min_size=1, max_size=3), "seed": st.integers(0, 9),
        "hf_overrides": st.dictionaries(NAMES, JSONS, max_size=3), "lora_modules": st.lists(TEXT, min_size=1, max_size=2),
        "predictor_request_timeout_seconds": st.sampled_from([0.5, 3, 2.25]), "threshold": st.just(0.125),
    },
)  # fmt: skip
FILES = st.fixed_dictionaries(
    {"models": st.lists(MODEL, min_size=1, max_size=4, unique_by=lambda model: str(model["model_dir"]))},
    optional={"dtype": st.just("half"), "api_key": st.just("a,b"), "max-queue-tokens": st.integers(1, 10**9)},
)


def write_toml(value: Any) -> str:
    """Inline TOML of a value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {write_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def write_toml_file(content: dict[str, Any]) -> str:
    lines = [f"{key} = {write_toml(value)}" for key, value in content.items() if key != "models"]
    for model in content["models"]:
        lines += ["[[models]]", *(f"{json.dumps(key)} = {write_toml(value)}" for key, value in model.items())]
    return "\n".join(lines)


def describe(configuration: Configuration) -> Any:
    """All but the lines."""
    return configuration.arguments.model_dump(exclude={"models_file"}), [
        (
            model.name, model.version, model.load, model.arguments.model_dump(exclude={"models_file"}),
            {name: argument.value for name, argument in model.arguments.engine.items()},
        )
        for model in configuration.models
    ]  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(FILES)
def test_all_formats_declare_the_same(tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    texts = {
        "yaml": yaml.safe_dump(content, allow_unicode=True, sort_keys=False),
        "json": json.dumps(content, indent=1),
        "toml": write_toml_file(content),
    }
    configurations = [read(folder, text, name=f"models.{suffix}") for suffix, text in texts.items()]
    assert describe(configurations[0]) == describe(configurations[1]) == describe(configurations[2])
    for text, configuration in zip(texts.values(), configurations, strict=True):
        for model in configuration.models:
            for name, argument in model.arguments.engine.items():
                assert name in text.splitlines()[int(argument.origin.rpartition(":")[2]) - 1]


TOKENS = [
    *"[]{}:-\"'#&*!|>%@`,\n\t=?<~.0\\", "  ", "- ", ": ", "[[", "]]", "\0", "\ud800", "\u2028", "${A}", "${", '"""', "'''",
    "1e999", "---", "!!binary ", "!!timestamp x", "NaN", "null", "2026-01-01", "models", "\\u12", "\r",
]  # fmt: skip


@settings(deadline=None, max_examples=int(os.environ.get("FILE_EXAMPLES", "300")))
@given(st.sampled_from(["yaml", "json", "toml"]), st.data())
def test_no_malformed_file_raises_another_error(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject
) -> None:
    text = {"yaml": YAML, "json": JSON, "toml": TOML}[suffix]
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = start + data.draw(st.sampled_from([0, 0, 1, 4, 30]))
        text = text[:start] + data.draw(st.sampled_from(TOKENS) | st.text(max_size=3)) + text[end:]
    path = tmp_path_factory.getbasetemp() / f"broken.{suffix}"
    # Any other error fails the test.
    with contextlib.suppress(ArgumentsError):
        read(path.parent, text.encode(errors="surrogatepass"), name=path.name)
        return
    assert re.fullmatch(rf"{path}:[1-9]\d*: .+", refuse_path(path))


def refuse_path(path: Path) -> str:
    with pytest.raises(ArgumentsError) as error:
        read_configuration({"models_file": str(path)}, {}, {})
    return str(error.value)
