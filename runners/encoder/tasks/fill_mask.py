"""Fill-mask."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForMaskedLM

from runners.core.answer_options import AnswerOptions
from runners.core.errors import InputError, ModelLoadError
from runners.core.predictions import (
    MAIN,
    AnswerForm,
    ElementType,
    Options,
    OutputSpec,
    Records,
    Text,
    TextInput,
    VocabularyScores,
)
from runners.encoder.forward import TokenSelection
from runners.encoder.sequences import EncodedText, TokenizedText
from runners.encoder.tasks.encoder_task import PROBABILITY_DECIMALS, TRUNCATION, ClassificationTask
from runners.encoder.tokenization import TextTokenizer

# The default of `transformers.FillMaskPipeline`.
_TOP_TOKENS = 5
# Each is decoded in the device thread, which takes a microsecond per token: half a second in total.
_MOST_SEQUENCES = 10_000
_TYPICAL_TOKENS = 52
# How much of an unknown target is tokenized for the error; other requests wait meanwhile.
_SHOWN_CHARACTERS = 100


class FillMask(ClassificationTask):
    """Finds the most likely tokens at every mask of a text."""

    auto_class = AutoModelForMaskedLM
    accepts_pairs = True
    selection = TokenSelection.MASKS
    answer_options = frozenset({"top_k", "targets"})
    overflow_options = TRUNCATION | {"stride"}

    def prepare(self) -> None:
        if self.tokenizer.mask_token_id is None:
            raise ModelLoadError("the tokenizer has no mask token, so it cannot do fill_mask")
        self._vocabulary = self.tokenizer.get_vocab()

    @property
    def needed_tokens(self) -> Collection[int]:
        return (int(self.tokenizer.mask_token_id),)

    def check(self, encoded: EncodedText, answer_options: AnswerOptions) -> None:
        super().check(encoded, answer_options)
        text = encoded.text
        masks = len(self._find_masks(text))
        if not masks:
            cut = f" in the {len(text.input_ids)} tokens to which it was truncated" if text.truncated else ""
            raise InputError(f"it has no mask{cut}: write {self.tokenizer.mask_token} where a word is to be filled in")
        if answer_options.asks_for_records:
            self._check_sequences(masks, len(text.input_ids), answer_options)

    def _check_sequences(self, masks: int, tokens: int, answer_options: AnswerOptions) -> None:
        """
        Raises:
            InputError: too many sequences would be decoded for one text of this many tokens.
        """
        top_k = answer_options.top_k
        sequences = masks * (top_k or len(answer_options.targets) or _TOP_TOKENS)
        if sequences * max(tokens, _TYPICAL_TOKENS) > _MOST_SEQUENCES * _TYPICAL_TOKENS:
            raise InputError(
                f"its {masks} masks and top_k {top_k} make more than the {_MOST_SEQUENCES} sequences of one text"
                + (f" (fewer for one of {tokens} tokens)" if tokens > _TYPICAL_TOKENS else "")
            )

    def output(self, scores: NDArray[np.float32], options: Options) -> Text | VocabularyScores:
        match options.form:
            case AnswerForm.LABELS:
                return Text(str(self.tokenizer.decode(scores.argmax(axis=-1))))
            case AnswerForm.PROBABILITIES:
                return VocabularyScores(self.probabilities(scores), PROBABILITY_DECIMALS)
            case AnswerForm.RAW_LOGITS:
                return VocabularyScores(scores, None)

    def check_options(self, options: Options) -> None:
        self._find_targets(options.answer.targets)

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[EncodedText]:
        """See `EncoderTask.tokenize`; windows without a mask among their kept tokens are dropped."""
        encoded_texts = super().tokenize(tokenizer, texts, options, first_position)
        return [
            encoded.filter_windows(self._keeps_mask) if encoded.kept_tokens else encoded for encoded in encoded_texts
        ]

    def _keeps_mask(self, window: TokenizedText, kept: NDArray[np.bool_]) -> bool:
        return bool(kept[self._find_masks(window)].any())

    def merge_windows(
        self, parts: Sequence[NDArray[np.float32]], encoded: EncodedText, options: Options
    ) -> NDArray[np.float32]:
        """The scores of every mask, from the window with the most context around it: float32 [masks, vocabulary]."""
        windows = zip(parts, encoded.sequences, encoded.kept_tokens, strict=True)
        return np.concatenate([part[kept[self._find_masks(window)]] for part, window, kept in windows])

    def to_records(
        self, scores: NDArray[np.float32], encoded: EncodedText, answer_options: AnswerOptions
    ) -> Records | None:
        """The best tokens at every mask, as `transformers.FillMaskPipeline` returns them.

        Returns:
            `score`, `token` (its id), `token_str` and `sequence` (the text with the token), [masks, top_k] each. In a
            sequence only one mask is filled in; the other masks stay.
        """
        if not answer_options.asks_for_records:
            return None
        text = encoded.text
        allowed = self._find_targets(answer_options.targets)
        values = self.probabilities(scores)
        if allowed is not None:
            values = values[:, allowed]
        top_k = answer_options.top_k or (_TOP_TOKENS if allowed is None else len(allowed))
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
        return Records(
            {
                "score": np.take_along_axis(values, best, axis=-1),
                "token": tokens,
                "token_str": self._names(tokens),
                "sequence": np.array(sequences, dtype=object).reshape(tokens.shape),
            }
        )

    def _find_masks(self, text: TokenizedText) -> NDArray[np.int64]:
        """Positions of the masks among the tokens: int64 [masks]."""
        return np.flatnonzero(text.input_ids == self.tokenizer.mask_token_id)

    def _find_targets(self, targets: Sequence[str]) -> NDArray[np.int64] | None:
        """Token ids of the targets, int64 [targets]; None if there are no targets.

        Raises:
            InputError: a target is not one token of the vocabulary.
        """
        if not targets:
            return None
        unknown = [target for target in targets if target not in self._vocabulary]
        if unknown:
            shown = unknown[0][:_SHOWN_CHARACTERS]
            raise InputError(
                f"targets has {shown!r}{'...' * (shown != unknown[0])}, which is no token of the vocabulary"
                f" (as the tokenizer splits it: {', '.join(self._split(shown)[:5]) or 'nothing'})"
            )
        return np.array([self._vocabulary[target] for target in dict.fromkeys(targets)], dtype=np.int64)

    def _split(self, word: str) -> list[str]:
        # Calling the `transformers` tokenizer would change the settings of its backend, which tokenizes texts.
        tokens: list[str] = self.tokenizer.backend_tokenizer.encode(word, add_special_tokens=False).tokens
        return tokens

    def count_scores(self, text: TokenizedText) -> int:
        return len(self._find_masks(text)) * self.classes

    def class_name(self, index: int) -> str:
        return str(self.tokenizer.decode([index]))

    @property
    def properties(self) -> dict[str, str]:
        return {"mask_token": str(self.tokenizer.mask_token)}

    @property
    def classes(self) -> int:
        return int(self.config.get_text_config().vocab_size)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """[texts, masks]."""
        return (-1, -1)

    def outputs(self, options: Options) -> list[OutputSpec]:
        if options.answer.asks_for_records:
            columns: dict[str, ElementType] = {
                "score": np.float32, "token": np.int64, "token_str": str, "sequence": str
            }  # fmt: skip
            return [OutputSpec(name, dtype, (-1, -1, -1)) for name, dtype in columns.items()]
        if options.form is AnswerForm.LABELS:
            return [OutputSpec(MAIN, str, (-1,))]
        return [OutputSpec(MAIN, np.float32, (-1, -1, self.classes), VocabularyScores)]


def _argtop(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Positions of the `k` highest values of each row, highest first: int64 [rows, k]."""
    k = min(k, values.shape[-1])
    unsorted = np.argpartition(-values, k - 1, axis=-1)[..., :k]
    order = np.argsort(-np.take_along_axis(values, unsorted, axis=-1), axis=-1, kind="stable")
    return np.take_along_axis(unsorted, order, axis=-1)
