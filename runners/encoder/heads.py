"""One class a task: which model it loads, how it reads the forward pass, and what it answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from runners.answers import AggregationStrategy, AnswerOptions, ReadingOptions, ScoreFunction, WindowAggregation
from runners.arguments import Arguments
from runners.encoder.entities import EntityFinder
from runners.encoder.packing import Rows
from runners.encoder.pooling import load_sentence_transformer
from runners.encoder.reading import Reading, TokenizedText
from runners.encoder.relevance import load_activation
from runners.encoder.spans import find_answers
from runners.encoder.tokenization import TextTokenizer
from runners.errors import InputError, ModelLoadError
from runners.inference import (
    RELEVANCE,
    TRUNCATED_TOKENS,
    ClassScores,
    Numbers,
    Options,
    Output,
    Prediction,
    Table,
    TensorSpec,
    Text,
    TextInput,
    VocabularyScores,
)
from runners.task import ENTAILMENT, Task

# KServe prints probabilities with four decimals.
_PROBABILITY_DECIMALS = 4
# As many as `transformers.FillMaskPipeline` gives.
_TOP_TOKENS = 5
# Each is decoded, which takes some 20 us, and longer where it is longer than this.
_MOST_SEQUENCES = 10_000
_USUAL_TOKENS = 512
_TRUNCATE = ReadingOptions()
_TRUNCATION = frozenset({"truncation", "return_truncated_tokens"})
# From which score on a label applies that does not exclude others.
_ON = 0.5
# What `transformers.TokenClassificationPipeline` ignores where it is not told.
_NO_ENTITY = ("O",)
# How many tokens the windows of a context share, as in `transformers`' pipeline.
_USUAL_STRIDE = 128
# The named outputs of every classification.
_OF_CLASSES = frozenset({"logits", "probabilities", "labels"})
_OFFSETS = TensorSpec("offset_mapping", "INT64", (-1, -1, 2))


class Head(ABC):
    """A task on a loaded model."""

    auto_class: ClassVar[type[Any]]
    accepts_pairs: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    accepts_words: ClassVar[bool] = False
    rows: ClassVar[Rows] = Rows.ALL
    # Weights that may be missing from a checkpoint because the task does not read them.
    unused_weights: ClassVar[tuple[str, ...]] = ()
    # Those of `AnswerOptions` that the task has.
    answer_options: ClassVar[frozenset[str]] = frozenset()
    # Those of `ReadingOptions`.
    reading_options: ClassVar[frozenset[str]] = _TRUNCATION
    # How many numbers a text's vector has, for a task that makes one of the rows; a predictor may have made it already.
    pooled_width: int | None = None

    def __init__(
        self, arguments: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> None:
        """
        Args:
            arguments: where the model came from; some heads read more files from there.
            model: its config and form are read here; its weights may be elsewhere.
            device: where the head's own weights go, if it has some.
        """
        self.arguments = arguments
        self.config = model.config
        self.tokenizer = tokenizer
        self.device = device
        self.lower_case = False
        self.recommended_length: int | None = None
        self.prepare()

    def prepare(self) -> None:  # noqa: B027
        """Read what the task needs to know of the model; not every task does.

        Raises:
            ModelLoadError: the model cannot do the task.
        """

    def check(self, text: TokenizedText, wanted: AnswerOptions) -> None:
        """Refuse a text before it takes the model's time.

        Raises:
            InputError: the text cannot be served; the caller adds its position.
        """
        if not len(text.input_ids):
            raise InputError("it has no tokens")

    def check_options(self, options: Options) -> None:  # noqa: B027
        """Refuse options before they take anyone's time.

        Raises:
            InputError: an option cannot be what was meant for this model.
        """

    @property
    def options(self) -> frozenset[str]:
        """All that may be asked for."""
        return self.answer_options | self.reading_options

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[Reading]:
        """What the model is to read of each text; called in the tokenizer's thread.

        Args:
            first_position: where the first text stands in its request.

        Raises:
            InputError: a text cannot be read as the options say; the message names its position.
        """
        return tokenizer.tokenize(
            texts,
            options.offsets,
            self.needs_source(options),
            self.prompt(options.answer),
            options.reading,
            range(first_position, first_position + len(texts)),
        )

    def count_sequences(self, options: Options) -> int:
        """How many sequences a text makes that is not too long."""
        return 1

    def reads_to_end(self, options: Options) -> bool:
        """Whether a text is tokenized to its end, however long it is."""
        return options.reading != _TRUNCATE

    def needs_source(self, options: Options) -> bool:
        """Whether the answer is made of more of the text than its token ids."""
        return False

    def prompt(self, wanted: AnswerOptions) -> str:
        """What goes in front of every text."""
        return ""

    def count_scores(self, text: TokenizedText) -> int:
        """How many numbers the scores of a text are, where that is worth counting."""
        return 0

    def read(self, rows: Tensor, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        """Share out what the model says of the rows the task reads: float32 [rows of the text, classes] each."""
        return np.split(_to_numpy(rows), np.cumsum(counts)[:-1])

    def predict(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> Prediction:
        """The answer to one text from what `read` gave of its sequences."""
        scores = self.gather(parts, reading, options) if reading.own or len(parts) > 1 else parts[0]
        table = self.tabulate(scores, reading, options.answer)
        columns = frozenset() if table is None else table.columns.keys()
        return Prediction(
            self.output(scores, options) if table is None else table,
            reading.text.offsets if options.offsets else None,
            {
                name: np.array(reading.left_out) if name == TRUNCATED_TOKENS.name else self.tensor(name, scores)
                for name in options.tensors - columns
            },
            tokens=reading.tokens,
        )

    def gather(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> NDArray[np.float32]:
        """One text's scores from those of its sequences, for a task that makes several of one text."""
        raise NotImplementedError

    def tabulate(self, scores: NDArray[np.float32], reading: Reading, wanted: AnswerOptions) -> Table | None:
        """The answer to one text as records, where the options ask for that; None where they do not."""
        return None

    @property
    @abstractmethod
    def width(self) -> int:
        """How many numbers the model says of a row."""

    @abstractmethod
    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers | Text | ClassScores | VocabularyScores:
        """`output-0` of one text."""

    def tensor(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """One of `named_outputs`, of one text."""
        raise NotImplementedError(name)

    @abstractmethod
    def outputs(self, options: Options) -> list[TensorSpec]:
        """The tensors of an answer, where the request names none: the columns of its records, if it has those."""

    def named_outputs(self) -> list[TensorSpec]:
        """The tensors that a request gets only by name."""
        return []

    def class_name(self, index: int) -> str:
        """What a class is called, for a task that has some."""
        raise NotImplementedError

    @property
    def properties(self) -> dict[str, str]:
        """What a client has to know to ask."""
        return {}


class ClassificationHead(Head):
    """A head with a score for every class; its named outputs are those of `_OF_CLASSES`."""

    def tensor(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """float32 [..., classes] for `logits` and `probabilities`, str [...] for `labels`."""
        match name:
            case "logits":
                return scores
            case "probabilities":
                return self.probabilities(scores)
            case "labels":
                return self._names(scores.argmax(axis=-1))
        return super().tensor(name, scores)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 of the logits' shape."""
        return _softmax(logits)

    def class_name(self, index: int) -> str:
        names: dict[int, str] = self.config.id2label  # type: ignore[assignment]
        return str(names.get(index, f"LABEL_{index}"))

    def named_outputs(self) -> list[TensorSpec]:
        scores = [TensorSpec(name, "FP32", (*self.rows_shape, self.classes)) for name in ("logits", "probabilities")]
        return [*scores, TensorSpec("labels", "BYTES", self.rows_shape)]

    @property
    def width(self) -> int:
        return self.classes

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.config.num_labels or 0)

    @property
    @abstractmethod
    def rows_shape(self) -> tuple[int, ...]:
        """What a batch has a row of scores for: [texts] or [texts, tokens]."""

    def _names(self, indices: NDArray[np.int64]) -> NDArray[np.object_]:
        names = [self.class_name(index) for index in np.ravel(indices).tolist()]
        return np.array(names, dtype=object).reshape(np.shape(indices))


class SequenceClassification(ClassificationHead):
    """Class of a text or of a pair; single label, several labels at once, or regression.

    Probabilities follow `transformers.TextClassificationPipeline`: softmax for one label of several, sigmoid for
    independent labels and for a single class, the value itself for regression.
    """

    auto_class = AutoModelForSequenceClassification
    accepts_pairs = True
    rows = Rows.FIRST
    answer_options = frozenset({"labels", "top_k", "threshold", "function_to_apply"})
    reading_options = _TRUNCATION | {"stride", "window_aggregation"}

    def prepare(self) -> None:
        problem: str | None = getattr(self.config, "problem_type", None)
        self._multi_label = problem == "multi_label_classification"
        # A model with one class and no problem type was trained as a regression.
        self._regression = problem == "regression" or (self.classes == 1 and not self._multi_label)
        self._raw_scores = problem == "regression"

    def gather(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> NDArray[np.float32]:
        """The mean or maximum of the windows' logits, class by class: float32 [1, classes]."""
        windows = np.stack(parts)
        mean = options.reading.window_aggregation is WindowAggregation.MEAN
        return np.asarray(windows.mean(axis=0) if mean else windows.max(axis=0))

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers | ClassScores:
        [scores] = scores
        if options.output is Output.RAW_LOGITS:
            return ClassScores(scores, None)
        if options.output is Output.PROBABILITIES:
            return ClassScores(self.probabilities(scores), _PROBABILITY_DECIMALS)
        if self._regression:
            return Numbers(scores.reshape(()) if self.classes == 1 else scores)
        if self._multi_label:
            return Numbers(self._on(scores).astype(np.int64))
        return Numbers(np.asarray(scores.argmax()))

    def tensor(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """As above; for several labels at once `labels` has a place for every class, empty where it does not apply."""
        [scores] = scores
        if name == "labels" and self._multi_label:
            return np.where(self._on(scores), self._names(np.arange(self.classes)), "")
        return np.asarray(super().tensor(name, scores))

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._raw_scores:
            return logits
        return _sigmoid(logits) if self._multi_label or self.classes == 1 else _softmax(logits)

    def _on(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        return _sigmoid(logits) > _ON

    def tabulate(self, scores: NDArray[np.float32], reading: Reading, wanted: AnswerOptions) -> Table | None:
        """`label` and `score` of the best class; a list of them for `top_k`, `threshold` or several labels at once."""
        if not wanted.records:
            return None
        [logits] = scores
        values = self._apply(wanted.function_to_apply, logits)
        best = np.argsort(-values, kind="stable")[: wanted.top_k]
        if self._lists(wanted):
            least = _ON if wanted.threshold is None and wanted.top_k is None else wanted.threshold
            best = best[values[best] >= least] if least is not None else best
        else:
            best = best[0]
        return Table({"label": self._names(best), "score": values[best]})

    def _apply(self, function: ScoreFunction | None, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        match function:
            case ScoreFunction.SOFTMAX:
                return _softmax(logits)
            case ScoreFunction.SIGMOID:
                return _sigmoid(logits)
            case ScoreFunction.NONE:
                return logits
            case None:
                return self.probabilities(logits)

    def _lists(self, wanted: AnswerOptions) -> bool:
        return self._multi_label or wanted.top_k is not None or wanted.threshold is not None

    @property
    def rows_shape(self) -> tuple[int, ...]:
        return (-1,)

    def named_outputs(self) -> list[TensorSpec]:
        *scores, labels = super().named_outputs()
        if self._regression:
            return scores
        return [*scores, TensorSpec("labels", "BYTES", (-1, self.classes)) if self._multi_label else labels]

    def outputs(self, options: Options) -> list[TensorSpec]:
        if options.answer.records:
            records = (-1, -1) if self._lists(options.answer) else (-1,)
            return [TensorSpec("label", "BYTES", records), TensorSpec("score", "FP32", records)]
        if options.output is not Output.LABELS:
            return [TensorSpec("output-0", "BYTES", (-1,))]
        shape = (-1, self.classes) if self._multi_label or (self._regression and self.classes > 1) else (-1,)
        return [TensorSpec("output-0", "FP32" if self._regression else "INT64", shape)]


class TextRanking(SequenceClassification):
    """How relevant a text is to a query, the two a pair: a classification with one class, and `relevance` by name."""

    def prepare(self) -> None:
        super().prepare()
        if self.classes != 1:
            raise ModelLoadError(f"the model has {self.classes} classes, and text_ranking is for models with one")
        self._activation = load_activation(self.arguments, self.config)

    def tensor(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """As above; float32 [] for `relevance`, what sentence-transformers' `CrossEncoder.predict` says."""
        if name == RELEVANCE:
            return self._apply(self._activation, scores).reshape(())
        return super().tensor(name, scores)

    def named_outputs(self) -> list[TensorSpec]:
        return [*super().named_outputs(), TensorSpec(RELEVANCE, "FP32", (-1,))]


class TokenClassification(ClassificationHead):
    """Class of every token, special tokens included as KServe does; [1, tokens] a text."""

    auto_class = AutoModelForTokenClassification
    accepts_words = True
    answer_options = frozenset({"labels", "aggregation_strategy", "ignore_labels"})
    reading_options = _TRUNCATION | {"stride"}

    def prepare(self) -> None:
        self._finder = EntityFinder([self.class_name(index) for index in range(self.classes)])

    def needs_source(self, options: Options) -> bool:
        return options.answer.records

    def gather(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> NDArray[np.float32]:
        """The scores of every token from the window that sees most around it: float32 [tokens, classes]."""
        return np.concatenate([part[own] for part, own in zip(parts, reading.own, strict=True)])

    def check(self, text: TokenizedText, wanted: AnswerOptions) -> None:
        super().check(text, wanted)
        if wanted.records and text.source is None:
            raise InputError(
                "it is given as tokens, and what labels, aggregation_strategy and ignore_labels ask for is of texts"
            )

    def tabulate(self, scores: NDArray[np.float32], reading: Reading, wanted: AnswerOptions) -> Table | None:
        """`label`, `score`, `text`, `start` and `end` of every token, word or entity."""
        source = reading.text.source
        if source is None or not (wanted.records or source.split):
            return None
        strategy = wanted.aggregation_strategy or AggregationStrategy.NONE
        ignored = wanted.ignore_labels
        if ignored is None:
            # Whoever gives words wants to know of each.
            ignored = () if source.split and strategy is AggregationStrategy.NONE else _NO_ENTITY
        return self._finder.find(self.probabilities(scores), source, strategy, ignored)

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers | ClassScores:
        match options.output:
            case Output.LABELS:
                return Numbers(scores.argmax(axis=-1)[None])
            case Output.PROBABILITIES:
                return ClassScores(self.probabilities(scores), _PROBABILITY_DECIMALS)
            case Output.RAW_LOGITS:
                return ClassScores(scores, None)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        return (-1, -1)

    def outputs(self, options: Options) -> list[TensorSpec]:
        offsets = [_OFFSETS] if options.offsets else []
        if options.answer.records:
            columns = {"label": "BYTES", "score": "FP32", "text": "BYTES", "start": "INT64", "end": "INT64"}
            return [*(TensorSpec(name, datatype, (-1, -1)) for name, datatype in columns.items()), *offsets]
        labels = options.output is Output.LABELS
        datatype, shape = ("INT64", (-1, 1, -1)) if labels else ("BYTES", (-1, -1))
        return [TensorSpec("output-0", datatype, shape), *offsets]

    def named_outputs(self) -> list[TensorSpec]:
        return [*super().named_outputs(), _OFFSETS]


class FillMask(ClassificationHead):
    """The most likely token at every mask of a text, decoded together."""

    auto_class = AutoModelForMaskedLM
    accepts_pairs = True
    rows = Rows.MASKS
    answer_options = frozenset({"top_k", "targets"})
    reading_options = _TRUNCATION | {"stride"}

    def prepare(self) -> None:
        if self.tokenizer.mask_token_id is None:
            raise ModelLoadError("the tokenizer has no mask token, so it cannot do fill_mask")
        self._vocabulary = self.tokenizer.get_vocab()

    def check(self, text: TokenizedText, wanted: AnswerOptions) -> None:
        super().check(text, wanted)
        masks = len(self._find_masks(text))
        if not masks:
            cut = f" in its first {len(text.input_ids)} tokens, to which it was truncated" if text.truncated else ""
            raise InputError(f"it has no mask{cut}: write {self.tokenizer.mask_token} where a word is to be filled in")
        sequences = masks * (wanted.top_k or len(wanted.targets) or _TOP_TOKENS)
        if wanted.records and sequences * max(len(text.input_ids), _USUAL_TOKENS) > _MOST_SEQUENCES * _USUAL_TOKENS:
            raise InputError(
                f"its {masks} masks and top_k {wanted.top_k} make more than the {_MOST_SEQUENCES} sequences of one text"
                + (f" (fewer for one of {len(text.input_ids)} tokens)" if len(text.input_ids) > _USUAL_TOKENS else "")
            )

    def output(self, scores: NDArray[np.float32], options: Options) -> Text | VocabularyScores:
        match options.output:
            case Output.LABELS:
                return Text(str(self.tokenizer.decode(scores.argmax(axis=-1))))
            case Output.PROBABILITIES:
                return VocabularyScores(self.probabilities(scores), _PROBABILITY_DECIMALS)
            case Output.RAW_LOGITS:
                return VocabularyScores(scores, None)

    def check_options(self, options: Options) -> None:
        self._find_targets(options.answer.targets)

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[Reading]:
        """As every head; windows are left out whose masks, if any, other windows see more around."""
        readings = super().tokenize(tokenizer, texts, options, first_position)
        return [reading.keep(self._has_own_mask) if reading.own else reading for reading in readings]

    def _has_own_mask(self, window: TokenizedText, own: NDArray[np.bool_]) -> bool:
        return bool(own[self._find_masks(window)].any())

    def gather(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> NDArray[np.float32]:
        """The scores of every mask from the window that sees most around it: float32 [masks, vocabulary]."""
        windows = zip(parts, reading.sequences, reading.own, strict=True)
        return np.concatenate([part[own[self._find_masks(window)]] for part, window, own in windows])

    def tabulate(self, scores: NDArray[np.float32], reading: Reading, wanted: AnswerOptions) -> Table | None:
        """`score`, `token` (its id), `token_str` and `sequence` (the text with it) of the best tokens at every mask.

        As `transformers.FillMaskPipeline`: of several masks only one is filled in a sequence, and the others show.
        """
        if not wanted.records:
            return None
        text = reading.text
        allowed = self._find_targets(wanted.targets)
        values = self.probabilities(scores)
        if allowed is not None:
            values = values[:, allowed]
        top_k = wanted.top_k or (_TOP_TOKENS if allowed is None else len(allowed))
        best = _argtop(values, top_k)
        tokens = best if allowed is None else allowed[best]
        masks = self._find_masks(text)
        sequences = []
        for mask, candidates in zip(masks, tokens.tolist(), strict=True):
            ids = text.input_ids.copy()
            for token in candidates:
                ids[mask] = token
                shown = ids[ids != self.tokenizer.pad_token_id]
                sequences.append(str(self.tokenizer.decode(shown, skip_special_tokens=len(masks) == 1)))
        return Table(
            {
                "score": np.take_along_axis(values, best, axis=-1),
                "token": tokens,
                "token_str": self._names(tokens),
                "sequence": np.array(sequences, dtype=object).reshape(tokens.shape),
            }
        )

    def _find_masks(self, text: TokenizedText) -> NDArray[np.int64]:
        """Where they are among the tokens: int64 [masks]."""
        return np.flatnonzero(text.input_ids == self.tokenizer.mask_token_id)

    def _find_targets(self, targets: Sequence[str]) -> NDArray[np.int64] | None:
        """Their ids; None where there are none.

        Raises:
            InputError: one is no token.
        """
        if not targets:
            return None
        unknown = [target for target in targets if target not in self._vocabulary]
        if unknown:
            raise InputError(
                f"targets has {unknown[0]!r}, which is no token of the vocabulary"
                f" (as the tokenizer splits it: {', '.join(self.tokenizer.tokenize(unknown[0])[:5])})"
            )
        return np.array([self._vocabulary[target] for target in dict.fromkeys(targets)], dtype=np.int64)

    def count_scores(self, text: TokenizedText) -> int:
        return len(self._find_masks(text)) * self.classes

    def class_name(self, index: int) -> str:
        return str(self.tokenizer.decode([index]))

    @property
    def properties(self) -> dict[str, str]:
        return {"mask_token": str(self.tokenizer.mask_token)}

    @property
    def classes(self) -> int:
        return int(self.config.vocab_size)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """[texts, masks]"""
        return (-1, -1)

    def outputs(self, options: Options) -> list[TensorSpec]:
        if options.answer.records:
            columns = {"score": "FP32", "token": "INT64", "token_str": "BYTES", "sequence": "BYTES"}
            return [TensorSpec(name, datatype, (-1, -1, -1)) for name, datatype in columns.items()]
        if options.output is Output.LABELS:
            return [TensorSpec("output-0", "BYTES", (-1,))]
        return [TensorSpec("output-0", "BYTES", (-1, -1, self.classes))]


class TextEmbedding(Head):
    """One vector a text, pooled as the model's sentence-transformers files say."""

    auto_class = AutoModel
    unused_weights = ("pooler.",)
    answer_options = frozenset({"dimensions", "prompt_name"})

    def prepare(self) -> None:
        files = load_sentence_transformer(self.arguments, self.device)
        self._files = files
        self._pooling = files.pooling
        self.lower_case = files.lower_case
        self.recommended_length = files.max_length
        self.pooled_width = self._dimensions = len(
            self._pooling.pool(torch.zeros(1, self.config.hidden_size, device=self.device))
        )

    def read(self, rows: Tensor, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        """Float32 [1, dimensions] each; a predictor may have pooled them, then `rows` is [texts, 1, dimensions]."""
        if rows.ndim == 3:
            return list(_to_numpy(rows))
        vectors = torch.stack([self._pooling.pool(hidden) for hidden in torch.split(rows, list(counts))])
        return list(_to_numpy(vectors)[:, None])

    @property
    def width(self) -> int:
        return int(self.config.hidden_size)

    def check_options(self, options: Options) -> None:
        dimensions, name = options.answer.dimensions, options.answer.prompt_name
        if dimensions is not None and dimensions > self._dimensions:
            raise InputError(f"dimensions is {dimensions}; the model's vectors have {self._dimensions}", "dimensions")
        prompts = self._files.prompts
        if name is not None and name not in prompts:
            known = f"there are {', '.join(prompts)}" if prompts else "the model has none"
            raise InputError(f"there is no prompt {name!r}: {known}", "prompt_name")
        if name is not None and prompts[name] and not self._files.pools_prompts:
            raise InputError("the model pools without the prompt, which this server does not do", "prompt_name")

    def prompt(self, wanted: AnswerOptions) -> str:
        name = wanted.prompt_name or self._files.default_prompt_name
        return self._files.prompts[name] if name is not None else ""

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers:
        [vector] = scores
        if options.answer.dimensions is None:
            return Numbers(vector)
        vector = vector[: options.answer.dimensions]
        if self._pooling.normalize:
            # As torch's `normalize`, whose epsilon this is.
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        return Numbers(vector)

    def outputs(self, options: Options) -> list[TensorSpec]:
        return [TensorSpec("output-0", "FP32", (-1, options.answer.dimensions or self._dimensions))]

    @property
    def properties(self) -> dict[str, str]:
        prompts = ",".join(self._files.prompts)
        normalized = str(self._pooling.normalize).lower()
        return {
            "dimensions": str(self._dimensions),
            "normalized": normalized,
            **({"prompts": prompts} if prompts else {}),
        }


class ZeroShotClassification(SequenceClassification):
    """Scores of labels that the request names, by a model that says whether one text follows from another (NLI).

    Each label makes a hypothesis of its own, and the text with it one pair for the model. Without labels the answer is
    that of the model's own classes. Scores are those of `transformers.ZeroShotClassificationPipeline`.
    """

    answer_options = SequenceClassification.answer_options | {"candidate_labels", "hypothesis_template", "multi_label"}

    def prepare(self) -> None:
        super().prepare()
        names = [self.class_name(index).lower() for index in range(self.classes)]
        found = [index for index, name in enumerate(names) if name.startswith(ENTAILMENT)]
        if not found or self.classes < 2:
            raise ModelLoadError(
                f"zero-shot classification needs a class named {ENTAILMENT}; the model's are {', '.join(names)}"
            )
        self._entailment = found[0]
        self._contradiction = -1 if self._entailment == 0 else 0

    def check_options(self, options: Options) -> None:
        if options.answer.candidate_labels and options.answer.function_to_apply is not None:
            raise InputError(
                "function_to_apply is of the model's own classes, and candidate_labels asks for others: leave one out",
                "function_to_apply",
            )
        if options.answer.candidate_labels and options.reading.stride is not None:
            raise InputError("stride is of the model's own classes: leave out stride or candidate_labels", "stride")
        if options.answer.candidate_labels and options.tensors & _OF_CLASSES:
            raise InputError(
                f"the outputs {', '.join(sorted(_OF_CLASSES))} are of the model's own classes: leave out "
                "candidate_labels, or ask for label and score"
            )

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[Reading]:
        """A sequence for every label."""
        labels = options.answer.candidate_labels
        if not labels:
            return super().tokenize(tokenizer, texts, options, first_position)
        for position, premise in enumerate(texts, first_position):
            if premise.pair is not None:
                raise InputError(f"text {position} is a pair, and candidate_labels make one of every text")
        hypotheses = [options.answer.hypothesis_template.replace("{}", label) for label in labels]
        pairs = [TextInput(premise.text, hypothesis) for premise in texts for hypothesis in hypotheses]
        positions = [position for position in range(first_position, first_position + len(texts)) for _ in labels]
        made = tokenizer.tokenize(pairs, False, reading=options.reading, positions=positions)
        readings = []
        for start in range(0, len(made), len(labels)):
            own = made[start : start + len(labels)]
            left_out = max(reading.left_out for reading in own)
            readings.append(Reading(own[0].text, [reading.text for reading in own], left_out=left_out))
        return readings

    def count_sequences(self, options: Options) -> int:
        return max(1, len(options.answer.candidate_labels))

    def gather(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> NDArray[np.float32]:
        """As for every classification, or the logits of every label: float32 [labels, classes]."""
        return np.concatenate(parts) if options.answer.candidate_labels else super().gather(parts, reading, options)

    def tabulate(self, scores: NDArray[np.float32], reading: Reading, wanted: AnswerOptions) -> Table | None:
        """`label` and `score` of every label, best first."""
        labels = wanted.candidate_labels
        if not labels:
            return super().tabulate(scores, reading, wanted)
        if wanted.multi_label or len(labels) == 1:
            values = _softmax(scores[:, [self._contradiction, self._entailment]])[:, 1]
        else:
            values = _softmax(scores[:, self._entailment])
        best = np.argsort(-values, kind="stable")[: wanted.top_k]
        if wanted.threshold is not None:
            best = best[values[best] >= wanted.threshold]
        return Table({"label": np.array(labels, dtype=object)[best], "score": values[best]})

    def _lists(self, wanted: AnswerOptions) -> bool:
        return bool(wanted.candidate_labels) or super()._lists(wanted)


class QuestionAnswering(Head):
    """Where in a context the answer to a question is; a pair is a question and a context."""

    auto_class = AutoModelForQuestionAnswering
    accepts_pairs = needs_pairs = True
    answer_options = frozenset({"top_k", "max_answer_len", "handle_impossible_answer"})
    reading_options = frozenset({"stride"})

    def prepare(self) -> None:
        # What models are trained with and `transformers`' pipeline reads at a time.
        self.recommended_length = 384

    @property
    def width(self) -> int:
        return 2

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[Reading]:
        """A long context is always read to its end."""
        stride = options.reading.stride
        if stride is None:
            stride = min(_USUAL_STRIDE, tokenizer.max_length // 3)
        positions = range(first_position, first_position + len(texts))
        return tokenizer.tokenize(texts, False, True, reading=ReadingOptions(stride=stride), positions=positions)

    def reads_to_end(self, options: Options) -> bool:
        return True

    def check(self, text: TokenizedText, wanted: AnswerOptions) -> None:
        super().check(text, wanted)
        if text.source is None:
            raise InputError("it is given as tokens, and an answer is a part of a text")
        if text.source.special.all():
            raise InputError("its context is empty")

    def gather(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> NDArray[np.float32]:
        """Float32 [tokens of all windows, 2]."""
        return np.concatenate(parts)

    def tabulate(self, scores: NDArray[np.float32], reading: Reading, wanted: AnswerOptions) -> Table:
        """`answer`, `score`, `start` and `end`; lists of them for `top_k`."""
        sources = [window.source for window in reading.sequences if window.source is not None]
        windows = np.split(scores, np.cumsum([len(source.special) for source in sources])[:-1])
        table = find_answers(windows, sources, wanted)
        if wanted.top_k is not None:
            return table
        return Table({name: column.reshape(()) for name, column in table.columns.items()})

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers:
        raise AssertionError("its answers are records")

    def outputs(self, options: Options) -> list[TensorSpec]:
        shape = (-1,) if options.answer.top_k is None else (-1, -1)
        columns = {"answer": "BYTES", "score": "FP32", "start": "INT64", "end": "INT64"}
        return [TensorSpec(name, datatype, shape) for name, datatype in columns.items()]


HEADS: dict[Task, type[Head]] = {
    Task.FILL_MASK: FillMask,
    Task.QUESTION_ANSWERING: QuestionAnswering,
    Task.SEQUENCE_CLASSIFICATION: SequenceClassification,
    Task.TEXT_EMBEDDING: TextEmbedding,
    Task.TEXT_RANKING: TextRanking,
    Task.TOKEN_CLASSIFICATION: TokenClassification,
    Task.ZERO_SHOT_CLASSIFICATION: ZeroShotClassification,
}


def _argtop(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Where the `k` highest of each row are, highest first."""
    k = min(k, values.shape[-1])
    unsorted = np.argpartition(-values, k - 1, axis=-1)[..., :k]
    order = np.argsort(-np.take_along_axis(values, unsorted, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(unsorted, order, axis=-1)


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float32] = exponents / exponents.sum(axis=-1, keepdims=True)
    return probabilities


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    # The form by tanh cannot overflow.
    probabilities: NDArray[np.float32] = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return probabilities
