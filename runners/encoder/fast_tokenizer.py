"""Encodings of texts by the Rust tokenizer of a `transformers` fast tokenizer.

If a text will be truncated, only the beginning that decides its first `max_length` tokens is tokenized.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer, processors
from tokenizers.models import BPE, Model, Unigram, WordLevel, WordPiece
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as Normalizers
from transformers import PreTrainedTokenizerBase

from runners.core.answer_options import TruncationSide
from runners.core.errors import ArgumentsError, InputError, LimitExceededError, with_text_position

Words = tuple[str, ...]
# Several times the average of most languages.
_CHARACTERS_PER_TOKEN = 16
# Factor by which the beginning grows if it had too few tokens.
_GROWTH = 4
# The tokens of the last words before a cut may differ from those of the whole text.
_UNCERTAIN_WORDS = 4
# The first tokens of one long word are trusted if as many other cuts of the word give the same tokens. With Unigram the
# number of cuts is the length of its longest token, at most the bound.
_OTHER_CUTS = 3
_MAX_UNIGRAM_CUTS = 64


class _Settings(NamedTuple):
    """The settings of an encoder that a request may change."""

    side: TruncationSide
    max_length: int
    add_special_tokens: bool


class TextEncoder:
    """Encodes texts without padding, in one thread; releases the GIL while it works.

    `Tokenizer.encode_batch` releases the GIL once for all texts. `Tokenizer.encode` does not, so it is never called
    here. `disable_library_threads` keeps the batch in the thread that calls it.

    Attributes:
        keeps_words: whether a thread that has encoded keeps words of the texts until the thread ends, as BPE does.
            https://github.com/huggingface/tokenizers, tokenizers/src/models/bpe/model.rs: BPE_LOCAL_CACHE has up to
            10,000 words, 2 MiB, of each tokenizer that the thread has used, also after the tokenizer is gone.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        add_special_tokens: bool,
        lower_case: bool,
        max_characters: int,
    ) -> None:
        """
        Args:
            max_characters: how many characters of a text are tokenized at most.
            tokenizer, max_length, add_special_tokens, lower_case: see `TextTokenizer`.

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
        # `post_process` sets token types only if there is a post-processor. This one does nothing else.
        backend.post_processor = backend.post_processor or processors.ByteLevel(trim_offsets=False)
        self.max_length = max_length
        self.special_of_pair = special
        self.keeps_words = isinstance(backend.model, BPE)
        self.side = TruncationSide(tokenizer.truncation_side)
        self._backend = backend
        self._add_special_tokens = add_special_tokens
        self._max_characters = max_characters
        # In WordPiece the first tokens of a word depend on its last character.
        self._needs_whole_words = isinstance(backend.model, WordPiece | WordLevel)
        is_unigram = isinstance(backend.model, Unigram)
        self._unigram_cuts = min(_MAX_UNIGRAM_CUTS, max(map(len, self.vocabulary))) if is_unigram else 0
        self._truncate()

    def copy(self) -> TextEncoder:
        """An encoder for another thread, with its own settings; both share one vocabulary."""
        other = copy.copy(self)
        other._backend = _copy_backend(self._backend)
        other._truncate()
        return other

    @property
    def _long_text(self) -> int:
        """How many characters of a text are tokenized at first."""
        if self.side is TruncationSide.LEFT:
            # The end of the text decides its tokens, so all of it is tokenized.
            return self._max_characters
        return min(self.max_length * _CHARACTERS_PER_TOKEN, self._max_characters)

    @contextlib.contextmanager
    def configured(
        self,
        side: TruncationSide | None = None,
        max_length: int | None = None,
        add_special_tokens: bool | None = None,
        is_pair: bool = False,
    ) -> Iterator[None]:
        """Encode with other settings within the block; None for the encoder's own.

        Args:
            max_length: at most the encoder's own.
            is_pair: whether there are pairs.

        Raises:
            InputError: `max_length` leaves no room for a text beside the special tokens.
        """
        before = _Settings(self.side, self.max_length, self._add_special_tokens)
        settings = _Settings(
            side or before.side,
            max_length or before.max_length,
            before.add_special_tokens if add_special_tokens is None else add_special_tokens,
        )
        if settings == before:
            yield
            return
        special = self._backend.num_special_tokens_to_add(is_pair) if settings.add_special_tokens else 0
        if settings.max_length <= special:
            raise InputError(
                f"truncate_prompt_tokens is {settings.max_length}; special tokens alone take {special}",
                "truncate_prompt_tokens",
            )
        self._configure(settings)
        try:
            yield
        finally:
            self._configure(before)

    def _configure(self, settings: _Settings) -> None:
        self.side, self.max_length, self._add_special_tokens = settings
        self.special_of_pair = self._backend.num_special_tokens_to_add(True) if settings.add_special_tokens else 0
        self._truncate()

    @property
    def model(self) -> Model:
        """The model of the tokenizer (WordPiece, BPE, Unigram): it splits words into tokens."""
        model: Model = self._backend.model
        return model

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Token ids by token, added tokens included."""
        return self._backend.get_vocab(with_added_tokens=True)

    def encode(self, texts: Sequence[str | tuple[str, str]], offsets: bool, positions: Sequence[int]) -> list[Encoding]:
        """Encode texts and pairs, truncated to `max_length`; of a pair the longer text is truncated first.

        Args:
            offsets: whether to compute offsets; without them it is faster.
            positions: positions of the texts in their request, for errors.

        Raises:
            LimitExceededError: a text that has to be tokenized to its end has too many characters.
        """
        short = [item for item in texts if not self._is_long(item)]
        encode = self._backend.encode_batch if offsets else self._backend.encode_batch_fast
        encoded = iter(encode(short, add_special_tokens=self._add_special_tokens))
        return [
            self._encode_long(item, position) if self._is_long(item) else next(encoded)
            for item, position in zip(texts, positions, strict=True)
        ]

    def encode_words(self, texts: Sequence[Words], positions: Sequence[int]) -> list[Encoding]:
        """As `encode`, for texts that are split into words."""
        long = [_count_characters(words) > self._long_text for words in texts]
        short = [words for words, is_long in zip(texts, long, strict=True) if not is_long]
        encoded = iter(
            self._backend.encode_batch(short, is_pretokenized=True, add_special_tokens=self._add_special_tokens)
        )
        return [
            self._encode_long_text(words, position) if is_long else next(encoded)
            for words, is_long, position in zip(texts, long, positions, strict=True)
        ]

    def encode_whole(
        self,
        item: str | tuple[str, str],
        settings: Mapping[str, Any] | None = None,
        add_special_tokens: bool | None = None,
    ) -> Encoding:
        """Encode all of a text or a pair; truncate it by `settings`, or not at all if None.

        Args:
            add_special_tokens: None for what the model's texts get.
        """
        is_special = self._add_special_tokens if add_special_tokens is None else add_special_tokens
        with self._truncating(settings):
            [encoding] = self._backend.encode_batch([item], add_special_tokens=is_special)
        return encoding

    def strings(self, ids: Sequence[int]) -> list[str]:
        """Tokens as the vocabulary writes them; an encoding has the text of unknown ones instead."""
        return [self._backend.id_to_token(token) or "" for token in ids]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """The text of token ids, without those that have no token."""
        # `Tokenizer.decode` does not release the GIL.
        [text] = self._backend.decode_batch([list(ids)], skip_special_tokens=skip_special_tokens)
        return text

    def encode_words_whole(self, words: Words, settings: Mapping[str, Any] | None = None) -> Encoding:
        """As `encode_whole`, for a text that is split into words."""
        with self._truncating(settings):
            [encoding] = self._backend.encode_batch(
                [words], is_pretokenized=True, add_special_tokens=self._add_special_tokens
            )
        return encoding

    def encode_part(self, text: str | Words, to_end: bool = False) -> tuple[Encoding, bool]:
        """Encode a text without special tokens, or the part of it that decides its first `max_length` tokens.

        Args:
            to_end: whether to tokenize all of the text.

        Returns:
            The encoding, for `keep` and `join`, and whether it covers the whole text.

        Raises:
            LimitExceededError: more characters would have to be tokenized than `max_characters`.
        """
        characters = _count_characters(text)
        length = characters if to_end else self._long_text
        while length < characters:
            piece, at_space = cut(text, length)
            [encoding] = self.encode_parts([piece])
            enough = self.side is TruncationSide.RIGHT and len(encoding) > 2 * self.max_length
            if enough and (at_space or self._is_certain(piece, encoding)):
                return encoding, False
            if length >= self._max_characters:
                raise LimitExceededError(
                    characters, "characters of a text that has to be tokenized to its end",
                    "max_whole_text_characters", self._max_characters,
                )  # fmt: skip
            length = min(length * _GROWTH, self._max_characters)
        return self.encode_parts([text])[0], True

    def encode_parts(self, texts: Sequence[str | Words]) -> list[Encoding]:
        """Encode texts without special tokens and truncation, as the tokenizer does before it joins a pair.

        Args:
            texts: either all texts or all split into words.
        """
        post_processor = self._backend.post_processor
        # It would trim the offsets twice: here, and in `join`.
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
        """Add special tokens to one or two encodings of `keep`, and truncate them to `max_length`."""
        return self._backend.post_process(first, second, self._add_special_tokens)

    def join_with_each(self, first: Encoding, second_encodings: Sequence[Encoding]) -> list[Encoding]:
        """Join an encoding with each of `second_encodings`; only the first is truncated."""
        with self._truncating({"strategy": "only_first", "direction": self.side}):
            return [self.join(first, second) for second in second_encodings]

    def keep(self, encoding: Encoding, max_tokens: int) -> Encoding:
        """Truncate an encoding to `max_tokens` tokens on the tokenizer's side; this consumes the encoding.

        Tokens are truncated, not the text, because the tokens of a piece of text depend on the characters around it.
        """
        if len(encoding) <= max_tokens:
            return encoding
        # `truncate` moves the tokens it cuts to `overflowing`, in parts. Cut from the other end, and keep those parts.
        if self.side is TruncationSide.RIGHT:
            encoding.truncate(len(encoding) - max_tokens, direction="left")
            parts = encoding.overflowing[::-1]
        else:
            encoding.truncate(len(encoding) - max_tokens, direction="right")
            parts = encoding.overflowing
        return Encoding.merge(parts, growing_offsets=False)

    def _is_long(self, item: str | tuple[str, str]) -> bool:
        """Whether a text is tokenized in parts, or the texts of a pair apart.

        The tokenizer pairs every overflowing part of one text with every part of the other, which is quadratic work.
        """
        if isinstance(item, str):
            return len(item) > self._long_text
        return max(map(len, item)) > self._long_text or min(map(len, item)) > self.max_length

    def _encode_long(self, item: str | tuple[str, str], position: int) -> Encoding:
        if isinstance(item, str):
            return self._encode_long_text(item, position)
        with with_text_position(position):
            return self._encode_long_pair(*item)

    def _encode_long_text(self, text: str | Words, position: int) -> Encoding:
        with with_text_position(position):
            encoding, _ = self.encode_part(text)
        # One token more than fits, so that the text is marked as truncated.
        return self.join(self.keep(encoding, self.max_length + 1))

    def _encode_long_pair(self, text: str, pair: str) -> Encoding:
        """Encode a pair as the tokenizer does, and tokenize only as much as decides which text is longer.

        If that takes more characters than may be tokenized, the lengths are estimated. A wrong estimate keeps one token
        too many of one text and one too few of the other.
        """
        (first, first_ends), (second, second_ends) = self.encode_part(text), self.encode_part(pair)
        # The tokenizer gives an odd token to the longer text, so that one keeps one token more.
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
        """How many tokens a text has, extrapolated from its beginning."""
        beginning, _ = cut(text, self._max_characters)
        [encoding] = self.encode_parts([beginning])
        return len(encoding) * len(text) / len(beginning)

    def _is_certain(self, piece: str | Words, encoding: Encoding) -> bool:
        """Whether the first tokens of a piece are the first tokens of its text, if the piece may end inside a word.

        They are if their words end well before the piece does. Otherwise they are inside one long word. BPE gives it
        the same first tokens wherever it is cut, except for patterns such as one letter repeated, where each token
        depends on how many letters follow. Comparing several cuts detects such a pattern. Unigram chooses the most
        likely sequence of tokens, which for the whole text has a token boundary within any stretch as long as the
        longest token. If the most likely sequences up to each place of one stretch begin with the same tokens, so does
        that of the whole text.
        """
        # `keep` keeps one token more than fits.
        kept_count = self.max_length + 1
        words = [word for word in encoding.word_ids if word is not None]
        kept_words = [word for word in encoding.word_ids[:kept_count] if word is not None]
        if words and kept_words and words[-1] - kept_words[-1] > _UNCERTAIN_WORDS:
            return True
        if self._needs_whole_words:
            return False
        if self._unigram_cuts and isinstance(piece, str):
            # A stretch shortly behind the kept tokens suffices, and is cheaper than one at the end of the piece.
            piece = piece[: encoding.offsets[2 * self.max_length][1] + self._unigram_cuts]
        others = self.encode_parts([_shorten(piece, by) for by in range(1, 1 + (self._unigram_cuts or _OTHER_CUTS))])
        return all(other.ids[:kept_count] == encoding.ids[:kept_count] for other in others)

    def _truncate(self) -> None:
        """Truncate as `tokenizer(..., truncation=True)` does."""
        self._backend.enable_truncation(self.max_length, strategy="longest_first", direction=self.side)

    @contextlib.contextmanager
    def _truncating(self, settings: Mapping[str, Any] | None) -> Iterator[None]:
        """Truncate by other settings within the block, or not at all if None."""
        if settings is None:
            self._backend.no_truncation()
        else:
            self._backend.enable_truncation(self.max_length, **settings)
        try:
            yield
        finally:
            self._truncate()


def cut(text: str | Words, length: int) -> tuple[str | Words, bool]:
    """Cut a text that is longer than `length` characters.

    Returns:
        Its beginning, up to the last space in the second half of `length` characters if there is one, and whether it
        ends before a space.
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
    """A piece without its last characters."""
    return piece[:-by] if isinstance(piece, str) else (*piece[:-1], piece[-1][:-by])


def _count_characters(text: str | Words) -> int:
    """How many characters a text has; each word counts one more, since an empty word takes time too."""
    return len(text) if isinstance(text, str) else sum(map(len, text)) + len(text)


def _copy_backend(backend: Tokenizer) -> Tokenizer:
    """A tokenizer with the same components; the vocabulary is shared."""
    other = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if (value := getattr(backend, part)) is not None:
            setattr(other, part, value)
    added = backend.get_added_tokens_decoder()
    other.add_tokens([added[index] for index in sorted(added)])
    other.encode_special_tokens = backend.encode_special_tokens
    # An added token gets another id if its id does not follow from its order. Then the vocabulary is copied too.
    return other if other.get_added_tokens_decoder() == added else copy.deepcopy(backend)


def _lower_cases(normalizer: object) -> bool:
    """Whether a normalizer lower-cases, as sentence-transformers tests it."""
    return isinstance(normalizer, Lowercase) or (
        isinstance(normalizer, Normalizers) and any(isinstance(each, Lowercase) for each in normalizer)  # type: ignore[attr-defined]
    )
