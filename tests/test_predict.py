"""`predict` in processes of its own: what it prints, writes and says, and that it goes on after a break."""

from __future__ import annotations

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from predict import make_portable
from runners.core.arguments import Arguments
from runners.core.declarations import Configuration, ModelDeclaration
from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.servers import ROOT
from tests.v1 import predict as ask_v1

pytestmark = pytest.mark.slow
COMMAND = (sys.executable, "launch.py", "predict")


@pytest.fixture(scope="module")
def folder(model_folder: ModelFolder) -> Path:
    return model_folder("bert", "fill_mask")


@pytest.fixture(scope="module")
def large(model_folder: ModelFolder) -> Path:
    """A model that takes some seconds for a thousand texts."""
    return model_folder("bert", "text_embedding", hidden_size=256, num_hidden_layers=8, intermediate_size=1024)


def run(*words: str, given: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [*COMMAND, *words], cwd=ROOT, env=os.environ | environment, input=given, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def answers(done: subprocess.CompletedProcess[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def write_rows(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(texts)))


def test_texts_of_the_command_line(folder: Path, serve: Serve) -> None:
    texts = ["the [MASK] film", "a [MASK]"]
    done = run(f"--model_dir={folder}", '--parameters={"top_k": 2}', texts[0], "--log_level", "error", "--", texts[1])
    assert (done.returncode, done.stderr) == (0, b"")
    expected = ask_v1(serve(model_dir=folder).client, texts, top_k=2)
    assert answers(done) == [
        {"text": text, "prediction": prediction} for text, prediction in zip(texts, expected, strict=True)
    ]


def test_a_flag_takes_no_text(folder: Path) -> None:
    done = run("--model_dir", str(folder), "--return_probabilities", "a [MASK]")
    assert done.returncode == 0
    assert answers(done)[0]["prediction"][0][0] == {"0": answers(done)[0]["prediction"][0][0]["0"]}


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (b"a [MASK]\r\n\r\n{} [MASK]\n", ["a [MASK]", "{} [MASK]"]),
        (
            b'\xef\xbb\xbf\n{"text": "a [MASK]"}\n"b [MASK]"\n["c [MASK]", "d"]',
            ["a [MASK]", "b [MASK]", ["c [MASK]", "d"]],
        ),
        (b"", []),
    ],
)
def test_the_standard_input(given: bytes, texts: list[Any], folder: Path) -> None:
    done = run(f"--model_dir={folder}", given=given)
    assert done.returncode == 0, done.stderr
    assert [row["text"] for row in answers(done)] == texts
    assert all("prediction" in row for row in answers(done))


def test_a_stream_is_answered_as_it_comes(folder: Path) -> None:
    command = [*COMMAND, f"--model_dir={folder}", "--input=-"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("a [MASK]", "b [MASK]"):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text
        process.stdin.close()
        assert process.wait() == 0


def test_rows_with_errors(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"text": "a [MASK]"}\n{"text": "no mask"}\n{\n{"text": 5}\n{"text": "b [MASK]"}\n')
    done = run(f"--model_dir={folder}", f"--input={path}")
    assert done.returncode == 1
    assert ["error" in row for row in answers(done)] == [False, True, True, True, False]
    assert answers(done)[1]["error"] == "it has no mask: write [MASK] where a word is to be filled in"
    assert done.stderr.endswith(b"3 rows have an error instead of a prediction\n")


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_a_file(ending: str, folder: Path, tmp_path: Path, serve: Serve) -> None:
    texts = [f"the [MASK] {number}" for number in range(2100)]
    write_rows(tmp_path / "in.jsonl", [*texts, "no mask"])
    target = tmp_path / f"out.{ending}"
    done = run(f"--model_dir={folder}", "--input", str(tmp_path / "in.jsonl"), "--output", str(target), "--top_k=2")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"1 row has an error instead of a prediction" in done.stderr
    if ending == "parquet":
        rows = pq.read_table(target).to_pylist()
    elif ending == "csv":
        with target.open(newline="") as file:
            rows = [row | {"prediction": json.loads(row["prediction"] or "null")} for row in csv.DictReader(file)]
    else:
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    assert [int(row["id"]) for row in rows] == [*range(2101)]
    expected = ask_v1(serve(model_dir=folder, top_k=2).client, texts)
    for row, prediction in zip(rows, expected, strict=False):
        [records], [ones] = row["prediction"], prediction
        assert records == [one | {"score": pytest.approx(one["score"])} for one in ones]
    assert rows[2100]["error"]
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted(["in.jsonl", target.name])


def test_a_stream_to_a_file(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.parquet"
    done = run(
        f"--model_dir={folder}", f"--output={target}", given=b"".join(b"%d [MASK]\n" % each for each in range(700))
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert pq.read_table(target)["text"].to_pylist() == [f"{number} [MASK]" for number in range(700)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_it_goes_on_after_it_was_killed(large: Path, tmp_path: Path) -> None:
    path, target, folder = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    write_rows(path, ["some words of a text " * 4] * 7_000)
    # An error of a process that is killed counts at the end.
    path.write_text(path.read_text().replace('"some words', '5, "old": "', 1))
    command = [*COMMAND, f"--model_dir={large}", f"--input={path}", f"--output={target}"]
    kept: dict[Path, int] = {}
    for wanted in (1, 3):
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
            while len(done := set(folder.glob("0*.json"))) < wanted:
                assert process.poll() is None, "it has ended before it was killed"
                time.sleep(0.01)
            process.kill()
        # A part that is done is not answered again.
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert not target.exists()
        kept = {path: path.stat().st_mtime_ns for path in done}
    # Another one is refused meanwhile, and says why.
    other = run(f"--model_dir={large}", f"--input={path}", f"--output={target}", "--normalize=true")
    assert other.returncode == 1
    assert b"has parts of another job: normalize was null, is true. Set them as they were" in other.stderr
    last = run(*command[3:])
    assert last.returncode == 1
    assert b"7000 rows, " in last.stderr
    assert last.stderr.endswith(b"1 row has an error instead of a prediction\n")
    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == [*range(7_000)]
    assert not folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(number: signal.Signals, large: Path, tmp_path: Path) -> None:
    path, target, folder = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.parts"
    write_rows(path, ["some words of a text " * 4] * 12_000)
    command = [*COMMAND, f"--model_dir={large}", f"--input={path}", f"--output={target}"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        while not list(folder.glob("0*.json")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert f"{number.name} has ended the work; the same command goes on where it has ended".encode() in said
    assert b"Traceback" not in said
    assert list(folder.glob("0*.json"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_model_loads(number: signal.Signals, large: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ["a text"])
    command = [*COMMAND, f"--model_dir={large}", f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        while not (tmp_path / "out.jsonl.parts/job.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert b"Traceback" not in said
    assert b"goes on" not in said


def test_keys_and_relative_folders_go_to_no_other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments = Arguments(model_dir="bert", api_key="secret", admin_api_key="secret")
    portable = make_portable(Configuration(arguments, (ModelDeclaration(arguments),)))
    for each in (portable.arguments, *(model.arguments for model in portable.models)):
        assert (each.api_key, each.admin_api_key) == (None, None)
    assert [model.arguments.model_dir for model in portable.models] == [str(tmp_path / "bert")]


def test_a_reader_that_wants_no_more(large: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ["some words of a text " * 4] * 12_000)
    command = [*COMMAND, f"--model_dir={large}", f"--input={tmp_path / 'in.jsonl'}", "--log_level=error"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == 0
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (128 + signal.SIGPIPE, b"")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--input=/none.jsonl"], "/none.jsonl: No such file or directory"),
        (["--input=/none.jsonl", "--output=/tmp/out.jsonl"], "/none.jsonl: No such file or directory"),
        (["--input=a.json"], "--input=a.json: its name must end with .jsonl, .ndjson, .csv, .txt, .parquet, or be - for a stream"),
        (["--input=README.md"], "--input=README.md: its name must end with"),
        (["a", "--output=out.txt"], "--output=out.txt: its name must end with .jsonl, .ndjson, .csv, .parquet, or be - for a stream"),
        (["a", "--input=b.txt"], "texts on the command line and --input exclude each other"),
        (["a", "--parameters={top_k: 3}"], "argument parameters (from the command line) is '{top_k: 3}': it must be a JSON object"),
        (["a", '--parameters={"top_k": 0}'], "the parameter top_k is wrong: Input should be greater than or equal to 1"),
        (["a", "--modle_dir=b"], "unknown argument 'modle_dir' in the command line: did you mean model_dir?"),
        (["a", "--input"], "the command line is wrong: argument --input: expected one argument"),
        (["a", "--model_dir=/nowhere"], "there is no folder /nowhere: set --model_id to a hub id or a folder"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_line(words: list[str], error: str, folder: Path) -> None:
    done = run(f"--model_dir={folder}", *words)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.decode().splitlines()[-1].startswith(f"error: {error}")


def test_a_terminal_without_texts(folder: Path) -> None:
    """Nobody waits for texts that a person does not know to type."""
    terminal, end = pty.openpty()
    command = [*COMMAND, f"--model_dir={folder}"]
    done = subprocess.run(command, cwd=ROOT, stdin=end, capture_output=True, text=True, check=False)
    os.close(terminal)
    os.close(end)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there are no texts: predict --model_id=... ")


def test_a_bar_on_a_terminal(folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "in.jsonl", ["a [MASK]"] * 3)
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 80))
    command = [
        *COMMAND,
        f"--model_dir={folder}",
        f"--input={tmp_path / 'in.jsonl'}",
        f"--output={tmp_path / 'out.csv'}",
    ]
    subprocess.run(command, cwd=ROOT, stderr=end, check=True)
    os.close(end)
    said = b""
    # Linux reports the end of a terminal as an error.
    try:
        while chunk := os.read(terminal, 4096):
            said += chunk
    except OSError:
        os.close(terminal)
    assert b"3/3 [" in said


def test_one_of_several_models(folder: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    embedder = model_folder("bert", "text_embedding")
    file.write_text(
        f"models:\n  - {{name: masks, model_dir: {folder}}}\n  - {{name: vectors, model_dir: {embedder}, load: false}}\n"
    )
    done = run(f"--models_file={file}", "a")
    assert done.returncode == 1
    assert done.stderr == b"error: there are several models: set --model_name to one of masks, vectors\n"
    done = run(f"--models_file={file}", "--model_name=mask", "a")
    assert done.stderr == b"error: there is no model mask: set --model_name to one of masks, vectors\n"
    done = run(f"--models_file={file}", "--model_name=vectors", "a")
    assert done.returncode == 0
    assert len(answers(done)[0]["prediction"]) == 32


def test_the_environment(folder: Path) -> None:
    done = run("a [MASK]", RUNTIME_MODEL_DIR=str(folder), RUNTIME_TOP_K="1", RUNTIME_LOG_FORMAT="json")
    assert len(answers(done)[0]["prediction"][0]) == 1
    assert json.loads(done.stderr.splitlines()[-1])["message"].startswith("1 row in ")


@pytest.mark.parametrize("word", ["--check", "--help", "-h", "--version", "doctor"])
def test_after_two_dashes_there_are_texts(word: str, folder: Path) -> None:
    done = run(f"--model_dir={folder}", "--", f"{word} [MASK]", word)
    assert [row["text"] for row in answers(done)] == [f"{word} [MASK]", word]


@pytest.mark.parametrize(
    ("closed", "words", "rows"),
    [
        ("<&-", "", 0),
        ("<&-", "'a [MASK]'", 1),
        ("2>&-", "'a [MASK]'", 1),
    ],
)
def test_a_standard_stream_is_closed(closed: str, words: str, rows: int, folder: Path) -> None:
    command = f"{' '.join(COMMAND)} --model_dir={folder} {words} {closed}"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert ["prediction" in row for row in answers(done)] == [True] * rows


def test_the_standard_output_is_closed(folder: Path, tmp_path: Path) -> None:
    """Nobody would get the answers."""
    command = f"{' '.join(COMMAND)} --model_dir={folder} 'a [MASK]'"
    done = subprocess.run(["sh", "-c", f"{command} >&-"], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: the standard output is closed: leave it open, or set --output=FILE\n"
    subprocess.run(["sh", "-c", f"{command} --output={tmp_path}/out.jsonl >&-"], cwd=ROOT, check=True)
    assert "prediction" in json.loads((tmp_path / "out.jsonl").read_text())


def test_a_standard_output_that_does_not_block(folder: Path) -> None:
    """As a terminal that another program has changed: the command waits until there is room."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    command = [*COMMAND, f"--model_dir={folder}", "--return_probabilities"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=writer) as process:
        os.close(writer)
        assert process.stdin is not None
        process.stdin.write(b"a [MASK]\n" * 300)
        process.stdin.close()
        with open(reader, "rb") as output:
            # More than a pipe takes at once.
            time.sleep(1)
            rows = [json.loads(line) for line in output]
        assert process.wait() == 0
    assert ["prediction" in row for row in rows] == [True] * 300


def test_a_full_disk_is_named(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, f"--model_dir={folder}", "a [MASK]"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "error: the standard output: No space left on device"


def test_a_stream_of_json_lines_whose_first_row_is_wrong(folder: Path) -> None:
    for given, error in (
        (b'{"body": "a [MASK]"}\n', b"there is no column text"),
        (b"\n[\n", b"line 2 is not JSON"),
    ):
        done = run(f"--model_dir={folder}", given=given + b'{"text": "a [MASK]"}\n')
        assert (done.returncode, done.stdout) == (1, b"")
        assert error in done.stderr


def test_a_generator(generator_folder: GeneratorFolder) -> None:
    greedy = '--parameters={"max_tokens": 3, "temperature": 0}'
    done = run(f"--model_dir={generator_folder('llama')}", "--backend=huggingface", greedy, "it", "the film")
    assert done.returncode == 0
    assert [list(row) for row in answers(done)] == [["text", "prediction"]] * 2
    wrong = '--parameters={"max_tokens": 3, "structured_outputs": {"regex": "(("}}'
    done = run(f"--model_dir={generator_folder('llama')}", "--backend=huggingface", wrong, "it", "the film")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"error: the parameter structured_outputs is wrong: the regex cannot be used: " in done.stderr


def test_help_shows_its_own_arguments_first() -> None:
    done = run("--help")
    assert done.stdout.startswith(b"usage: python launch.py predict ")
    first = done.stdout.decode().partition("Predictions, of predict only")[2].splitlines()[1:]
    assert first[0].strip().startswith("--input VALUE")
