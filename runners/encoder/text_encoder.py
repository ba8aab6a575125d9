"""Texts through the Rust tokenizer of a `transformers` fast tokenizer, of long ones no more than is needed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer, processors
from tokenizers.models import Model, Unigram, WordLevel, WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from transformers import PreTrainedTokenizerBase

from runners.errors import ArgumentsError, LimitExceededError, naming_text

Words = tuple[str, ...]
# Several times what a token of most languages has on average.
_CHARACTERS_A_TOKEN = 16
# How much more of a text is tokenized where its beginning was too short.
_GROWTH = 4
# So many words before a cut their tokens may be others than those of the whole text.
_WORDS_AT_A_CUT = 4
# Tokens inside one long word are those of the whole text if they do not depend on where around here it is cut; with
# Unigram in so many places as its longest token has characters, up to a bound.
_OTHER_CUTS = 3
_MOST_CUTS = 64


class TextEncoder:
    """Encodes texts without padding, in one thread; frees the GIL while it works.

    `encode_batch` frees the GIL, `encode` does not: that one is never called.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        add_special_tokens: bool,
        lower_case: bool,
        most_characters: int,
    ) -> None:
        """
        Args:
            most_characters: how many characters of a text are tokenized at most.
            tokenizer, max_length, add_special_tokens, lower_case: as `TextTokenizer` has them.

        Raises:
            ArgumentsError: `max_length` leaves no room for a text beside the special tokens.
        """
        backend: Tokenizer = tokenizer.backend_tokenizer
        special = backend.num_special_tokens_to_add(True) if add_special_tokens else 0
        if max_length <= special:
            raise ArgumentsError(f"max_length {max_length} is too short: special tokens alone take up to {special}")
        backend.no_padding()
        if lower_case and not _lower_cases(backend.normalizer):
            normalizers = [] if backend.normalizer is None else [backend.normalizer]
            backend.normalizer = Normalizers([Lowercase(), *normalizers])
        # `post_process` sets token types only if there is a post-processor; this one changes nothing else.
        backend.post_processor = backend.post_processor or processors.ByteLevel(trim_offsets=False)
        self.max_length = max_length
        self.special_of_pair = special
        self.side: str = tokenizer.truncation_side
        self._backend = backend
        self._add_special_tokens = add_special_tokens
        self._most_characters = most_characters
        # A text that is truncated on the left is tokenized whole.
        beginning = max_length * _CHARACTERS_A_TOKEN if self.side == "right" else most_characters
        self._long_text = min(beginning, most_characters)
        # What the tokens of a word are, in WordPiece, only its end decides.
        self._words_are_whole = isinstance(backend.model, WordPiece | WordLevel)
        is_unigram = isinstance(backend.model, Unigram)
        self._unigram_cuts = min(_MOST_CUTS, max(map(len, self.vocabulary))) if is_unigram else 0
        self._truncate()

    def copy(self) -> TextEncoder:
        """An encoder for another thread, of its own settings; both read one vocabulary."""
        other = copy.copy(self)
        other._backend = _copy_backend(self._backend)
        other._truncate()
        return other

    @property
    def model(self) -> Model:
        """What makes tokens of words."""
        model: Model = self._backend.model
        return model

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """All tokens by name, added ones too."""
        return self._backend.get_vocab(with_added_tokens=True)

    def encode(self, texts: Sequence[str | tuple[str, str]], offsets: bool, positions: Sequence[int]) -> list[Encoding]:
        """Texts and pairs, truncated to `max_length`, the longer of a pair first.

        Args:
            offsets: whether these are wanted; without them it is faster.
            positions: where the texts stand in their request, for errors.

        Raises:
            LimitExceededError: a text that would have to be tokenized whole has too many characters.
        """
        short = [item for item in texts if not self._is_long(item)]
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        encoded = iter(encode(short, add_special_tokens=self._add_special_tokens)) if short else iter(())
        return [
            self._encode_long(item, position) if self._is_long(item) else next(encoded)
            for item, position in zip(texts, positions, strict=True)
        ]

    def encode_words(self, texts: Sequence[Words], positions: Sequence[int]) -> list[Encoding]:
        """As `encode`, of texts that are split into words."""
        long = [_count_characters(words) > self._long_text for words in texts]
        short = [words for words, is_long in zip(texts, long, strict=True) if not is_long]
        encoded = iter(
            self._backend.encode_batch(short, is_pretokenized=True, add_special_tokens=self._add_special_tokens)
        )
        return [
            self._encode_long_text(words, position) if is_long else next(encoded)
            for words, is_long, position in zip(texts, long, positions, strict=True)
        ]

    def encode_whole(self, item: str | tuple[str, str], settings: Mapping[str, Any] | None = None) -> Encoding:
        """A text or a pair to its end, truncated by other settings; None truncates nothing."""
        with self._truncating(settings):
            [encoding] = self._backend.encode_batch([item], add_special_tokens=self._add_special_tokens)
        return encoding

    def encode_words_whole(self, words: Words, settings: Mapping[str, Any] | None = None) -> Encoding:
        """As `encode_whole`, of a text that is split into words."""
        with self._truncating(settings):
            [encoding] = self._backend.encode_batch(
                [words], is_pretokenized=True, add_special_tokens=self._add_special_tokens
            )
        return encoding

    def encode_part(self, text: str | Words, to_end: bool = False) -> tuple[Encoding, bool]:
        """A text without special tokens, or as much of its beginning as decides its first `max_length` tokens.

        Returns:
            The encoding, for `keep` and `join`, and whether it is that of the whole text.

        Raises:
            LimitExceededError: more of the text would have to be tokenized than may be.
        """
        characters = _count_characters(text)
        length = characters if to_end else self._long_text
        while length < characters:
            piece, at_space = cut(text, length)
            [encoding] = self.encode_parts([piece])
            enough = self.side == "right" and len(encoding) > 2 * self.max_length
            if enough and (at_space or self._is_certain(piece, encoding)):
                return encoding, False
            if length >= self._most_characters:
                raise LimitExceededError(
                    characters, "characters of a text that has to be tokenized to its end",
                    "max_whole_text_characters", self._most_characters,
                )  # fmt: skip
            length = min(length * _GROWTH, self._most_characters)
        return self.encode_parts([text])[0], True

    def encode_parts(self, texts: Sequence[str | Words]) -> list[Encoding]:
        """Texts without special tokens or truncation, as the tokenizer encodes them before it joins a pair.

        Args:
            texts: all of them texts, or all of them words.
        """
        post_processor = self._backend.post_processor
        # It would trim the offsets here and again in `join`.
        self._backend.post_processor = None
        try:
            with self._truncating(None):
                return self._backend.encode_batch(
                    list(texts),
                    is_pretokenized=bool(texts) and not isinstance(texts[0], str),
                    add_special_tokens=False,
                )
        finally:
            self._backend.post_processor = post_processor

    def join(self, first: Encoding, second: Encoding | None = None) -> Encoding:
        """One encoding with special tokens of one or two that `keep` has cut, truncated to `max_length`."""
        return self._backend.post_process(first, second, self._add_special_tokens)

    def join_with_each(self, first: Encoding, seconds: Sequence[Encoding]) -> list[Encoding]:
        """As `join`, with each of the second ones, which are never truncated."""
        with self._truncating({"strategy": "only_first", "direction": self.side}):
            return [self.join(first, second) for second in seconds]

    def keep(self, encoding: Encoding, most: int) -> Encoding:
        """Cut an encoding to `most` tokens, those on the side that truncation keeps; this consumes the encoding.

        We cut tokens, not the text: the tokens of a piece of text depend on the characters around it.
        """
        if len(encoding) <= most:
            return encoding
        # `truncate` moves what it cuts into `overflowing`. We want that part, so we cut from the other end.
        if self.side == "right":
            encoding.truncate(len(encoding) - most, direction="left")
            parts = encoding.overflowing[::-1]
        else:
            encoding.truncate(len(encoding) - most, direction="right")
            parts = encoding.overflowing
        return Encoding.merge(parts, growing_offsets=False)

    def _is_long(self, item: str | tuple[str, str]) -> bool:
        """Whether only the beginning of a text is tokenized, or each of two texts by itself.

        The tokenizer pairs every overflowing part of one text with every part of the other: quadratic work.
        """
        if isinstance(item, str):
            return len(item) > self._long_text
        return max(map(len, item)) > self._long_text or min(map(len, item)) > self.max_length

    def _encode_long(self, item: str | tuple[str, str], position: int) -> Encoding:
        if isinstance(item, str):
            return self._encode_long_text(item, position)
        with naming_text(position):
            return self._encode_long_pair(*item)

    def _encode_long_text(self, text: str | Words, position: int) -> Encoding:
        with naming_text(position):
            encoding, _ = self.encode_part(text)
        # One token more than the model takes, so that it is marked as truncated.
        return self.join(self.keep(encoding, self.max_length + 1))

    def _encode_long_pair(self, text: str, pair: str) -> Encoding:
        """Encode a pair as the tokenizer does, from no more tokens than decide which text is the longer one.

        For texts of more characters than are tokenized that is an estimate. A wrong one keeps one token too many of
        one text and one too few of the other.
        """
        (first, first_ends), (second, second_ends) = self.encode_part(text), self.encode_part(pair)
        # The tokenizer gives the odd token to the longer text, so the longer one keeps one token more than the other.
        longer_first = len(first) > len(second)
        room = self.max_length - self.special_of_pair
        has_odd_token = room % 2 == 1 and min(len(first), len(second)) > room // 2
        if has_odd_token and not (second_ends if longer_first else first_ends):
            first_tokens = len(first) if first_ends else self._estimate_tokens(text)
            longer_first = first_tokens > (len(second) if second_ends else self._estimate_tokens(pair))
        return self.join(
            self.keep(first, self.max_length + longer_first), self.keep(second, self.max_length + (not longer_first))
        )

    def _estimate_tokens(self, text: str) -> float:
        """How many tokens a text has; extrapolated from the beginning of one that is not tokenized to its end."""
        beginning, _ = cut(text, self._most_characters)
        [encoding] = self.encode_parts([beginning])
        return len(encoding) * len(text) / len(beginning)

    def _is_certain(self, piece: str | Words, encoding: Encoding) -> bool:
        """Whether the first tokens of a text are those of a piece of it that may end inside a word.

        They are if their words end well before the piece does. Of a longer word it depends on the kind of tokenizer:
        the tokens of BPE are those of any text with this beginning, except for patterns such as one letter for ever,
        where each token depends on how many letters follow. Other cuts show such a pattern. Unigram takes the best
        sequence of tokens, and that of the whole text has a boundary within any stretch as long as the longest token:
        if the best ones up to each place of such a stretch begin alike, so does the whole text's.
        """
        # One token more than the model takes, which `keep` keeps.
        kept = self.max_length + 1
        words = [word for word in encoding.word_ids if word is not None]
        kept_words = [word for word in encoding.word_ids[:kept] if word is not None]
        if words and kept_words and words[-1] - kept_words[-1] > _WORDS_AT_A_CUT:
            return True
        if self._words_are_whole:
            return False
        if self._unigram_cuts and isinstance(piece, str):
            # The stretch lies right behind twice what the model takes, rather than at the piece's end.
            piece = piece[: encoding.offsets[2 * self.max_length][1] + self._unigram_cuts]
        others = self.encode_parts([_shorten(piece, by) for by in range(1, 1 + (self._unigram_cuts or _OTHER_CUTS))])
        return all(other.ids[:kept] == encoding.ids[:kept] for other in others)

    def _truncate(self) -> None:
        """Truncate as `tokenizer(..., truncation=True)` does."""
        self._backend.enable_truncation(self.max_length, strategy="longest_first", direction=self.side)

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


def cut(text: str | Words, length: int) -> tuple[str | Words, bool]:
    """The beginning of a longer text: up to the last space before `length` if that is near, else `length` characters.

    Returns:
        The beginning, and whether it ends before a space.
    """
    if isinstance(text, str):
        end = text.rfind(" ", length // 2, length)
        return (text[:end], True) if end > 0 else (text[:length], False)
    words = []
    for word in text:
        words.append(word[:length])
        length -= len(word) + 1
        if length <= 0:
            break
    return tuple(words), False


def _shorten(piece: str | Words, by: int) -> str | Words:
    """A piece without its last characters, one at least of which a text that is cut has more."""
    return piece[:-by] if isinstance(piece, str) else (*piece[:-1], piece[-1][:-by])


def _count_characters(text: str | Words) -> int:
    """How many characters a text has; words count one more each, since an empty one takes time too."""
    return len(text) if isinstance(text, str) else sum(map(len, text)) + len(text)


def _copy_backend(backend: Tokenizer) -> Tokenizer:
    """A tokenizer of the same parts, whose vocabulary is not copied."""
    other = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(other, part, value)
    added = backend.get_added_tokens_decoder()
    other.add_tokens([added[index] for index in sorted(added)])
    other.encode_special_tokens = backend.encode_special_tokens
    # An added token whose id does not follow from its place gets another one.
    return other if other.get_added_tokens_decoder() == added else copy.deepcopy(backend)


def _lower_cases(normalizer: object) -> bool:
    """Whether a normalizer lower-cases, by the rule of sentence-transformers."""
    return isinstance(normalizer, Lowercase) or (
        isinstance(normalizer, Normalizers) and any(isinstance(each, Lowercase) for each in normalizer)  # type: ignore[attr-defined]
    )
