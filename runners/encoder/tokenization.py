"""Texts to token ids: truncation, windows, pairs and spans, for a `transformers` fast tokenizer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from runners.core.answer_options import OverflowOptions
from runners.core.errors import InputError, with_text_position
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, PromptOptions
from runners.core.predictions import TextInput
from runners.core.tokens import TokenizedPrompt, TokenizeOptions, check_token_ids
from runners.encoder.fast_tokenizer import TextEncoder
from runners.encoder.sequences import EncodedText, TokenizedText, TokenSpans, find_word_continuations, join_windows

TRUNCATE = OverflowOptions()


class TextTokenizer:
    """Tokenizes batches of texts without padding, in one thread; releases the GIL while it works."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        add_special_tokens: bool,
        lower_case: bool = False,
        max_characters: int = 2**19,
    ) -> None:
        """
        Args:
            tokenizer: a fast tokenizer; its truncation settings are replaced.
            max_length: longest sequence in tokens, special tokens included.
            add_special_tokens: whether to add [CLS], [SEP] and the like.
            lower_case: lower-case texts first, as sentence-transformers does on request; special tokens in a text stay.
            max_characters: how many characters of a truncated text are tokenized at most.

        Raises:
            ArgumentsError: `max_length` leaves no room for a text beside the special tokens.
        """
        self._encoder = TextEncoder(tokenizer, max_length, add_special_tokens, lower_case, max_characters)
        self.max_length = max_length
        self._special_of_pair = self._encoder.special_of_pair
        self._unknown = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        self._encoded_second_texts: tuple[tuple[str, ...], list[Encoding]] = ((), [])
        # WordPiece marks the tokens that continue a word.
        self._marks_continuations = bool(getattr(self._encoder.model, "continuing_subword_prefix", None))

    def copy(self) -> TextTokenizer:
        """A tokenizer for another thread; both share one vocabulary."""
        other = copy.copy(self)
        other._encoder = self._encoder.copy()
        return other

    @property
    def keeps_words(self) -> bool:
        """Whether a thread that has tokenized keeps words of the texts until the thread ends."""
        return self._encoder.keeps_words

    def tokenize(
        self,
        texts: Sequence[TextInput],
        offsets: bool,
        token_spans: bool = False,
        prompt: str = "",
        overflow: OverflowOptions = TRUNCATE,
        first_position: int = 0,
        form: PromptOptions = DEFAULT_PROMPT_OPTIONS,
    ) -> list[EncodedText]:
        """Tokenize texts and pairs; of a pair the longer text is truncated first.

        Args:
            offsets: whether to return the offsets of tokens.
            token_spans: whether to return token spans; requires that there is no prompt. A text that is split into
                words always has them.
            prompt: put in front of every text.
            overflow: what to do with texts that are too long.
            first_position: position of the first text in its request, for errors.
            form: its `truncate_to` is a length that is less than the model's, and without windows.

        Raises:
            InputError: a text is too long; the message names its position.
        """
        is_pair = form.truncate_to is not None and any(text.pair is not None for text in texts)
        with self._encoder.configured(overflow.truncation_side, form.truncate_to, form.add_special_tokens, is_pair):
            return self._tokenize(texts, offsets, token_spans, prompt, overflow, first_position)

    def _tokenize(
        self,
        texts: Sequence[TextInput],
        offsets: bool,
        token_spans: bool,
        prompt: str,
        overflow: OverflowOptions,
        first_position: int,
    ) -> list[EncodedText]:
        positions = range(first_position, first_position + len(texts))
        whole = {position: item for position, item in zip(positions, texts, strict=True) if item.words is None}
        split = {position: item for position, item in zip(positions, texts, strict=True) if item.words is not None}
        by_position = self._tokenize_whole(whole, offsets, token_spans, prompt) | self._tokenize_words(split, offsets)
        tokenized = [by_position[position] for position in positions]
        if overflow.only_truncates:
            return [EncodedText(text, [text]) for text in tokenized]
        encoded_texts = []
        for position, (item, text) in enumerate(zip(texts, tokenized, strict=True), first_position):
            with with_text_position(position):
                encoded_texts.append(self._handle_overflow(item, text, offsets, token_spans, prompt, overflow))
        return encoded_texts

    def list_tokens(self, text: str, options: TokenizeOptions) -> TokenizedPrompt:
        """All tokens of a text; it is not truncated."""
        encoding = self._encoder.encode_whole(text, add_special_tokens=options.add_special_tokens)
        if not options.details:
            return TokenizedPrompt(encoding.ids)
        return TokenizedPrompt(
            encoding.ids,
            text,
            self._encoder.strings(encoding.ids),
            list(map(bool, encoding.special_tokens_mask)),
            np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2),
        )

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of token ids.

        Raises:
            InputError: an id is outside of the vocabulary.
        """
        check_token_ids(ids, len(self._token_lengths))
        return self._encoder.decode(ids, skip_special_tokens)

    def tokenize_contexts(
        self, texts: Sequence[TextInput], stride: int | None, default_stride: int, first_position: int = 0
    ) -> list[EncodedText]:
        """Tokenize questions with their contexts, with token spans.

        A long context is split into windows. Each window comes with the whole question.

        Args:
            stride: how many tokens neighbouring windows share; None for `default_stride`, or less with a long question.
            first_position: position of the first text in its request, for errors.

        Raises:
            InputError: a question leaves too little room for its context, or for windows of this stride; the message
                names its position.
        """
        tokenized = self._tokenize_whole(dict(enumerate(texts, first_position)), False, True, "")
        encoded_texts = []
        for item, (position, text) in zip(texts, tokenized.items(), strict=True):
            if not text.truncated:
                encoded_texts.append(EncodedText(text, [text]))
                continue
            prepared = self._prepare(item, "")
            with with_text_position(position):
                room = self._room_for_context(self._encode_whole(item, prepared).sequence_ids.count(0))
                shared = min(default_stride, room // 2) if stride is None else stride
                encoded_texts.append(
                    self._make_windows(
                        item, prepared, room, of_second=True, offsets=False, token_spans=True, stride=shared
                    )
                )
        return encoded_texts

    def _room_for_context(self, question_tokens: int) -> int:
        """How many tokens of a context fit next to a question.

        Raises:
            InputError: there are too few.
        """
        room = self.max_length - question_tokens - self._special_of_pair
        if room < self._min_room:
            most_question_tokens = self.max_length - self._special_of_pair - self._min_room
            raise InputError(
                f"its question has {question_tokens} tokens; beside a context that does not fit into the model's "
                f"{self.max_length} tokens it may have {most_question_tokens}"
            )
        return room

    def _handle_overflow(
        self,
        item: TextInput,
        text: TokenizedText,
        offsets: bool,
        token_spans: bool,
        prompt: str,
        overflow: OverflowOptions,
    ) -> EncodedText:
        """Split a text that is too long into windows, refuse it, or count its truncated tokens."""
        if not text.truncated:
            return EncodedText(text, [text])
        prepared = self._prepare(item, prompt)
        whole = self._encode_whole(item, prepared)
        if overflow.stride is not None:
            counts = [whole.sequence_ids.count(0), whole.sequence_ids.count(1)]
            room = self.max_length - len(whole) + max(counts)
            return self._make_windows(
                item, prepared, room, counts[1] > counts[0], offsets, token_spans, overflow.stride
            )
        if not overflow.truncation:
            raise self._too_long(len(whole))
        return EncodedText(text, [text], truncated_tokens=len(whole) - len(text.input_ids))

    @property
    def _min_room(self) -> int:
        """The fewest tokens of the text in a window; this bounds how many windows a text has."""
        return max(1, self.max_length // 4)

    def _make_windows(
        self,
        item: TextInput,
        prepared: str | tuple[str, str],
        room: int,
        of_second: bool,
        offsets: bool,
        token_spans: bool,
        stride: int,
    ) -> EncodedText:
        """Split a long text into overlapping windows; of a pair, split one text and repeat the other in each window.

        Args:
            room: how many tokens of the split text fit into a window.
            of_second: whether the split text is the second of a pair.
        """
        # Each window must add at least as many tokens as it repeats.
        if room < (least := max(self._min_room, 2 * stride)):
            beside = "the other text" if isinstance(prepared, tuple) else "the special tokens"
            raise InputError(
                f"stride {stride} needs windows of at least {least} tokens, but only {max(0, room)} of "
                f"{self.max_length} remain beside {beside}",
                "stride",
            )
        strategy = "only_second" if of_second else "only_first"
        first = self._encode_whole(item, prepared, {"stride": stride, "strategy": strategy, "direction": "right"})
        encodings = [first, *first.overflowing]
        windows = [replace(_to_tokenized(encoding, offsets or token_spans), truncated=False) for encoding in encodings]
        if token_spans or item.words is not None:
            windows = [
                replace(window, token_spans=self._find_token_spans(item, encoding, window))
                for window, encoding in zip(windows, encodings, strict=True)
            ]
        if isinstance(prepared, tuple):
            return EncodedText(windows[0], windows)
        special = [np.array(encoding.special_tokens_mask, dtype=bool) for encoding in encodings]
        return join_windows(windows, special, stride)

    def _encode_whole(
        self, item: TextInput, prepared: str | tuple[str, str], settings: Mapping[str, Any] | None = None
    ) -> Encoding:
        """All of a text, truncated by `settings`, or not at all."""
        if item.words is not None:
            return self._encoder.encode_words_whole(item.words, settings)
        return self._encoder.encode_whole(prepared, settings)

    def _tokenize_whole(
        self, texts: Mapping[int, TextInput], offsets: bool, token_spans: bool, prompt: str
    ) -> dict[int, TokenizedText]:
        """Truncated texts and pairs, by their positions."""
        with_offsets = offsets or token_spans
        prepared = [self._prepare(item, prompt) for item in texts.values()]
        encodings = self._encoder.encode(prepared, with_offsets, [*texts])
        tokenized = {
            position: _to_tokenized(encoding, with_offsets) for position, encoding in zip(texts, encodings, strict=True)
        }
        if not token_spans:
            return tokenized
        return {
            position: replace(text, token_spans=self._find_token_spans(texts[position], encoding, text))
            for (position, text), encoding in zip(tokenized.items(), encodings, strict=True)
        }

    def _tokenize_words(self, texts: Mapping[int, TextInput], offsets: bool) -> dict[int, TokenizedText]:
        """Truncated texts that are split into words, by their positions."""
        encodings = self._encoder.encode_words([item.words or () for item in texts.values()], [*texts])
        tokenized = [_to_tokenized(encoding, offsets) for encoding in encodings]
        return {
            position: replace(text, token_spans=self._find_token_spans(item, encoding, text))
            for (position, item), encoding, text in zip(texts.items(), encodings, tokenized, strict=True)
        }

    def _find_token_spans(self, item: TextInput, encoding: Encoding, tokenized: TokenizedText) -> TokenSpans:
        special = np.array(encoding.special_tokens_mask, dtype=bool)
        if item.words is not None:
            # All tokens of a word have the word's position.
            words = _word_positions(encoding)
            spans = np.stack([words, words + 1], axis=1)
            return TokenSpans(item.words, spans, special, find_word_continuations(words, special))
        offsets = tokenized.offsets
        assert offsets is not None
        if item.pair is not None:
            special = np.array([sequence != 1 for sequence in encoding.sequence_ids], dtype=bool)
            continues = find_word_continuations(_word_positions(encoding), special)
            return TokenSpans(item.pair, offsets, special, continues)
        return TokenSpans(item.text, offsets, special, self._find_continuations(item.text, tokenized, offsets))

    def _find_continuations(self, text: str, tokenized: TokenizedText, offsets: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which tokens continue a word, by the rule of `transformers.TokenClassificationPipeline`: bool [tokens]."""
        if self._marks_continuations:
            continues = self._token_lengths[tokenized.input_ids] != offsets[:, 1] - offsets[:, 0]
        else:
            starts = offsets[:, 0].tolist()
            continues = np.array([start > 0 and " " not in text[start - 1 : start + 1] for start in starts], dtype=bool)
        return np.asarray(continues & (tokenized.input_ids != self._unknown))

    @cached_property
    def _token_lengths(self) -> NDArray[np.int64]:
        """How many characters each token of the vocabulary has, its marks included: int64 [vocabulary]."""
        vocabulary = self._encoder.vocabulary
        lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        lengths[list(vocabulary.values())] = list(map(len, vocabulary))
        return lengths

    def _prepare(self, item: TextInput, prompt: str) -> str | tuple[str, str]:
        return prompt + item.text if item.pair is None else (prompt + item.text, item.pair)

    def cross(
        self, texts: Sequence[str], second_texts: Sequence[str], overflow: OverflowOptions, first_position: int
    ) -> list[EncodedText]:
        """Pair every text with each of `second_texts`; each is tokenized once, and only `texts` are truncated.

        Args:
            overflow: what to do with texts that are too long; they are never split into windows.
            first_position: position of the first text in its request, for errors.

        Returns:
            For each text its pairs, one sequence for each of `second_texts`.

        Raises:
            InputError: one of `second_texts` takes more than half of the model's length, or a text is too long.
        """
        room = self.max_length - self._special_of_pair
        second_encodings = self._encode_second_texts(tuple(second_texts))
        for second, encoding in zip(second_texts, second_encodings, strict=True):
            if len(encoding) > self.max_length // 2 or len(encoding) >= room:
                raise InputError(
                    f"{second[:40]!r}... has {len(encoding)} tokens, more than half of the {self.max_length} that the "
                    "model takes"
                )
        encoded_texts = []
        with self._encoder.configured(overflow.truncation_side):
            for position, text in enumerate(texts, first_position):
                with with_text_position(position):
                    encoded_texts.append(self._pair_with_each(text, second_encodings, overflow))
        return encoded_texts

    def _pair_with_each(
        self, text: str, second_encodings: Sequence[Encoding], overflow: OverflowOptions
    ) -> EncodedText:
        """The pairs of a text with each of the second texts, which is never truncated."""
        encoding, _ = self._encoder.encode_part(text, to_end=not overflow.only_truncates)
        length = len(encoding)
        # One token more than fits, so that the pair is marked as truncated.
        kept_encoding = self._encoder.keep(encoding, self.max_length + 1)
        pairs = [
            _to_tokenized(joined, False) for joined in self._encoder.join_with_each(kept_encoding, second_encodings)
        ]
        truncated_tokens = 0
        if not overflow.only_truncates and any(pair.truncated for pair in pairs):
            tokens = length + max(map(len, second_encodings)) + self._special_of_pair
            truncated_tokens = tokens - self.max_length
            if not overflow.truncation:
                raise self._too_long(tokens)
        return EncodedText(pairs[0], pairs, truncated_tokens=truncated_tokens)

    def _encode_second_texts(self, second_texts: tuple[str, ...]) -> list[Encoding]:
        """Cached for one list of texts: the slices of a request, which share one, are tokenized in a row."""
        if self._encoded_second_texts[0] != second_texts:
            self._encoded_second_texts = (second_texts, self._encoder.encode_parts(second_texts))
        return self._encoded_second_texts[1]

    def _too_long(self, tokens: int) -> InputError:
        return InputError(
            f"it has {tokens} tokens, the model takes {self.max_length}, and truncation is false", "truncation"
        )


def _word_positions(encoding: Encoding) -> NDArray[np.int64]:
    """The position of each token's word in its text: int64 [tokens], 0 for special tokens."""
    return np.array([0 if word is None else word for word in encoding.word_ids], dtype=np.int64)


def _to_tokenized(encoding: Encoding, offsets: bool) -> TokenizedText:
    return TokenizedText(
        input_ids=np.array(encoding.ids, dtype=np.int64),
        token_type_ids=np.array(encoding.type_ids, dtype=np.int64),
        offsets=np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) if offsets else None,
        truncated=bool(encoding.overflowing),
    )
