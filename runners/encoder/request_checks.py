"""Checks of a request that run before any work is done for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from runners.core.errors import InputError, LimitExceededError, add_text_position
from runners.core.predictions import Options, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import check_options, check_prompt_name
from runners.encoder.tokenizer_threads import count_characters

if TYPE_CHECKING:
    from runners.encoder.loaded_model import LoadedModel


def check_request(
    loaded: LoadedModel, limits: RequestLimits, texts: Sequence[TextInput | TokenInput], options: Options
) -> int:
    """Check a request against the operator's limits and the task.

    Returns:
        How many characters the texts have, as `count_characters` counts them.

    Raises:
        InputError: the task does not take a text or an option; the message names the text's position.
        LimitExceededError: there are too many texts, or too long ones.
    """
    if not texts:
        raise InputError("the request has no texts; give at least one")
    limits.check_texts(texts, options)
    characters = _check_kinds(loaded, texts, options, limits.max_whole_text_characters)
    sequences = loaded.encoder_task.count_sequences(options) * len(texts)
    limits.check("max_request_sequences", sequences, "pairs of a text and a label", "candidate_labels")
    check_options(options, loaded.supported_options, limits)
    check_prompt_name(options, loaded.default_options, any(isinstance(text, TokenInput) for text in texts))
    return characters


def _check_kinds(
    loaded: LoadedModel, texts: Sequence[TextInput | TokenInput], options: Options, max_whole_characters: int
) -> int:
    """Refuse texts of a kind that the task does not take; one pass, since it runs on the event loop.

    Args:
        max_whole_characters: most characters of a text that is tokenized to its end.

    Returns:
        How many characters the texts have, as `count_characters` counts them.

    Raises:
        InputError: a text is of another kind; the message names its position.
        LimitExceededError: a text that is tokenized to its end is too long.
    """
    encoder_task, task = loaded.encoder_task, loaded.task
    accepts_pairs, needs_pairs, accepts_words = (
        encoder_task.accepts_pairs,
        encoder_task.needs_pairs,
        encoder_task.accepts_words,
    )
    limit = max_whole_characters if encoder_task.reads_to_end(options) else None
    total = 0
    for position, text in enumerate(texts):
        length = count_characters(text)
        total += length
        if not isinstance(text, TextInput):
            continue
        if text.pair is None:
            if needs_pairs:
                raise InputError(f"text {position} is a single one, and {task} takes a question and a context")
        elif not accepts_pairs:
            raise InputError(f"text {position} is a pair, and {task} takes single texts")
        if text.words is not None and not accepts_words:
            raise InputError(f"text {position} is split into words, and {task} takes whole texts")
        if limit is not None and length > limit:
            what = "characters of a text that is not simply truncated"
            raise add_text_position(LimitExceededError(length, what, "max_whole_text_characters", limit), position)
    return total
