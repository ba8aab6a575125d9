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
from tokenizers import Encoding, Tokenizer, processors
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from transformers import PreTrainedTokenizerBase

from runners.answers import ReadingOptions
from runners.encoder.reading import Reading, Source, TokenizedText, find_carrying_on, join_windows
from runners.errors import ArgumentsError, InputError, naming_text
from runners.inference import TextInput

# Several times what a token of any language has on average.
_CHARACTERS_A_TOKEN = 32
# How much of a text is tokenized to count its tokens; takes half a second.
_COMPARED_CHARACTERS = 2**19
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
            lower_case: lower-case texts first, as sentence-transformers can be told to: special tokens in them stay.

        Raises:
            ArgumentsError: `max_length` leaves no room for a text beside the special tokens.
        """
        backend: Tokenizer = tokenizer.backend_tokenizer
        special = backend.num_special_tokens_to_add(True) if add_special_tokens else 0
        if max_length <= special:
            raise ArgumentsError(f"max_length {max_length} is too short: special tokens alone take up to {special}")
        backend.no_padding()
        self.max_length = max_length
        if lower_case and not _lower_cases(backend.normalizer):
            normalizers = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = Normalizers([Lowercase(), *normalizers])
        # `post_process` sets token types only if there is a post-processor; this one changes nothing else.
        backend.post_processor = backend.post_processor or processors.ByteLevel(trim_offsets=False)
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
        tokenized = self._tokenize_whole(texts, False, True, "")
        readings = []
        for position, (item, text) in enumerate(zip(texts, tokenized, strict=True), first_position):
            if not text.truncated:
                readings.append(Reading(text, [text]))
                continue
            prepared = self._prepare(item, "")
            with naming_text(position):
                whole = self._encode_untruncated(item, prepared)
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
        self, item: TextInput, text: TokenizedText, offsets: bool, source: bool, prompt: str, options: ReadingOptions
    ) -> Reading:
        """What is done with a text that may be too long."""
        if not text.truncated:
            return Reading(text, [text])
        prepared = self._prepare(item, prompt)
        whole = self._encode_untruncated(item, prepared)
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
        with self._truncating({"stride": stride, "strategy": strategy, "direction": "right"}):
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

    def _encode_untruncated(self, item: TextInput, prepared: str | tuple[str, str]) -> Encoding:
        with self._truncating(None):
            return self._encode(item, prepared)

    def _truncate(self) -> None:
        """Truncate as `tokenizer(..., truncation=True)` does."""
        self._backend.enable_truncation(self.max_length, strategy="longest_first", direction=self._side)

    @contextlib.contextmanager
    def _truncating(self, settings: Mapping[str, Any] | None) -> Iterator[None]:
        """Truncate by other settings within the block; None turns truncation off."""
        if settings is None:
            self._backend.no_truncation()
        else:
            self._backend.enable_truncation(self.max_length, **settings)
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
        together = [item for item in inputs if not self._is_long_pair(item)]
        beginnings = [item if isinstance(item, tuple) else self._beginning(item) for item in together]
        encoded = encode(beginnings, add_special_tokens=self._add_special_tokens)
        for position, (item, beginning) in enumerate(zip(together, beginnings, strict=True)):
            if beginning is not item and len(encoded[position].overflowing) < 2:
                [encoded[position]] = encode([item], add_special_tokens=self._add_special_tokens)
        others = iter(encoded)
        encodings = [
            self._encode_long_pair(*item) if isinstance(item, tuple) and self._is_long_pair(item) else next(others)
            for item in inputs
        ]
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
        return prompt + item.text if item.pair is None else (prompt + item.text, item.pair)

    def cross(
        self, texts: Sequence[str], seconds: Sequence[str], reading: ReadingOptions, first_position: int
    ) -> list[Reading]:
        """Pair every text with each of `seconds`, tokenizing each once; only the text is truncated.

        Args:
            reading: what to do with a text that is too long; it has no windows.
            first_position: where the first text stands in its request, for errors.

        Raises:
            InputError: one of `seconds` takes more than half of the model's length, or a text is longer than it may be.
        """
        room = self.max_length - self._special_of_pair
        seconds_encoded = self._encode_parts(seconds)
        for second, encoding in zip(seconds, seconds_encoded, strict=True):
            if len(encoding) > self.max_length // 2 or len(encoding) >= room:
                raise InputError(
                    f"{second[:40]!r}... has {len(encoding)} tokens, more than half of the {self.max_length} that the "
                    "model takes"
                )
        readings = []
        for position, text in enumerate(texts, first_position):
            encoded, _ = self._encode_part(text, to_end=reading != TRUNCATE)
            length = len(encoded)
            # One token more than the model takes, so that the pair is marked as truncated.
            kept = self._keep(encoded, self.max_length + 1)
            with self._truncating({"strategy": "only_first", "direction": self._side}):
                pairs = [
                    _tokenized(self._backend.post_process(kept, second, self._add_special_tokens), False)
                    for second in seconds_encoded
                ]
            left_out = 0
            if reading != TRUNCATE and any(pair.truncated for pair in pairs):
                tokens = length + max(map(len, seconds_encoded)) + self._special_of_pair
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

    def _beginning(self, text: str) -> str:
        """As much of a very long text as its first tokens surely come from; to tokenize 30 MB takes 20 s and 2 GB.

        Its last tokens may be others than those of the whole text, although it ends where a word does: where it does
        not have about twice the tokens that are kept, the whole text is needed.
        """
        return _cut(text, self._long_text)

    def _is_long_pair(self, pair: str | tuple[str, str]) -> bool:
        """Whether to tokenize each of two texts by itself.

        The tokenizer pairs every overflowing part of one text with every part of the other: quadratic work.
        """
        return isinstance(pair, tuple) and (
            max(map(len, pair)) > self._long_text or min(map(len, pair)) > self.max_length
        )

    def _encode_long_pair(self, text: str, pair: str) -> Encoding:
        """Encode a pair as the tokenizer does, from no more tokens than decide which text is the longer one.

        For texts of more than 524,288 characters that is an estimate. A wrong one keeps one token too many of one text
        and one too few of the other.
        """
        (first, first_ends), (second, second_ends) = self._encode_part(text), self._encode_part(pair)
        # The tokenizer gives the odd token to the longer text, so the longer one keeps one token more than the other.
        longer_first = len(first) > len(second)
        room = self.max_length - self._special_of_pair
        has_odd_token = room % 2 == 1 and min(len(first), len(second)) > room // 2
        if has_odd_token and not (second_ends if longer_first else first_ends):
            first_tokens = len(first) if first_ends else self._estimate_tokens(text)
            longer_first = first_tokens > (len(second) if second_ends else self._estimate_tokens(pair))
        kept = (
            self._keep(first, self.max_length + longer_first), self._keep(second, self.max_length + (not longer_first))
        )  # fmt: skip
        return self._backend.post_process(*kept, self._add_special_tokens)

    def _estimate_tokens(self, text: str) -> float:
        """How many tokens a text has; extrapolated from the beginning of a text of more than 524,288 characters."""
        beginning = _cut(text, max(_COMPARED_CHARACTERS, self._long_text))
        [encoding] = self._encode_parts([beginning])
        return len(encoding) * len(text) / len(beginning)

    def _encode_part(self, text: str, to_end: bool = False) -> tuple[Encoding, bool]:
        """Encode a text, or the beginning of a very long one, for `post_process`; say whether it is the whole text."""
        beginning = text if to_end else self._beginning(text)
        [encoding] = self._encode_parts([beginning])
        if beginning is not text and len(encoding) <= 2 * self.max_length:
            beginning = text
            [encoding] = self._encode_parts([text])
        return encoding, beginning is text

    def _encode_parts(self, texts: Sequence[str]) -> list[Encoding]:
        """Encode texts without special tokens or truncation, as the tokenizer does before it joins a pair."""
        post_processor = self._backend.post_processor
        # It would trim the offsets here and again in `post_process`.
        self._backend.post_processor = None
        try:
            with self._truncating(None):
                return self._backend.encode_batch(list(texts), add_special_tokens=False)
        finally:
            self._backend.post_processor = post_processor

    def _keep(self, encoding: Encoding, most: int) -> Encoding:
        """Cut an encoding to `most` tokens, those on the side that truncation keeps; this consumes the encoding.

        We cut tokens, not the text: the tokens of a piece of text depend on the characters around it.
        """
        if len(encoding) <= most:
            return encoding
        # `truncate` moves what it cuts into `overflowing`. We want that part, so we cut from the other end.
        if self._side == "right":
            encoding.truncate(len(encoding) - most, direction="left")
            parts = encoding.overflowing[::-1]
        else:
            encoding.truncate(len(encoding) - most, direction="right")
            parts = encoding.overflowing
        return Encoding.merge(parts, growing_offsets=False)


def _cut(text: str, length: int) -> str:
    """The beginning of a text, up to the last space before `length`; a text without one is not cut."""
    if len(text) <= length:
        return text
    end = text.rfind(" ", 0, length)
    return text[:end] if end > 0 else text


def _lower_cases(normalizer: object) -> bool:
    """Whether a normalizer lower-cases, by the rule of sentence-transformers."""
    return isinstance(normalizer, Lowercase) or (
        isinstance(normalizer, Normalizers) and any(isinstance(each, Lowercase) for each in normalizer)  # type: ignore[attr-defined]
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
