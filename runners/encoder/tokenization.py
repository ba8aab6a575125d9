"""Texts to token ids, straight through the Rust tokenizer of a `transformers` fast tokenizer."""

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
from runners.core.predictions import TextInput
from runners.encoder.fast_tokenizer import TextEncoder
from runners.encoder.sequences import Reading, Source, TokenizedText, find_carrying_on, join_windows

TRUNCATE = OverflowOptions()


class TextTokenizer:
    """Tokenizes batches of texts without padding, in one thread; frees the GIL while it works."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        add_special_tokens: bool,
        lower_case: bool = False,
        most_characters: int = 2**19,
    ) -> None:
        """
        Args:
            tokenizer: a fast tokenizer; its truncation settings are taken over.
            max_length: longest text in tokens, special ones included.
            add_special_tokens: whether to add [CLS], [SEP] and their like.
            lower_case: lower-case texts first, as sentence-transformers can be told to: special tokens in them stay.
            most_characters: how many characters of a text that is truncated are tokenized at most.

        Raises:
            ArgumentsError: `max_length` leaves no room for a text beside the special tokens.
        """
        self._encoder = TextEncoder(tokenizer, max_length, add_special_tokens, lower_case, most_characters)
        self.max_length = max_length
        self._special_of_pair = self._encoder.special_of_pair
        self._unknown = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        self._seconds: tuple[tuple[str, ...], list[Encoding]] = ((), [])
        # WordPiece marks the tokens that carry on a word.
        self._marks_words = bool(getattr(self._encoder.model, "continuing_subword_prefix", None))

    def copy(self) -> TextTokenizer:
        """A tokenizer for another thread; both read one vocabulary."""
        other = copy.copy(self)
        other._encoder = self._encoder.copy()
        return other

    def tokenize(
        self,
        texts: Sequence[TextInput],
        offsets: bool,
        source: bool = False,
        prompt: str = "",
        overflow: OverflowOptions = TRUNCATE,
        first_position: int = 0,
    ) -> list[Reading]:
        """Tokenize texts, the longer of a pair truncated first.

        Args:
            offsets: whether these are wanted.
            source: whether that is wanted, of texts without a prompt; it always comes with words.
            prompt: put in front of every text.
            overflow: what to do with what is too long.
            first_position: where the first text stands in its request, for errors.

        Raises:
            InputError: a text is longer than it may be; the message names its position.
        """
        positions = range(first_position, first_position + len(texts))
        whole = {position: item for position, item in zip(positions, texts, strict=True) if item.words is None}
        split = {position: item for position, item in zip(positions, texts, strict=True) if item.words is not None}
        found = self._tokenize_whole(whole, offsets, source, prompt) | self._tokenize_words(split, offsets)
        tokenized = [found[position] for position in positions]
        if overflow == TRUNCATE:
            return [Reading(text, [text]) for text in tokenized]
        readings = []
        for position, (item, text) in enumerate(zip(texts, tokenized, strict=True), first_position):
            with with_text_position(position):
                readings.append(self._read_on(item, text, offsets, source, prompt, overflow))
        return readings

    def tokenize_contexts(
        self, texts: Sequence[TextInput], stride: int | None, usual_stride: int, first_position: int = 0
    ) -> list[Reading]:
        """Tokenize questions and their contexts, with sources; long contexts in windows beside the whole question.

        Args:
            stride: how many tokens the windows of a context share.
            usual_stride: how many they share where `stride` is None, or fewer beside a long question.
            first_position: where the first text stands in its request, for errors.

        Raises:
            InputError: a question leaves too little room for its context, or for windows of this stride; the message
                names its position.
        """
        tokenized = self._tokenize_whole(dict(enumerate(texts, first_position)), False, True, "")
        readings = []
        for item, (position, text) in zip(texts, tokenized.items(), strict=True):
            if not text.truncated:
                readings.append(Reading(text, [text]))
                continue
            prepared = self._prepare(item, "")
            with with_text_position(position):
                whole = self._encode_whole(item, prepared)
                question = whole.sequence_ids.count(0)
                room = self.max_length - question - self._special_of_pair
                if room < self._least_room:
                    most = self.max_length - self._special_of_pair - self._least_room
                    raise InputError(
                        f"its question has {question} tokens; beside a context that does not fit into the model's "
                        f"{self.max_length} tokens it may have {most}"
                    )
                shared = min(usual_stride, room // 2) if stride is None else stride
                readings.append(
                    self._read_windows(item, prepared, room, of_second=True, offsets=False, source=True, stride=shared)
                )
        return readings

    def _read_on(
        self, item: TextInput, text: TokenizedText, offsets: bool, source: bool, prompt: str, options: OverflowOptions
    ) -> Reading:
        """What is done with a text that may be too long."""
        if not text.truncated:
            return Reading(text, [text])
        prepared = self._prepare(item, prompt)
        whole = self._encode_whole(item, prepared)
        if options.stride is not None:
            counts = [whole.sequence_ids.count(0), whole.sequence_ids.count(1)]
            room = self.max_length - len(whole) + max(counts)
            return self._read_windows(item, prepared, room, counts[1] > counts[0], offsets, source, options.stride)
        if not options.truncation:
            raise self._too_long(len(whole))
        return Reading(text, [text], left_out=len(whole) - len(text.input_ids))

    @property
    def _least_room(self) -> int:
        """The fewest tokens of a window; it bounds how many windows a text has."""
        return max(1, self.max_length // 4)

    def _read_windows(
        self,
        item: TextInput,
        prepared: str | tuple[str, str],
        room: int,
        of_second: bool,
        offsets: bool,
        source: bool,
        stride: int,
    ) -> Reading:
        """Split a text that is too long into windows that overlap; of a pair one text, beside all of the other.

        Args:
            room: how many tokens of the text fit into a window.
            of_second: whether the text is the second of a pair.
        """
        # Each window must add at least as many tokens as it repeats.
        if room < (least := max(self._least_room, 2 * stride)):
            beside = "the other text" if isinstance(prepared, tuple) else "the special tokens"
            raise InputError(
                f"stride {stride} needs windows of at least {least} tokens, but only {max(0, room)} of "
                f"{self.max_length} remain beside {beside}",
                "stride",
            )
        strategy = "only_second" if of_second else "only_first"
        first = self._encode_whole(item, prepared, {"stride": stride, "strategy": strategy, "direction": "right"})
        encodings = [first, *first.overflowing]
        windows = [replace(_tokenized(encoding, offsets or source), truncated=False) for encoding in encodings]
        if source or item.words is not None:
            windows = [
                replace(window, source=self._find_source(item, encoding, window))
                for window, encoding in zip(windows, encodings, strict=True)
            ]
        if isinstance(prepared, tuple):
            return Reading(windows[0], windows)
        special = [np.array(encoding.special_tokens_mask, dtype=bool) for encoding in encodings]
        return join_windows(windows, special, stride)

    def _encode_whole(
        self, item: TextInput, prepared: str | tuple[str, str], settings: Mapping[str, Any] | None = None
    ) -> Encoding:
        """A text to its end; truncated by these settings if there are some."""
        if item.words is not None:
            return self._encoder.encode_words_whole(item.words, settings)
        return self._encoder.encode_whole(prepared, settings)

    def _tokenize_whole(
        self, texts: Mapping[int, TextInput], offsets: bool, source: bool, prompt: str
    ) -> dict[int, TokenizedText]:
        """By positions."""
        located = offsets or source
        encodings = self._encoder.encode([self._prepare(item, prompt) for item in texts.values()], located, [*texts])
        tokenized = {
            position: _tokenized(encoding, located) for position, encoding in zip(texts, encodings, strict=True)
        }
        if not source:
            return tokenized
        return {
            position: replace(text, source=self._find_source(texts[position], encoding, text))
            for (position, text), encoding in zip(tokenized.items(), encodings, strict=True)
        }

    def _find_source(self, item: TextInput, encoding: Encoding, tokenized: TokenizedText) -> Source:
        special = np.array(encoding.special_tokens_mask, dtype=bool)
        if item.words is not None:
            # Tokens of one word are where it is.
            words = _words(encoding)
            return Source(item.words, np.stack([words, words + 1], axis=1), special, find_carrying_on(words, special))
        spans = tokenized.offsets
        assert spans is not None
        if item.pair is not None:
            special = np.array([sequence != 1 for sequence in encoding.sequence_ids], dtype=bool)
            return Source(item.pair, spans, special, find_carrying_on(_words(encoding), special))
        return Source(item.text, spans, special, self._find_pipeline_words(item.text, tokenized, spans))

    def _find_pipeline_words(self, text: str, tokenized: TokenizedText, spans: NDArray[np.int64]) -> NDArray[np.bool_]:
        """What carries on a word as `transformers.TokenClassificationPipeline` tells it: bool [tokens]."""
        if self._marks_words:
            continues = self._token_lengths[tokenized.input_ids] != spans[:, 1] - spans[:, 0]
        else:
            starts = spans[:, 0].tolist()
            continues = np.array([start > 0 and " " not in text[start - 1 : start + 1] for start in starts], dtype=bool)
        return np.asarray(continues & (tokenized.input_ids != self._unknown))

    def _tokenize_words(self, texts: Mapping[int, TextInput], offsets: bool) -> dict[int, TokenizedText]:
        """By positions."""
        encodings = self._encoder.encode_words([item.words or () for item in texts.values()], [*texts])
        tokenized = [_tokenized(encoding, offsets) for encoding in encodings]
        return {
            position: replace(text, source=self._find_source(item, encoding, text))
            for (position, item), encoding, text in zip(texts.items(), encodings, tokenized, strict=True)
        }

    @cached_property
    def _token_lengths(self) -> NDArray[np.int64]:
        """How many characters each token of the vocabulary has, marks included: int64 [tokens]."""
        vocabulary = self._encoder.vocabulary
        lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        lengths[list(vocabulary.values())] = list(map(len, vocabulary))
        return lengths

    def _prepare(self, item: TextInput, prompt: str) -> str | tuple[str, str]:
        return prompt + item.text if item.pair is None else (prompt + item.text, item.pair)

    def cross(
        self, texts: Sequence[str], seconds: Sequence[str], overflow: OverflowOptions, first_position: int
    ) -> list[Reading]:
        """Pair every text with each of `seconds`, tokenizing each once; only the text is truncated.

        Args:
            overflow: what to do with a text that is too long; it has no windows.
            first_position: where the first text stands in its request, for errors.

        Raises:
            InputError: one of `seconds` takes more than half of the model's length, or a text is longer than it may be.
        """
        room = self.max_length - self._special_of_pair
        seconds_encoded = self._encode_seconds(tuple(seconds))
        for second, encoding in zip(seconds, seconds_encoded, strict=True):
            if len(encoding) > self.max_length // 2 or len(encoding) >= room:
                raise InputError(
                    f"{second[:40]!r}... has {len(encoding)} tokens, more than half of the {self.max_length} that the "
                    "model takes"
                )
        readings = []
        for position, text in enumerate(texts, first_position):
            with with_text_position(position):
                encoded, _ = self._encoder.encode_part(text, to_end=overflow != TRUNCATE)
            length = len(encoded)
            # One token more than the model takes, so that the pair is marked as truncated.
            kept = self._encoder.keep(encoded, self.max_length + 1)
            pairs = [_tokenized(joined, False) for joined in self._encoder.join_with_each(kept, seconds_encoded)]
            left_out = 0
            if overflow != TRUNCATE and any(pair.truncated for pair in pairs):
                tokens = length + max(map(len, seconds_encoded)) + self._special_of_pair
                left_out = tokens - self.max_length
                if not overflow.truncation:
                    with with_text_position(position):
                        raise self._too_long(tokens)
            readings.append(Reading(pairs[0], pairs, left_out=left_out))
        return readings

    def _encode_seconds(self, seconds: tuple[str, ...]) -> list[Encoding]:
        """Those of the last call where they are the same: a request's slices follow each other."""
        if self._seconds[0] != seconds:
            self._seconds = (seconds, self._encoder.encode_parts(seconds))
        return self._seconds[1]

    def _too_long(self, tokens: int) -> InputError:
        return InputError(
            f"it has {tokens} tokens, the model takes {self.max_length}, and truncation is false", "truncation"
        )


def _words(encoding: Encoding) -> NDArray[np.int64]:
    """Which word of its text each token is of: int64 [tokens], 0 for special ones."""
    return np.array([0 if word is None else word for word in encoding.word_ids], dtype=np.int64)


def _tokenized(encoding: Encoding, offsets: bool) -> TokenizedText:
    return TokenizedText(
        input_ids=np.array(encoding.ids, dtype=np.int64),
        token_type_ids=np.array(encoding.type_ids, dtype=np.int64),
        offsets=np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2) if offsets else None,
        truncated=bool(encoding.overflowing),
    )
