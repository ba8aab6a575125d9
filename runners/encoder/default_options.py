"""The options that the operator's arguments set for every text, and what a request's options imply."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import replace

from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.arguments import Arguments
from runners.core.predictions import TRUNCATED_TOKENS, Options, Output
from runners.core.task import Task

logger = logging.getLogger(__name__)

_NAMES = frozenset({*AnswerOptions.model_fields, *OverflowOptions.model_fields})


def read_default_options(arguments: Arguments, supported: Collection[str] = _NAMES) -> Options:
    """The options of a request that sets none.

    Args:
        supported: names of the options that the task has; the others get their defaults.
    """
    output = Output.LABELS
    if arguments.return_probabilities:
        output = Output.PROBABILITIES
    elif arguments.return_raw_logits:
        output = Output.RAW_LOGITS
    values = arguments.model_dump(include={*supported})
    answer, overflow = AnswerOptions.model_validate(values), OverflowOptions.model_validate(values)
    return Options(output, answer, overflow, arguments.return_offsets_mapping)


def warn_of_unsupported(arguments: Arguments, task: Task, supported: Collection[str], returns_offsets: bool) -> None:
    """Log a warning for every option that the operator has set and the task does not have."""
    if arguments.return_offsets_mapping and not returns_offsets:
        logger.warning("return_offsets_mapping has no effect on %s", task)
    for name in sorted(_NAMES - {*supported}):
        if getattr(arguments, name) != Arguments.model_fields[name].default:
            logger.warning("%s has no effect on %s", name, task)


def count_truncated_tokens(options: Options) -> Options:
    """The same options, with `return_truncated_tokens` and the output `truncated_tokens` both set if either is."""
    if TRUNCATED_TOKENS.name in options.tensors:
        return replace(options, overflow=options.overflow.model_copy(update={"return_truncated_tokens": True}))
    if options.overflow.return_truncated_tokens:
        return replace(options, tensors=options.tensors | {TRUNCATED_TOKENS.name})
    return options
