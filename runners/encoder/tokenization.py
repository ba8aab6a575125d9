"""Texts to token ids, straight through the Rust tokenizer of a `transformers` fast tokenizer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from runners.answers import ReadingOptions
from runners.encoder.reading import Reading, Source, TokenizedText, find_carrying_on, join_windows
from runners.errors import ArgumentsError, InputError, naming_text
from runners.inference import TextInput

# Several times what a token of any language has on average.
_CHARACTERS_A_TOKEN = 32
TRUNCATE = ReadingOptions()


class TextTokenizer:
    """Tokenizes batches of texts without padding, in one thread; frees the GIL while it works."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        add_special_tokens: bool,
        lower_case: bool = False,
    ) -> None:
        """
        Args:
            tokenizer: a fast tokenizer; its truncation settings are taken over.
            max_length: longest text in tokens, special ones included.
            add_special_tokens: whether to add [CLS], [SEP] and their like.
            lower_case: lower-case texts first, as sentence-transformers can be told to.

        Raises:
            ArgumentsError: `max_length` leaves no room for a text beside the special tokens.
        """
        backend: Tokenizer = tokenizer.backend_tokenizer
        special = backend.num_special_tokens_to_add(True) if add_special_tokens else 0
        if max_length <= special:
            raise ArgumentsError(f"max_length {max_length} is too short: special tokens alone take up to {special}")
        backend.no_padding()
        self.max_length = max_length
        self._special_of_pair = special
        self._side: str = tokenizer.truncation_side
        self._backend = backend
        self._truncate()
        from_left = self._side == "right"
        self._long_text = max_length * _CHARACTERS_A_TOKEN if from_left else sys.maxsize
        self._many_words = max_length if from_left else sys.maxsize
        self._unknown = -1 if tokenizer.unk_token_id is None else int(tokenizer.unk_token_id)
        # WordPiece marks the tokens that carry on a word.
        self._marks_words = bool(getattr(backend.model, "continuing_subword_prefix", None))
        self._add_special_tokens = add_special_tokens
        self._lower_case = lower_case

    def tokenize(
        self,
        texts: Sequence[TextInput],
        offsets: bool,
        source: bool = False,
        prompt: str = "",
        reading: ReadingOptions = TRUNCATE,
        first_position: int = 0,
    ) -> list[Reading]:
        """Tokenize texts, the longer of a pair truncated first.

        Args:
            offsets: whether these are wanted.
            source: whether that is wanted, of texts without a prompt; it always comes with words.
            prompt: put in front of every text.
            reading: what to do with what is too long.
            first_position: where the first text stands in its request, for errors.

        Raises:
            InputError: a text is longer than it may be; the message names its position.
        """
        whole = iter(self._tokenize_whole([item for item in texts if item.words is None], offsets, source, prompt))
        split = iter(self._tokenize_words([item for item in texts if item.words is not None], offsets))
        tokenized = [next(whole if item.words is None else split) for item in texts]
        if reading == TRUNCATE:
            return [Reading(text, [text]) for text in tokenized]
        readings = []
        for position, (item, text) in enumerate(zip(texts, tokenized, strict=True), first_position):
            with naming_text(position):
                readings.append(self._read_on(item, text, offsets, source, prompt, reading))
        return readings

    def _read_on(
        self, item: TextInput, text: TokenizedText, offsets: bool, source: bool, prompt: str, options: ReadingOptions
    ) -> Reading:
        """What is done with a text that may be too long."""
        if not text.truncated:
            return Reading(text, [text])
        prepared = self._prepare(item, prompt)
        with self._truncating(None):
            whole = self._encode(item, prepared)
        if options.stride is not None:
            return self._read_windows(item, prepared, whole, offsets, source, options.stride)
        if not options.truncation:
            raise self._too_long(len(whole))
        return Reading(text, [text], left_out=len(whole) - len(text.input_ids))

    def _read_windows(
        self,
        item: TextInput,
        prepared: str | tuple[str, str],
        whole: Encoding,
        offsets: bool,
        source: bool,
        stride: int,
    ) -> Reading:
        """A text too long for the model in windows that overlap; of a pair the longer text, beside all of the other."""
        sequences = whole.sequence_ids
        counts = [sequences.count(0), sequences.count(1)]
        longer = counts.index(max(counts))
        others = len(whole) - counts[longer]
        room = self.max_length - others
        # The model must not read a text many times over, so that a window is to bring as much as it repeats, and more
        # than a few tokens.
        if room < max(1, 2 * stride, self.max_length // 4):
            beside = f", {others} of them for what stands beside it" if isinstance(prepared, tuple) else ""
            raise InputError(
                f"windows that share {stride} tokens want room for {max(1, 2 * stride, self.max_length // 4)}: the "
                f"model takes {self.max_length}{beside}, which leaves {max(0, room)}",
                "stride",
            )
        with self._truncating({"stride": stride, "strategy": "only_second" if longer else "only_first"}):
            first = self._encode(item, prepared)
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

    def _truncate(self) -> None:
        """Truncate as `tokenizer(..., truncation=True)` does."""
        self._backend.enable_truncation(self.max_length, strategy="longest_first", direction=self._side)

    @contextlib.contextmanager
    def _truncating(self, settings: Mapping[str, Any] | None) -> Iterator[None]:
        """Truncate otherwise meanwhile, from left to right; with None not at all."""
        if settings is None:
            self._backend.no_truncation()
        else:
            self._backend.enable_truncation(self.max_length, direction="right", **settings)
        try:
            yield
        finally:
            self._truncate()

    def _encode(self, item: TextInput, prepared: str | tuple[str, str]) -> Encoding:
        if item.words is not None:
            return self._encode_words([item.words])[0]
        text, pair = (prepared, None) if isinstance(prepared, str) else prepared
        return self._backend.encode(text, pair, add_special_tokens=self._add_special_tokens)

    def _tokenize_whole(
        self, texts: Sequence[TextInput], offsets: bool, source: bool, prompt: str
    ) -> list[TokenizedText]:
        inputs = [self._prepare(item, prompt) for item in texts]
        located = offsets or source
        encode = self._backend.encode_batch if located else self._backend.encode_batch_fast
        beginnings = [self._beginning(item) for item in inputs]
        encodings = encode(beginnings, add_special_tokens=self._add_special_tokens)
        for position, (item, beginning) in enumerate(zip(inputs, beginnings, strict=True)):
            if beginning is not item and not encodings[position].overflowing:
                [encodings[position]] = encode([item], add_special_tokens=self._add_special_tokens)
        tokenized = [_tokenized(encoding, located) for encoding in encodings]
        if not source:
            return tokenized
        return [
            replace(text, source=self._find_source(item, encoding, text))
            for item, encoding, text in zip(texts, encodings, tokenized, strict=True)
        ]

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

    def _tokenize_words(self, items: Sequence[TextInput], offsets: bool) -> list[TokenizedText]:
        if not items:
            return []
        texts = [item.words or () for item in items]
        beginnings = [words[: self._many_words] for words in texts]
        encodings = self._encode_words(beginnings)
        for position, (words, beginning) in enumerate(zip(texts, beginnings, strict=True)):
            if len(beginning) < len(words) and not encodings[position].overflowing:
                [encodings[position]] = self._encode_words([words])
        tokenized = [_tokenized(encoding, offsets) for encoding in encodings]
        return [
            replace(text, source=self._find_source(item, encoding, text))
            for item, encoding, text in zip(items, encodings, tokenized, strict=True)
        ]

    def _encode_words(self, texts: Sequence[tuple[str, ...]]) -> list[Encoding]:
        return self._backend.encode_batch(
            list(texts), is_pretokenized=True, add_special_tokens=self._add_special_tokens
        )

    @cached_property
    def _token_lengths(self) -> NDArray[np.int64]:
        """How many characters each token of the vocabulary has, marks included: int64 [tokens]."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        lengths = np.zeros(max(vocabulary.values()) + 1, dtype=np.int64)
        lengths[list(vocabulary.values())] = list(map(len, vocabulary))
        return lengths

    def _prepare(self, item: TextInput, prompt: str) -> str | tuple[str, str]:
        text, pair = prompt + item.text, item.pair
        if self._lower_case:
            text, pair = text.lower(), pair.lower() if pair is not None else None
        return text if pair is None else (text, pair)

    def cross(
        self, texts: Sequence[str], seconds: Sequence[str], reading: ReadingOptions, first_position: int
    ) -> list[Reading]:
        """Every text as a pair with each of `seconds`, all of them tokenized once; the text is what is cut.

        Args:
            reading: what to do with a text that is too long; it has no windows.
            first_position: where the first text stands in its request, for errors.

        Raises:
            InputError: one of `seconds` takes more than half of the model's length, or a text is longer than it may be.
        """
        seconds_encoded = self._backend.encode_batch(list(seconds), add_special_tokens=False)
        for second, encoding in zip(seconds, seconds_encoded, strict=True):
            if encoding.overflowing or len(encoding) > self.max_length // 2:
                raise InputError(
                    f"{second[:40]!r}... has {sum(map(len, [encoding, *encoding.overflowing]))} tokens, more than half "
                    f"of the {self.max_length} that the model takes"
                )
        readings = []
        for position, text in enumerate(texts, first_position):
            parts = self._read_parts(text, to_end=reading != TRUNCATE)
            encoded = parts[0]
            if len(parts) > 1:
                # More than is kept, so that the last word that is kept is a whole one.
                with self._truncating(None):
                    encoded = self._backend.encode(_cut(text, parts, 2), add_special_tokens=False)
            pairs = [
                _tokenized(self._backend.post_process(encoded, second, self._add_special_tokens), False)
                for second in seconds_encoded
            ]
            left_out = 0
            if reading != TRUNCATE and any(pair.truncated for pair in pairs):
                tokens = sum(map(len, parts)) + max(map(len, seconds_encoded)) + self._special_of_pair
                left_out = tokens - self.max_length
                if not reading.truncation:
                    with naming_text(position):
                        raise self._too_long(tokens)
            readings.append(Reading(pairs[0], pairs, left_out=left_out))
        return readings

    def _too_long(self, tokens: int) -> InputError:
        return InputError(
            f"it has {tokens} tokens, the model takes {self.max_length}, and truncation is false", "truncation"
        )

    def _beginning(self, item: str | tuple[str, str]) -> str | tuple[str, str]:
        """As much of a very long text as its first tokens surely come from; to tokenize 30 MB takes 20 s and 2 GB.

        It ends where a word does, so that the tokens before are those of the whole text; if it does not fill the
        model the whole text is needed.
        """
        if isinstance(item, tuple):
            return self._shorten(item)
        if len(item) <= self._long_text:
            return item
        end = item.rfind(" ", 0, self._long_text)
        return item[:end] if end > 0 else item

    def _shorten(self, pair: tuple[str, str]) -> tuple[str, str]:
        """As much of a pair's texts as the tokens surely come from that are kept of them.

        Of two long ones the tokenizer makes every part of the one beside every part of the other, also of what is cut.
        """
        if max(map(len, pair)) <= self._long_text and min(map(len, pair)) <= self.max_length:
            return pair
        parts = [self._read_parts(text) for text in pair]
        counts = [sum(map(len, encodings)) for encodings in parts]
        # The longer one gets the odd token, and so must stay the longer one.
        most = (3, 2) if counts[0] > counts[1] else (2, 3)
        first, second = (_cut(*given) for given in zip(pair, parts, most, strict=True))
        return pair if (first, second) == pair else (first, second)

    def _read_parts(self, text: str, to_end: bool = False) -> list[Encoding]:
        """A text, or of a very long one its beginning, in parts of the model's length, without special tokens."""
        beginning = text if to_end else self._beginning(text)
        encoding = self._backend.encode(beginning, add_special_tokens=False)
        if beginning is not text and not encoding.overflowing:
            encoding = self._backend.encode(text, add_special_tokens=False)
        return [encoding, *encoding.overflowing]


def _cut(text: str, parts: Sequence[Encoding], most: int) -> str:
    """What the first parts of a text come from, those that are kept before others."""
    if len(parts) <= most:
        return text
    places = [offsets for part in parts[:most] for offsets in (part.offsets[0], part.offsets[-1])]
    return text[min(start for start, _ in places) : max(end for _, end in places)]


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
