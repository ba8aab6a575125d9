from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runners.core.argument_sources import read_configuration
from runners.core.declarations import Configuration
from runners.core.errors import ArgumentsError
from runners.core.file_values import FileValues, read_file
from runners.core.model_repository import find_declarations, find_in_repository


def make(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folder.mkdir(exist_ok=True)
    return folder


def read(folder: Path, **command_line: object) -> Configuration:
    return read_configuration({"model_repository": str(folder), **command_line}, {"HOME": "/root"}, {})


def name_all(models: Any) -> list[tuple[str, str]]:
    return [(model.name, model.version) for model in models]


@pytest.mark.parametrize(
    ("files", "models"),
    [
        ({}, []),
        ({"b/config.json": "{}", "a/config.json": "{}", "a/1_Pooling/config.json": "{}"}, [("a", "1"), ("b", "1")]),
        ({"ner/1/config.json": "", "ner/10/config.json": "", "ner/2/config.json": ""}, [("ner", "1"), ("ner", "2"), ("ner", "10")]),
        ({"ner/1/config.json": "", "ner/02/config.json": "", "ner/v3/config.json": "", "ner/4/x": ""}, [("ner", "1")]),
        ({"ner/config.json": "", "ner/2/config.json": ""}, [("ner", "1")]),
        ({"ner/model.yaml": "version: 7\nload: false"}, [("ner", "7")]),
        ({"ner/model.yaml": "dtype: half", "ner/3/config.json": ""}, [("ner", "3")]),
        ({"ner/model.yaml": "model_id: owner/other", "ner/3/config.json": ""}, [("ner", "1")]),
        ({"ner/model.yaml": ""}, [("ner", "1")]),
        ({"ner/model.yaml": "name: ner"}, [("ner", "1")]),
        ({".git/config.json": "", "file": "", "config.json": "", "a b/config.json": ""}, [("a b", "1")]),
    ],
)  # fmt: skip
def test_the_models_of_a_repository(files: dict[str, str], models: list[tuple[str, str]], tmp_path: Path) -> None:
    configuration = read(make(tmp_path / "models", files))
    assert name_all(configuration.models) == models
    assert configuration.repository == tmp_path / "models"
    find = find_declarations(configuration)
    assert find is not None
    assert find(None) == [*configuration.models]
    for name in {name for name, _ in models}:
        assert find(name) == [each for each in configuration.models if each.name == name]


def test_the_arguments_of_a_model(tmp_path: Path) -> None:
    files = {
        "plain/config.json": "{}",
        "ner/model.yaml": "task: token-classification\ndtype: half\nload: no\nmodel_dir: weights\nseed: 2\nprompt_name: ${HOME}",
        "bert/2/config.json": "{}",
        "bert/model.yaml": "labels: true",
    }
    folder = make(tmp_path, files)
    bert, ner, plain = read(folder, dtype="bfloat16", workers=3, seed=1).models
    assert (ner.load, ner.arguments.task, ner.arguments.dtype) == (False, "token_classification", "half")
    assert (ner.arguments.model_dir, ner.origin) == (str(folder / "ner" / "weights"), f"{folder}/ner/model.yaml:1")
    assert (ner.arguments.engine["seed"].value, plain.arguments.engine["seed"].value) == ("2", "1")
    assert ner.arguments.prompt_name == "/root"
    assert (plain.load, plain.arguments.dtype, plain.arguments.model_dir) == (True, "bfloat16", str(folder / "plain"))
    assert plain.origin == str(folder / "plain")
    assert (bert.arguments.labels, bert.arguments.model_dir) == (True, str(folder / "bert" / "2"))
    assert {each.arguments.workers for each in (bert, ner, plain)} == {3}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"ner/model.yaml": "name: other"}, "ner/model.yaml:1: argument name of model 'ner' is 'other': a model in a repository has the name of its folder"),
        ({"ner/model.yaml": "\ntsak: x"}, "ner/model.yaml:2: unknown argument 'tsak' of model 'ner': did you mean task?"),
        ({"ner/model.yaml": "dtype: x"}, "ner/model.yaml:1: argument dtype of model 'ner' is 'x': Input should be"),
        ({"ner/model.yaml": "models: []"}, "ner/model.yaml:1: unknown argument 'models' of model 'ner'"),
        ({"ner/model.yaml": "a: ["}, "ner/model.yaml:1: not valid YAML: "),
        ({"ner/model.yaml": "- a"}, "ner/model.yaml:1: the top of the file must be a mapping of names to values"),
        ({"ner/model.yaml": "workers: 2"}, "ner/model.yaml:1: argument workers of model 'ner' is for the whole server: set it "),
        ({"ner/model.yaml": "model_repository: /x"}, "ner/model.yaml:1: argument model_repository of model 'ner' is for the whole server"),
        ({"ner/model.yaml": "version: 2", "ner/1/config.json": "", "ner/3/config.json": ""},
         "ner/model.yaml:1: model 'ner' has a version, but its folders 1, 3 are its versions: leave the version out"),
    ],
)  # fmt: skip
def test_a_wrong_model_yaml(files: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentsError) as error:
        read(make(tmp_path, files))
    assert str(error.value).removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize(
    ("command_line", "message"),
    [
        ({"model_repository": "/missing"}, "argument model_repository (from the command line) is '/missing': there is no such folder"),
        ({"model_repository": "s3://user:secret@b/x"}, "argument model_repository (from the command line) is a URI, but it must be a folder"),
        ({"model_repository": "/", "model_id": "x"}, "model_id (from the command line) names one model, but model_repository (from the command line) several: leave out model_id or model_repository"),
        ({"model_repository": "/", "model_dir": "/x"}, "model_dir (from the command line) names one model, but model_repository (from the command line) several: leave out model_dir or model_repository"),
    ],
)  # fmt: skip
def test_wrong_arguments(command_line: dict[str, object], message: str) -> None:
    with pytest.raises(ArgumentsError) as error:
        read_configuration(command_line, {}, {})
    assert str(error.value) == message


def test_a_worker_that_starts_later_skips_a_wrong_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(tmp_path, {"ner/config.json": "{}", "wrong/model.yaml": "tsak: fill_mask"})
    command_line = {"model_repository": str(folder)}
    assert name_all(read_configuration(command_line, {}, {}, skips_wrong=True).models) == [("ner", "1")]
    assert "unknown argument 'tsak' of model 'wrong'" in caplog.text
    with pytest.raises(ArgumentsError):
        read_configuration(command_line, {}, {})


def test_kserve_s_folder_of_models_may_be_the_repository(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, {"ner/config.json": "{}"})
    [model] = read(tmp_path, model_dir=f"{tmp_path}/", model_name="m").models
    assert (model.name, model.arguments.model_dir) == ("ner", str(tmp_path / "ner"))
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} in the command line has no effect: model_repository names the models"
        for name in ("model_name", "model_dir")
    ]


def test_a_folder_without_a_model_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    configuration = read(make(tmp_path, {"notes/readme.md": "", "ner/config.json": ""}))
    find = find_declarations(configuration)
    assert find is not None
    assert name_all(find(None)) == [("ner", "1")]
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}/notes is skipped: it has no config.json, no model.yaml and no versions, such as 1/config.json"
    ]


def test_what_changes_while_the_server_runs_is_found(tmp_path: Path) -> None:
    configuration = read(tmp_path)
    assert configuration.models == ()
    make(tmp_path, {"ner/model.yaml": "dtype: half"})
    configuration = configuration.replace_server_arguments(configuration.arguments.model_copy(update={"workers": 4}))
    [model] = find_in_repository(configuration, "ner")
    assert (model.arguments.dtype, model.arguments.workers, model.load) == ("half", 4, True)
    make(tmp_path, {"ner/model.yaml": "dtype: auto\nload: false"})
    [model] = find_in_repository(configuration, "ner")
    assert (model.arguments.dtype, model.load) == ("auto", False)
    make(tmp_path, {"ner/model.yaml": "dtype: x"})
    with pytest.raises(ArgumentsError, match=r"model\.yaml:1: argument dtype of model 'ner' is 'x'"):
        find_in_repository(configuration, "ner")
    (tmp_path / "ner" / "model.yaml").unlink()
    assert find_in_repository(configuration, "ner") == []


def test_all_models_are_read_again_only_when_their_files_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any client may ask for the list of all again and again."""
    read_files: list[str] = []

    def read_and_note(path: Path, label: str) -> FileValues:
        read_files.append(path.parent.name)
        return read_file(path, label)

    monkeypatch.setattr("runners.core.model_repository.read_file", read_and_note)
    wrong = "{folder}/wrong/model.yaml:1: unknown argument 'tsak' of model 'wrong': did you mean task?"
    without_effect = "{folder}/plain/model.yaml:1 has no effect: every worker runs on uvloop"
    find = find_declarations(read(tmp_path))
    assert find is not None
    files = {f"{name}/model.yaml": "" for name in "abc"}
    make(tmp_path, {**files, "wrong/model.yaml": "tsak: x", "plain/model.yaml": "event_loop: auto"})
    for _ in range(3):
        assert [name for name, _ in name_all(find(None))] == ["a", "b", "c", "plain"]
    assert read_files == ["a", "b", "c", "plain", "wrong"]
    assert [record.getMessage() for record in caplog.records] == [
        f"event_loop in {without_effect.format(folder=tmp_path)}", wrong.format(folder=tmp_path),
    ]  # fmt: skip
    make(tmp_path, {"wrong/model.yaml": "task: fill_mask", "a/2/config.json": ""})
    (tmp_path / "b" / "model.yaml").unlink()
    assert name_all(find(None)) == [("a", "2"), ("c", "1"), ("plain", "1"), ("wrong", "1")]
    assert read_files[5:] == ["a", "wrong"]


@pytest.mark.parametrize(
    "name", ["../outside", "..", ".", "", ".hidden", "ner/../ner", "ner/", "/{folder}/ner", "a\0b", "missing"]
)
def test_no_name_leads_out_of_the_repository(name: str, tmp_path: Path) -> None:
    files = {
        "outside/config.json": "",
        "models/.hidden/config.json": "",
        "models/ner/config.json": "",
        "models/config.json": "",
    }
    configuration = read(make(tmp_path, files) / "models")
    assert find_in_repository(configuration, name.format(folder=tmp_path / "models")) == []


def test_keys_are_not_kept(tmp_path: Path) -> None:
    configuration = read(make(tmp_path, {"ner/config.json": ""}), api_key="secret", dtype="half")
    assert {*configuration.defaults} == {"dtype"}
    assert "secret" not in repr(configuration)
    assert find_in_repository(configuration, "ner")[0].arguments.api_key == configuration.arguments.api_key is not None


def test_without_a_repository_nothing_is_found() -> None:
    configuration = read_configuration({}, {}, {})
    assert find_declarations(configuration) is None
    assert find_in_repository(configuration, "model") == []
