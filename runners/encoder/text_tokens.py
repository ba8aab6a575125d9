"""The tokens of texts, and the texts of tokens, for the calls that ask for them; the model does not run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runners.core.errors import with_text_position
from runners.core.predictions import Options, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.tokens import TokenizedPrompt, TokenizeOptions
from runners.encoder.fair_threads import Flow
from runners.encoder.tokenizer_threads import CHARACTERS_PER_TOKEN, SliceWork

if TYPE_CHECKING:
    from runners.encoder.loaded_model import LoadedModel
    from runners.encoder.tokenization import TextTokenizer

# What an answer says of a token: its id, string, flag, start and end.
_NUMBERS_PER_TOKEN = 5


async def list_tokens(
    loaded: LoadedModel, limits: RequestLimits, texts: Sequence[str], options: TokenizeOptions, before: str
) -> list[TokenizedPrompt]:
    """All tokens of each text, in order.

    Args:
        before: the prompt that precedes each text.

    Raises:
        LimitExceededError: there are too many texts or tokens, or too long texts.
        OverloadedError: too many requests are under way.
    """
    items = [TextInput(text) for text in texts]
    limits.check_texts(items, Options())
    limits.check("max_whole_text_characters", len(before) + max(map(len, texts), default=0), "characters of a text")
    numbers_per_token = _NUMBERS_PER_TOKEN if options.details else 1
    counted = f"numbers of the answer, {numbers_per_token} for each token,"
    listed: dict[int, TokenizedPrompt] = {}

    def tokenize(tokenizer: TextTokenizer, texts: Sequence[TextInput], _: int) -> list[TokenizedPrompt]:
        """Called in the threads, as `finish` is."""
        listed = []
        for item in texts:
            tokens = tokenizer.list_tokens(before + item.text, options)
            loaded.queue.reserve_found(request, numbers_per_token * len(tokens.ids), counted)
            listed.append(tokens)
        return listed

    def finish(start: int, tokens: Sequence[TokenizedPrompt]) -> None:
        listed.update(enumerate(tokens, start))

    characters = sum(map(len, texts)) + len(before) * len(texts)
    request = loaded.queue.admit(len(items), characters)
    try:
        await loaded.tokenizer_threads.run(items, SliceWork(tokenize, finish, lambda: request.abandoned))
    finally:
        loaded.queue.release(request)
    return [listed[position] for position in range(len(items))]


async def decode_tokens(
    loaded: LoadedModel, limits: RequestLimits, ids: Sequence[Sequence[int]], skip_special_tokens: bool
) -> list[str]:
    """The text of each sequence of token ids, in order.

    Raises:
        LimitExceededError: there are too many sequences or tokens.
        OverloadedError: too many requests are under way.
        InputError: a token id is outside of the vocabulary.
    """
    limits.check("max_client_batch_size", len(ids), "sequences of tokens")
    tokens = sum(map(len, ids))
    limits.check("max_queue_tokens", tokens, "tokens of all sequences")

    def decode(tokenizer: TextTokenizer, sequence: Sequence[int]) -> str:
        return tokenizer.decode(sequence, skip_special_tokens)

    flow, texts = Flow(), []
    with loaded.queue.admission.admit(CHARACTERS_PER_TOKEN * tokens):
        for position, sequence in enumerate(ids):
            cost = CHARACTERS_PER_TOKEN * len(sequence)
            with with_text_position(position):
                texts.append(await loaded.tokenizer_threads.call(flow, cost, decode, sequence))
    return texts
