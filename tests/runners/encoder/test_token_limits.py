"""Token ids that a model has no embedding for: refused by name, at load or before a text is queued."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from protocol.tensors import BYTES
from runners.core.errors import InputError, ModelLoadError
from runners.core.predictions import TextInput, TokenInput
from runners.encoder.sequences import EncodedText, TokenizedText
from runners.encoder.token_limits import TokenLimits, count_token_ids, count_token_types, find_padding_id
from tests.conftest import Dial, ModelFolder, Serve
from tests.encoders import load
from tests.families import MINILM
from tests.faults import add_tokens
from tests.predictors import RestPredictor
from tests.protocol.conftest import TASKS
from tests.wire import WIRES

ROWS = 30522
EXTRA = "<extra>"
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "d_model": 32,
    "n_layer": 1, "n_head": 2, "d_inner": 64, "n_embd": 32, "emb_dim": 32, "n_layers": 1, "n_heads": 2, "vocab_size": 500,
}  # fmt: skip


def on_meta(model_type: str, auto_class: Any = AutoModelForSequenceClassification, **config: Any) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(AutoConfig.for_model(model_type, **SMALL | config))
    return model


@pytest.mark.parametrize(
    ("model_type", "auto_class", "config", "ids", "types"),
    [
        ("bert", AutoModelForSequenceClassification, {}, 500, 2),
        ("roberta", AutoModelForSequenceClassification, {"type_vocab_size": 1}, 500, 1),
        # Its table is no `nn.Embedding`.
        ("ibert", AutoModelForSequenceClassification, {}, 500, 2),
        # These have no table of token types: it ignores them, it compares them, and it looks them up among the tokens.
        ("deberta-v2", AutoModelForSequenceClassification, {}, 500, 500),
        ("xlnet", AutoModelForSequenceClassification, {}, 500, 500),
        ("gpt2", AutoModelForSequenceClassification, {}, 500, 500),
        # Its input embeddings are its latents.
        ("perceiver", AutoModelForMaskedLM, {"vocab_size": 262}, 262, 262),
        # It hashes code points, whatever they are.
        ("canine", AutoModel, {"num_hidden_layers": 2, "vocab_size": None}, None, 16),
        ("modernvbert", AutoModel, {"text_config": {"vocab_size": 600, "pad_token_id": 0}}, 600, 600),
    ],
)
def test_tables_of_a_model(model_type: str, auto_class: Any, config: Any, ids: int | None, types: int | None) -> None:
    model = on_meta(model_type, auto_class, **config)
    assert (count_token_ids(model), count_token_types(model)) == (ids, types)


def test_rows_count_and_not_the_config() -> None:
    model = on_meta("bert")
    model.config.vocab_size = 400
    assert count_token_ids(model) == 500


@pytest.mark.parametrize(("given", "expected"), [(3, 3), (None, 0), (-1, 0), (500, 0)])
def test_padding_id(given: Any, expected: int) -> None:
    model = on_meta("bert")
    model.config.pad_token_id = given
    assert find_padding_id(model) == expected


def wordpiece(*tokens: str, **special: str) -> PreTrainedTokenizerBase:
    """BERT's tokenizer with more tokens."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(MINILM)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(dict(special))
    return tokenizer


def templated(single: str, pair: str, tokens: list[tuple[str, int]]) -> PreTrainedTokenizerBase:
    tokenizer = wordpiece()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=tokens)
    return tokenizer


BERT = [("[CLS]", 101), ("[SEP]", 102)]


@pytest.mark.parametrize(
    ("tokenizer", "arguments", "covers", "warning"),
    [
        (wordpiece(), {}, True, ""),
        (wordpiece(EXTRA), {}, False, "has 1 tokens beyond the 30522 rows .* are refused: '<extra>' \\(30522\\)$"),
        (wordpiece(*(f"<{index}>" for index in range(7))), {}, False, "has 7 tokens .*'<4>' \\(30526\\), \\.\\.\\.$"),
        (wordpiece(mask_token="<mask>"), {}, False, "'<mask>' \\(30522\\)"),
        (templated("$A", "$A $B:2", BERT), {}, False, "pairs have the token type 2, .*token types has 2 rows"),
        (templated("$A", "$A $B:2", BERT), {"accepts_pairs": False}, True, ""),
        (templated("$A", "$A [NO] $B", [("[NO]", ROWS)]), {}, False, r"'\[NO\]' \(30522\)"),
        (templated("$A", "$A [NO] $B", [("[NO]", ROWS)]), {"accepts_pairs": False}, True, ""),
    ],
)
def test_what_only_some_texts_have_is_warned_of(
    tokenizer: PreTrainedTokenizerBase, arguments: Any, covers: bool, warning: str, caplog: pytest.LogCaptureFixture
) -> None:
    limits = TokenLimits(512, ROWS, 2).compare(tokenizer, **arguments)
    assert limits.covers_tokenizer is covers
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(warning)
    assert re.search(warning, caplog.text)


@pytest.mark.parametrize(
    ("limits", "tokenizer", "arguments", "message"),
    [
        (TokenLimits(512, 102, 2), wordpiece(), {}, r"every text has the token '\[SEP\]', whose id is 102, and .* 102 rows"),
        (TokenLimits(512, 103, 2), wordpiece(), {"needed_tokens": [103]}, r"the token '\[MASK\]', whose id is 103, .* 103 rows"),
        (TokenLimits(512, ROWS, 2), templated("$A [NO]", "$A $B [NO]", [("[NO]", ROWS)]), {}, r"'\[NO\]', whose id is 30522"),
        (TokenLimits(512, ROWS, 2), templated("$A:2", "$A $B", BERT), {}, "every text has the token type 2, and .* has 2 rows"),
        (TokenLimits(512, ROWS, 1), wordpiece(), {"needs_pairs": True}, "every text has the token type 1, and .* has 1 rows"),
    ],
)  # fmt: skip
def test_what_every_text_has_is_refused(
    limits: TokenLimits, tokenizer: PreTrainedTokenizerBase, arguments: Any, message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        limits.compare(tokenizer, **arguments)


def test_special_tokens_that_are_not_added_are_not_needed() -> None:
    assert not TokenLimits(512, 102, 2).compare(wordpiece(), add_special_tokens=False).covers_tokenizer


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        ([1, 5], [0, 1], None),
        ([1, 10], [0, 0], "10 ('<extra>') is none of the model's input_ids, which are 0 to 9"),
        ([1, 11], [0, 0], "11 is none of the model's input_ids, which are 0 to 9"),
        ([-1, 1], [0, 0], "-1 is none of the model's input_ids, which are 0 to 9"),
        ([1, 5], [0, 2], "2 is none of the model's token_type_ids, which are 0 to 1"),
        ([1, 5], [0, -1], "-1 is none of the model's token_type_ids, which are 0 to 1"),
    ],
)
@pytest.mark.parametrize("tokenized", ["here", "by the caller"])
def test_each_sequence_is_checked(tokenized: str, ids: list[int], types: list[int], message: str | None) -> None:
    limits = TokenLimits(512, 10, 2, unreadable={10: EXTRA})
    wrong = TokenizedText(np.array(ids), np.array(types), None, truncated=False)
    right = TokenizedText(np.array([1, 2]), np.array([0, 0]), None, truncated=False)

    def check() -> None:
        if tokenized == "here":
            limits.check(EncodedText(right, [right, wrong]))
        else:
            limits.encode(TokenInput(wrong.input_ids, wrong.token_type_ids))

    if message is None:
        check()
    else:
        with pytest.raises(InputError, match=re.escape(message)):
            check()


@pytest.mark.parametrize(
    ("limits", "ids", "types"),
    [
        # A model that hashes what it is given, one that is given no types, and one that takes any.
        (TokenLimits(512, None, 2), [10**9], [0]),
        (TokenLimits(512, 10, 0), [1], [7]),
        (TokenLimits(512, 10, None), [1], [7]),
    ],
)
def test_what_has_no_limit(limits: TokenLimits, ids: list[int], types: list[int]) -> None:
    text = TokenizedText(np.array(ids), np.array(types), None, truncated=False)
    limits.check(EncodedText(text, [text]))


@pytest.fixture(scope="module")
def extra_token(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model of a task whose tokenizer has a token that it has no embedding for."""

    @cache
    def make(task: str) -> Path:
        return add_tokens(model_folder("bert", task, **TASKS[task]), tmp_path_factory.mktemp("extra") / task, EXTRA)

    return make


LONG = "word " * 600
WRONG = f"30522 ('{EXTRA}') is none of the model's input_ids, which are 0 to 30521"


@pytest.mark.parametrize(
    ("task", "texts", "parameters", "position"),
    [
        ("sequence_classification", ["fine", f"a {EXTRA} b"], {}, 1),
        ("token_classification", [f"a {EXTRA} b"], {}, 0),
        ("fill_mask", ["[MASK]", "a [MASK]", f"[MASK] {EXTRA}"], {}, 2),
        ("text_embedding", ["fine", EXTRA], {}, 1),
        # Beyond the first window.
        ("token_classification", ["fine", f"{LONG} {EXTRA}"], {"stride": 10}, 1),
        # Each label makes a pair with each text.
        ("zero_shot_classification", ["fine", f"a {EXTRA}"], {"candidate_labels": "x,y"}, 1),
        ("zero_shot_classification", ["fine"], {"candidate_labels": f"x,{EXTRA}"}, 0),
        ("question_answering", [["Who?", "Nobody."], ["Who?", f"{LONG} {EXTRA}"]], {}, 1),
    ],
)
def test_a_token_that_the_model_does_not_have(
    task: str, texts: list[Any], parameters: Any, position: int, extra_token: Callable[[str], Path], serve: Serve, dial: Dial
) -> None:  # fmt: skip
    served = serve(model_dir=extra_token(task))
    client, channel = served.client, dial(served)
    for wire in WIRES:
        found = wire(client, channel, "model", request_of(texts, parameters))
        assert (found.code, found.error) == ("INVALID_ARGUMENT", f"text {position} cannot be served: {WRONG}")
        assert (
            wire(client, channel, "model", request_of(texts[:position] or [TEXTS.get(task, "fine")], {})).code == "OK"
        )


TEXTS: dict[str, Any] = {"fill_mask": "[MASK]", "question_answering": ["Who?", "Nobody."]}


def request_of(texts: list[Any], parameters: Any) -> Any:
    shape = list(np.shape(texts))
    return {
        "inputs": [{"name": "x", "shape": shape, "datatype": BYTES, "data": np.ravel(texts).tolist()}],
        "parameters": parameters,
    }


async def test_a_text_that_is_refused_leaves_the_others_alone(extra_token: Callable[[str], Path]) -> None:
    runner = load(model_dir=str(extra_token("sequence_classification")))

    async def ask() -> list[Any]:
        texts = ["fine", f"a {EXTRA} b", "also fine"]
        asked = [runner.infer([TextInput(text)], runner.default_options) for text in texts]
        return await asyncio.gather(*asked, return_exceptions=True)

    answers = await ask()
    runner.close()
    assert [isinstance(answer, InputError) for answer in answers] == [False, True, False]


def test_pairs_that_a_table_of_one_row_cannot_hold(
    model_folder: ModelFolder, serve: Serve, dial: Dial, caplog: pytest.LogCaptureFixture
) -> None:
    served = serve(model_dir=model_folder("bert", "sequence_classification", type_vocab_size=1))
    assert "pairs have the token type 1" in caplog.text
    for wire in WIRES:
        found = wire(served.client, dial(served), "model", request_of([["a", "b"], ["c", "d"]], {}))
        expected = "text 0 cannot be served: 1 is none of the model's token_type_ids, which are 0 to 0"
        assert (found.code, found.error) == ("INVALID_ARGUMENT", expected)
        assert wire(served.client, dial(served), "model", request_of(["a", "b"], {})).code == "OK"


def test_a_classifier_without_the_mask_of_its_tokenizer(
    model_folder: ModelFolder, tmp_path: Path, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is it tried with that mask when it is loaded."""
    folder = model_folder("bert", "sequence_classification")
    client = serve(model_dir=add_tokens(folder, tmp_path / "mask", special={"mask_token": "<mask>"})).client
    assert "texts with them are refused: '<mask>' (30522)" in caplog.text
    found = [client.post("/v1/models/model:predict", json={"instances": [text]}) for text in ("fine", "a <mask>")]
    assert [response.status_code for response in found] == [200, 400]
    assert "text 0 cannot be served: 30522 ('<mask>') is none of" in found[1].text


def test_a_tokenizer_of_another_model(model_folder: ModelFolder) -> None:
    """It has [CLS] and [SEP], and a few words."""
    folder = model_folder("bert", "sequence_classification", vocab_size=1100)
    with pytest.raises(
        ModelLoadError,
        match=r"does not fit the model: in a text of ordinary words \d+ \('\w+'\) is none of .* 0 to 1099",
    ):
        load(model_dir=str(folder))


def test_in_front_of_a_predictor(extra_token: Callable[[str], Path], serve: Serve) -> None:
    folder = extra_token("sequence_classification")
    predictor = RestPredictor(serve(model_dir=folder).client.app)
    client = serve(model_dir=folder, predictor_host=predictor.host).client
    response = client.post("/v1/models/model:predict", json={"instances": [EXTRA]})
    asked = [path for path in predictor.requests if path.endswith("infer")]
    predictor.close()
    assert (response.status_code, response.json()) == (400, {"error": f"text 0 cannot be served: {WRONG}"})
    assert not asked


@pytest.mark.parametrize(
    ("task", "config", "message"),
    [
        ("sequence_classification", {"vocab_size": 102}, r"the token '\[SEP\]', whose id is 102"),
        ("fill_mask", {"vocab_size": 103}, r"the token '\[MASK\]', whose id is 103"),
        ("question_answering", {"type_vocab_size": 1}, "every text has the token type 1"),
    ],
)
def test_what_no_text_can_do_without_is_refused_at_load(
    task: str, config: dict[str, Any], message: str, model_folder: ModelFolder
) -> None:
    with pytest.raises(ModelLoadError, match=message):
        load(model_dir=str(model_folder("bert", task, **config)))
