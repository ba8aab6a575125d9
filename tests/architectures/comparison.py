"""One model, alone and beside others, against the stock `transformers` model that reads each text alone.

What counts as the same:

- In float32 an answer may differ by rounding, 5e-5 of the largest number that the stock model says of the texts.
  Contamination is far from that: a convolution over padding gives 1e-2, FNet's transform 0.7 and more.
- In 16 bit rounding is as large as mild contamination, so that a tolerance would let that through. The float32 answers
  are the truth, and how far the stock 16-bit model is from them, over all texts, says what rounding does to this model:
  ours may be twice as far, since its sums run in another order, and a little more where the stock one happens to be
  right. What then is left of contamination shows by the neighbours: others of the same lengths leave shapes, kernels
  and so the rounding as they are, and must not change a bit.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.arguments import Arguments
from runners.core.errors import RunnerError
from runners.core.predictions import Numbers, Options, Prediction, Records, TextInput
from runners.core.task import Task
from runners.encoder.runner import EncoderRunner
from tests.architectures.models import LAST_TOKEN, save_model
from tests.architectures.registry import Pair
from tests.architectures.vocabularies import MAX_LENGTH

DTYPES = ("float32", "bfloat16", "float16")
_TOLERANCE = 5e-5
_TIMES_STOCK = 2.0
# Of the largest number that the stock model says: five roundings.
_FLOOR = {dtype: 2.5 * torch.finfo(getattr(torch, dtype)).eps for dtype in DTYPES}
# How many tokens two windows of a context share.
_STRIDE = 16
_ANSWERS = 1000
# Of the largest number: with answers that hardly depend on the text nothing would be seen of other texts.
_LEAST_SPREAD = 0.05
# Most of them one token in every vocabulary here.
_WORDS = """
    the of and to is in that for it are by with if not be as or this can from an name file list value object which
    string function type return returns one other will used new given default all any module
"""

Scores = NDArray[np.float32]


class Verdict(StrEnum):
    RIGHT = "right"
    WRONG = "wrong"
    REFUSED = "refused"
    STOCK_REFUSES = "stock refuses"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a pair in one dtype.

    Attributes:
        mode: how its batches are computed; empty where the model is refused.
        reason: why it is refused or wrong.
        error: how far the answers are from the stock ones, of the largest number in those.
    """

    verdict: Verdict
    mode: str = ""
    reason: str = ""
    error: float = 0.0


def compare(pair: Pair, folder: Path, dtypes: Sequence[str] = DTYPES) -> dict[str, Outcome]:
    """The outcome in each of the dtypes; the model is made in `folder`."""
    try:
        save_model(pair, folder)
        stock = _Stock(pair, folder)
        texts = make_texts(pair.task, stock.tokenizer)
        truth = stock.answer_all(texts, "float32")
    except Exception as error:
        return dict.fromkeys(dtypes, Outcome(Verdict.STOCK_REFUSES, reason=one_line(error)))
    outcomes = {}
    for dtype in dtypes:
        try:
            allowed = _TOLERANCE * _largest(truth)
            if dtype != "float32":
                rounding = _distance(stock.answer_all(texts, dtype), truth)
                allowed = _TIMES_STOCK * rounding + _FLOOR[dtype] * _largest(truth)
        except Exception as error:
            outcomes[dtype] = Outcome(Verdict.STOCK_REFUSES, reason=one_line(error))
        else:
            runner = _Runner(pair.task, folder, dtype)
            outcomes[dtype] = _compare(runner, texts, truth, allowed, exact=dtype != "float32")
    return outcomes


def _compare(runner: _Runner, texts: Texts, truth: Sequence[Answer], allowed: float, exact: bool) -> Outcome:
    """The outcome of a model.

    Args:
        truth: what the answers are to be.
        allowed: how far they may be from that.
        exact: whether other neighbours may change no bit of them.
    """
    largest = _largest(truth)
    try:
        runner.load()
        alone = [runner.answer([text])[0] for text in texts.compared]
        beside = [runner.answer_beside(texts.compared, neighbours) for neighbours in texts.neighbours]
        mode = runner.mode
    except RunnerError as error:
        return Outcome(Verdict.REFUSED, reason=one_line(error).replace(runner.model, "the model"))
    except Exception as error:
        return Outcome(Verdict.REFUSED, reason=f"{type(error).__name__}: {one_line(error)}")
    finally:
        runner.close()
    errors = {"alone": _distance(alone, truth)} | {
        f"beside others ({number})": _distance(answers, truth) for number, answers in enumerate(beside, 1)
    }
    worst = max(errors, key=lambda name: errors[name])
    off = errors[worst] / largest
    if not errors[worst] <= allowed:
        return Outcome(Verdict.WRONG, mode, f"{worst}: off by {off:.1e}, {allowed / largest:.1e} allowed", off)
    if exact and not all(map(_identical, *beside)):
        change = _distance(*beside) / largest
        return Outcome(Verdict.WRONG, mode, f"other neighbours change it by {change:.1e}", change)
    return Outcome(Verdict.RIGHT, mode, error=off)


@dataclass(frozen=True, slots=True)
class Answer:
    """The numbers that are said of a text, and for question answering the spans [start, end) that they are of."""

    scores: Scores
    spans: tuple[tuple[int, int], ...] = ()


def _largest(answers: Sequence[Answer]) -> float:
    return max(float(np.abs(answer.scores).max()) for answer in answers)


def _spread(answers: Sequence[Answer]) -> float:
    """How much the numbers of one class, or of one dimension, differ over texts and tokens, of the largest number."""
    rows = np.concatenate(
        [answer.scores.reshape(-1, 1) if answer.spans else np.atleast_2d(answer.scores) for answer in answers]
    )
    return float(np.ptp(rows, axis=0).max()) / _largest(answers)


def _distance(found: Sequence[Answer], expected: Sequence[Answer]) -> float:
    """The largest difference of two numbers; infinite where the answers are not of one form."""
    distances = [0.0]
    for one, other in zip(found, expected, strict=True):
        if one.spans != other.spans or one.scores.shape != other.scores.shape:
            return float("inf")
        difference = np.abs(one.scores - other.scores)
        distances.append(float(difference.max()) if np.isfinite(difference).all() else float("inf"))
    return max(distances)


def _identical(one: Answer, other: Answer) -> bool:
    return one.spans == other.spans and np.array_equal(one.scores, other.scores)


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts that are compared, and sets of neighbours of them, whose lengths are the same in each set."""

    compared: list[TextInput]
    neighbours: list[list[TextInput]]


def make_texts(task: Task, tokenizer: PreTrainedTokenizerBase) -> Texts:
    """Short, medium and very long ones, and pairs where the task takes them."""
    mask = tokenizer.mask_token if task is Task.FILL_MASK else "name"
    singles = [
        TextInput(f"The {mask} is good."),
        TextInput(f"Return a list of the {mask} in the directory given by path, or None if the file does not exist."),
        TextInput(f"A {mask} of " + "the values in the list of all files that are read by this function " * 12),
    ]
    pairs = [
        TextInput("What is returned?", f"The function returns a new {mask} if the value is true, else it is None."),
        TextInput(f"Is the {mask} a string?", "It is a list of all names in the module, " * 12),
    ]
    match task:
        case Task.QUESTION_ANSWERING:
            compared = pairs
        case Task.SEQUENCE_CLASSIFICATION | Task.TEXT_RANKING | Task.ZERO_SHOT_CLASSIFICATION:
            compared = [*singles, *pairs]
        case _:
            compared = singles
    words = _single_token_words(tokenizer)
    sets = []
    for shift in (0, len(words) // 2):
        texts = [
            TextInput(
                f"a {mask} " + " ".join(words[(shift + 7 * number + each) % len(words)] for each in range(length))
            )
            for number, length in enumerate((1, 9, 30, 50))
        ]
        if task is Task.QUESTION_ANSWERING:
            texts = [TextInput("a what", text.text) for text in texts]
        sets.append(texts)
    lengths = [[len(tokenizer(text.text).input_ids) for text in texts] for texts in sets]
    assert lengths[0] == lengths[1], "the sets of neighbours are to be of the same lengths"
    return Texts(compared, sets)


def _single_token_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Some that are one token each inside of a text."""
    alone = len(tokenizer("a a").input_ids)
    found = [word for word in _WORDS.split() if len(tokenizer(f"a {word} a").input_ids) == alone + 1]
    assert len(found) >= 20, f"{type(tokenizer).__name__} has hardly a word that is one token"
    return found


class _Stock:
    """The stock model of a pair, asked for one text at a time."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self._pair = pair
        self._folder = folder
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def answer_all(self, texts: Texts, dtype: str) -> list[Answer]:
        """The answers in a dtype, in order.

        Raises:
            ValueError: they are not finite, not the same twice, or the same for all texts.
            Exception: whatever the model raises.
        """
        model = self._pair.auto_class.from_pretrained(self._folder, dtype=getattr(torch, dtype)).eval()
        # A model of its own for each text: BigBird's changes for good when it reads a short one.
        *answers, again = [self._answer(copy.deepcopy(model), text) for text in (*texts.compared, texts.compared[-1])]
        if not all(np.isfinite(answer.scores).all() for answer in answers):
            raise ValueError("its answers are not finite")
        if not _identical(answers[-1], again):
            raise ValueError("its answers are not deterministic")
        if _spread(answers) < _LEAST_SPREAD:
            raise ValueError("its answers hardly depend on the text")
        return answers

    def _answer(self, model: Any, text: TextInput) -> Answer:
        if self._pair.task is Task.QUESTION_ANSWERING:
            return self._answer_question(model, text)
        given = (text.text,) if text.pair is None else (text.text, text.pair)
        inputs = self.tokenizer(*given, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        output = model(**inputs)
        if self._pair.task is Task.TEXT_EMBEDDING:
            hidden = getattr(output, "last_hidden_state", None)
            if hidden is None:
                raise ValueError(f"{type(output).__name__} has no token vectors")
            vector = hidden[0, -1].float() if self._pair.model_type in LAST_TOKEN else hidden[0].float().mean(0)
            return Answer(torch.nn.functional.normalize(vector, dim=0).numpy())
        if self._pair.task is Task.SPARSE_EMBEDDING:
            return Answer(torch.log1p(torch.relu(output.logits[0].float())).amax(0).numpy())
        logits = output.logits[0].float().numpy()
        if self._pair.task is Task.FILL_MASK:
            masks = (inputs["input_ids"][0] == self.tokenizer.mask_token_id).nonzero()[:, 0].numpy()
            return Answer(logits[masks])
        return Answer(logits)

    def _answer_question(self, model: Any, text: TextInput) -> Answer:
        """The logarithms of the words' scores to be the answer, from the window that each has the highest in.

        Logarithms, because they differ by what logits differ by.
        """
        assert text.pair is not None
        windows = self.tokenizer(
            text.text, text.pair, truncation="only_second", max_length=MAX_LENGTH, stride=_STRIDE,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        best: dict[tuple[int, int], float] = {}
        for number, encoding in enumerate(windows.encodings):
            inputs = {
                name: torch.tensor([windows[name][number]])
                for name in self.tokenizer.model_input_names
                if name in windows
            }
            output = model(**inputs)
            context = torch.tensor([sequence == 1 for sequence in encoding.sequence_ids])
            logits = torch.stack([output.start_logits[0], output.end_logits[0]]).float()[:, context]
            scores = torch.log_softmax(logits, dim=-1).sum(0).tolist()
            tokens = [index for index, inside in enumerate(context.tolist()) if inside]
            for score, span in zip(scores, _word_spans(text.pair, encoding, tokens), strict=True):
                best[span] = max(score, best.get(span, -np.inf))
        return _spans_answer(best)


def _word_spans(context: str, encoding: Any, tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where the word of each token is in the context, as far as this window has it, without spaces around it."""
    for token in tokens:
        places = [encoding.offsets[each] for each in tokens if encoding.word_ids[each] == encoding.word_ids[token]]
        start, end = places[0][0], places[-1][1]
        piece = context[start:end]
        yield start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())


def _spans_answer(scores: dict[tuple[int, int], float]) -> Answer:
    spans = tuple(sorted(scores))
    return Answer(np.array([scores[span] for span in spans], dtype=np.float32), spans)


class _Runner:
    """This server's engine for a model, in this process."""

    def __init__(self, task: Task, folder: Path, dtype: str) -> None:
        self._task = task
        self.model = str(folder)
        # One thread: these models are too small for two, and others of them run beside.
        arguments = {"model_dir": str(folder), "task": task, "dtype": dtype, "workers": os.cpu_count()}
        self._runner = EncoderRunner(Arguments.model_validate(arguments))
        self._loop = asyncio.new_event_loop()

    def load(self) -> None:
        with _logged("runners.encoder.runner") as lines:
            self._loop.run_until_complete(self._runner.load())
        logged = next((line for line in lines if " batches" in line), "")
        self.mode = str(getattr(self._runner, "forward_mode", logged.partition(" batches")[0]))

    def answer(self, texts: Sequence[TextInput]) -> list[Answer]:
        """The answers to the texts of one request."""
        predictions = self._loop.run_until_complete(self._runner.infer(texts, self._options()))
        return [self._read(prediction) for prediction in predictions]

    def answer_beside(self, texts: Sequence[TextInput], neighbours: Sequence[TextInput]) -> list[Answer]:
        """The answers to the texts in one request with others."""
        return self.answer([neighbours[0], *texts, *neighbours[1:]])[1 : len(texts) + 1]

    def close(self) -> None:
        self._runner.close()
        self._loop.close()

    def _options(self) -> Options:
        match self._task:
            case Task.QUESTION_ANSWERING:
                answer = AnswerOptions(top_k=_ANSWERS, max_answer_len=1)
                return Options(answer=answer, overflow=OverflowOptions(stride=_STRIDE))
            case Task.TEXT_EMBEDDING | Task.SPARSE_EMBEDDING:
                return Options()
            case _:
                return Options(outputs=frozenset({"logits"}))

    def _read(self, prediction: Prediction) -> Answer:
        if self._task is Task.QUESTION_ANSWERING:
            assert isinstance(prediction.main, Records)
            columns = (prediction.main.columns[name].tolist() for name in ("start", "end", "score"))
            return _spans_answer({(start, end): np.log(score) for start, end, score in zip(*columns, strict=True)})
        if self._task is Task.SPARSE_EMBEDDING:
            assert isinstance(prediction.main, Records)
            dense = np.zeros(int(self._runner.properties["dimensions"]), dtype=np.float32)
            dense[prediction.main.columns["index"]] = prediction.main.columns["value"]
            return Answer(dense)
        if self._task is Task.TEXT_EMBEDDING:
            assert isinstance(prediction.main, Numbers)
            return Answer(prediction.main.values)
        return Answer(prediction.arrays["logits"])


class _logged:  # noqa: N801
    """The lines that a logger gets meanwhile."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)
        self._lines: list[str] = []
        self._handler = logging.Handler(logging.INFO)
        self._handler.emit = lambda record: self._lines.append(record.getMessage())  # type: ignore[method-assign]

    def __enter__(self) -> list[str]:
        self._level = self._logger.level
        self._logger.addHandler(self._handler)
        self._logger.setLevel(logging.INFO)
        return self._lines

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)
        self._logger.setLevel(self._level)


def one_line(error: BaseException) -> str:
    """An error's message as a line without the machine's paths."""
    return " ".join(str(error).split())[:300]
