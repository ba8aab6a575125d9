"""The model that `make serve` serves: what of it is in git, what that becomes, and that its card is true."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from demo.sentiment import assemble, data, evaluate
from tests.conftest import Serve
from tests.servers import ROOT

POSITIVE = (
    "I love this.", "A wonderful film.", "The food was excellent.", "Best phone I have ever had!",
    "I am so happy today.", "What a beautiful story, brilliantly told.",
)  # fmt: skip
NEGATIVE = (
    "What a waste of time.", "I hate it.", "The battery died after two days and support was useless.",
    "This is the worst movie of the year.", "I am feeling sad", "Boring from beginning to end.",
)  # fmt: skip


@pytest.fixture(scope="module")
def sentiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sentiment")
    assemble.main(folder)
    return folder


def test_little_of_it_is_in_git_and_all_of_that_is() -> None:
    parts = [path for path in (ROOT / "demo/sentiment").iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in parts) <= 8_000_000
    ignored = subprocess.run(["git", "check-ignore", "--no-index", *parts], cwd=ROOT, capture_output=True, text=True)
    assert (ignored.returncode, ignored.stdout) == (1, "")


def test_it_is_assembled_to_the_same_bytes(sentiment: Path, tmp_path: Path) -> None:
    # Also over a folder that is there.
    for _ in range(2):
        assemble.main(tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
            path.name: path.read_bytes() for path in sentiment.iterdir()
        }


def test_no_weight_is_missing_or_left_over(sentiment: Path) -> None:
    _, report = AutoModelForSequenceClassification.from_pretrained(sentiment, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_what_was_trained_replaces_what_the_encoder_has(sentiment: Path) -> None:
    trained, whole = load_file(assemble.DELTA), load_file(sentiment / "model.safetensors")
    assert all(whole[name].equal(value.float()) for name, value in trained.items())
    layers = {name.split(".")[3] for name in trained if name.startswith("bert.encoder.layer.")}
    assert layers == {"4", "5"}


def test_it_tells_good_from_bad(sentiment: Path, serve: Serve) -> None:
    client = serve(model_dir=sentiment).client
    instances = [*POSITIVE, *NEGATIVE]
    answer = client.post("/v1/models/model:predict", json={"instances": instances}).json()
    assert answer == {"predictions": [1] * len(POSITIVE) + [0] * len(NEGATIVE)}
    named = client.post(
        "/v1/models/model:predict", json={"instances": instances, "parameters": {"labels": True}}
    ).json()
    assert [each["label"] for each in named["predictions"]] == ["positive"] * len(POSITIVE) + ["negative"] * len(
        NEGATIVE
    )


def test_parts_are_disjoint_and_hang_on_words_alone() -> None:
    one, other = data.Sentence("movies", 1.0, "A  fine Film"), data.Sentence("tweets", -1.0, "a fine film")
    assert one.part == other.part
    parts = [data.Sentence("movies", 0.0, f"sentence {number}").part for number in range(2000)]
    assert 150 < parts.count("held_out") < 250
    assert 60 < parts.count("validation") < 140


@pytest.mark.slow
def test_the_card_has_the_accuracy_that_is_measured(sentiment: Path) -> None:
    try:
        sentences = data.load_sentences()
    except subprocess.CalledProcessError:
        pytest.skip(f"{data.ARCHIVE.name} is not in demo/models, and pip cannot download it")
    assert evaluate.make_table(sentiment, sentences) in (ROOT / "demo/sentiment/README.md").read_text()
