"""The options of a request: the operator's defaults, changed by the request's parameters, checked against the task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, ValidationError

from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.errors import InputError
from runners.core.predictions import OFFSETS, TRUNCATED_TOKENS, AnswerForm, Options
from runners.core.request_limits import RequestLimits
from runners.core.sampling_parameters import read_sampling
from runners.core.task import Task

if TYPE_CHECKING:
    from runners.core.arguments import Arguments
    from runners.core.runner import Runner

logger = logging.getLogger(__name__)

# Flags that select the form and the outputs of an answer. Every task accepts them, also those without an effect.
OPTION_FLAGS = ("return_probabilities", "return_raw_logits", "return_offsets_mapping")
_ANSWER_NAMES, _OVERFLOW_NAMES = tuple(AnswerOptions.model_fields), tuple(OverflowOptions.model_fields)
_NAMES = frozenset({*_ANSWER_NAMES, *_OVERFLOW_NAMES})
_PARAMETERS = (*_ANSWER_NAMES, *_OVERFLOW_NAMES, *OPTION_FLAGS)
_FORM_BY_FLAG = {"return_probabilities": AnswerForm.PROBABILITIES, "return_raw_logits": AnswerForm.RAW_LOGITS}
# `candidate_labels` replace the model's own classes, and a text that is paired with them is not split into windows.
_EXCLUSIONS = (("candidate_labels", "function_to_apply"), ("candidate_labels", "stride"))
_LISTS_OF_NAMES = ("candidate_labels", "targets", "ignore_labels")
# By pydantic's type of an error, where its own message speaks of Python's types.
_MESSAGES = {
    "tuple_type": "Input should be a list, or a string with commas",
    "string_too_short": "a name must not be empty",
}


@dataclass(frozen=True, slots=True)
class SupportedOptions:
    """The options that a task has on a loaded model.

    Attributes:
        names: the names of its `AnswerOptions` and `OverflowOptions`.
        scores_classes: whether `return_probabilities` and `return_raw_logits` change its answer.
        excluded_outputs: by option, the named outputs that a request cannot have beside it.
        prompt_names: the values of `prompt_name`.
        normalizes: whether vectors have length 1 without the option `normalize` too.
        check: checks options against the model; raises an InputError.
    """

    task: Task | None = None
    names: frozenset[str] = frozenset()
    scores_classes: bool = True
    excluded_outputs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    prompt_names: Sequence[str] = ()
    normalizes: bool = False
    check: Callable[[Options], None] = lambda _: None


class _Parameters(OverflowOptions, AnswerOptions):
    """An encoder's options as requests carry them: "true" is a boolean on a command line only."""

    model_config = ConfigDict(strict=True)

    return_probabilities: bool = False
    return_raw_logits: bool = False
    return_offsets_mapping: bool = False


def read_default_options(arguments: Arguments, names: Collection[str] = _NAMES) -> Options:
    """The options of a request without parameters, which the operator's arguments set.

    Args:
        names: the options that the task has; the others keep their own defaults.
    """
    form = AnswerForm.LABELS
    if arguments.return_probabilities:
        form = AnswerForm.PROBABILITIES
    elif arguments.return_raw_logits:
        form = AnswerForm.RAW_LOGITS
    values = arguments.model_dump(include={*names})
    answer, overflow = AnswerOptions.model_validate(values), OverflowOptions.model_validate(values)
    outputs = frozenset({OFFSETS} if arguments.return_offsets_mapping else ())
    return Options(form, answer, overflow, outputs)


def warn_of_unsupported(arguments: Arguments, task: Task, names: Collection[str], returns_offsets: bool) -> None:
    """Log a warning for every option that the operator has set and the task does not have."""
    if arguments.return_offsets_mapping and not returns_offsets:
        logger.warning("return_offsets_mapping has no effect on %s", task)
    for name in sorted(_NAMES - {*names}):
        if getattr(arguments, name) != type(arguments).model_fields[name].default:
            logger.warning("%s has no effect on %s", name, task)


def resolve_options(runner: Runner, parameters: Mapping[str, Any] | None, limits: RequestLimits) -> Options:
    """The options of a request with these parameters.

    An encoder ignores parameters that it does not know; a generator refuses them, since a misspelt one would change
    the text.

    Args:
        parameters: by name, values as JSON or gRPC carries them.

    Raises:
        LimitExceededError: a parameter asks for more than the operator allows.
        InputError: a parameter has a wrong value, the task does not have it, or parameters exclude each other.
    """
    options = runner.default_options
    if (generator := runner.generator) is not None:
        sampling, prompt = read_sampling(parameters, generator.limits)
        return replace(options, sampling=sampling, prompt=prompt)
    values = {name: parameters[name] for name in _PARAMETERS if name in parameters} if parameters else {}
    return _change_options(options, values, runner.supported_options, limits) if values else options


def _change_options(
    defaults: Options, values: Mapping[str, Any], supported: SupportedOptions, limits: RequestLimits
) -> Options:
    """The operator's options, changed by the values of a request's parameters."""
    for name in values:
        if name in _NAMES and name not in supported.names:
            option_names = ", ".join(sorted(supported.names)) or "none"
            raise InputError(
                f"the parameter {name} does not apply to {supported.task}, whose options are: {option_names}", name
            )
    _check_amounts(values, limits)
    parameters = _read(values)
    for one, other in _EXCLUSIONS:
        if values.get(one) and other in values:
            raise InputError(f"the parameters {one} and {other} exclude each other", other)
    answer = {name: getattr(parameters, name) for name in values if name in _ANSWER_NAMES}
    overflow = {name: getattr(parameters, name) for name in values if name in _OVERFLOW_NAMES}
    options = replace(
        defaults,
        answer=defaults.answer.model_copy(update=answer) if answer else defaults.answer,
        overflow=defaults.overflow.model_copy(update=overflow) if overflow else defaults.overflow,
    )
    if (with_offsets := values.get("return_offsets_mapping")) is not None:
        outputs = options.outputs | {OFFSETS} if with_offsets else options.outputs - {OFFSETS}
        options = replace(options, outputs=outputs)
    return _choose_form(options, values, answer, supported)


def _choose_form(
    options: Options, values: Mapping[str, Any], answer: Mapping[str, Any], supported: SupportedOptions
) -> Options:
    """The options, with the form of answer that the flags of a request ask for."""
    forms = [form for flag, form in _FORM_BY_FLAG.items() if values.get(flag)]
    if len(forms) > 1:
        raise InputError(f"the parameters {' and '.join(_FORM_BY_FLAG)} exclude each other")
    if forms and supported.scores_classes:
        if answer:
            name = next(name for name in _ANSWER_NAMES if name in answer)
            raise InputError(f"the parameters {name} and return_{forms[0]} exclude each other")
        return replace(options, form=forms[0], answer=AnswerOptions())
    if any(values.get(flag) is False and options.form is form for flag, form in _FORM_BY_FLAG.items()):
        return replace(options, form=AnswerForm.LABELS)
    return options


def _read(values: Mapping[str, Any]) -> _Parameters:
    """
    Raises:
        InputError: an option has a wrong value.
    """
    try:
        return _Parameters.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        name, message = problem["loc"][0], problem["msg"].removeprefix("Value error, ")
        if name in OPTION_FLAGS:
            raise InputError(f"the parameter {name} must be true or false") from error
        message = _MESSAGES.get(problem["type"], message)
        raise InputError(f"the parameter {name} is wrong: {message}", str(name)) from error


def _check_amounts(values: Mapping[str, Any], limits: RequestLimits) -> None:
    """Check the amounts that options ask for, before the options are parsed.

    Raises:
        LimitExceededError: an amount is larger than the operator allows.
    """
    if isinstance(top_k := values.get("top_k"), int):
        limits.check("max_top_k", top_k, "answers (top_k)", "top_k")
    if isinstance(length := values.get("max_answer_len"), int):
        limits.check("max_answer_tokens", length, "tokens (max_answer_len)", "max_answer_len")
    for option in _LISTS_OF_NAMES:
        names = values.get(option)
        if isinstance(names, str):
            limits.check("max_labels", names.count(",") + 1, f"names in {option}", option)
            names = names.split(",")
        if isinstance(names, list):
            limits.check("max_labels", len(names), f"names in {option}", option)
            longest = max((len(name) for name in names if isinstance(name, str)), default=0)
            limits.check("max_label_characters", longest, f"characters of a name in {option}", option)


def check_options(options: Options, supported: SupportedOptions, limits: RequestLimits) -> None:
    """Check resolved options, the operator's defaults among them, against the limits and the model.

    Raises:
        LimitExceededError: an option asks for more than the operator allows.
        InputError: options exclude each other, or the model cannot do what one asks for.
    """
    if "max_answer_len" in supported.names:
        limits.check("max_answer_tokens", options.answer.max_answer_len, "tokens of an answer", "max_answer_len")
    for option, outputs in supported.excluded_outputs.items():
        if getattr(options.answer, option) and options.outputs & outputs:
            raise InputError(
                f"the outputs {', '.join(sorted(outputs))} cannot be combined with {option}: leave out {option}, or "
                "request the outputs label and score"
            )
    supported.check(options)


def check_prompt_name(options: Options, defaults: Options, has_tokens: bool) -> None:
    """
    Args:
        has_tokens: whether the request has tokenized texts.

    Raises:
        InputError: a request of tokens names a prompt.
    """
    if has_tokens and options.answer.prompt_name not in (None, defaults.answer.prompt_name):
        raise InputError("prompt_name needs texts, but the request has token ids", "prompt_name")


def count_truncated_tokens(options: Options) -> Options:
    """The same options, with `return_truncated_tokens` and the output `truncated_tokens` both set if either is."""
    if TRUNCATED_TOKENS in options.outputs:
        return replace(options, overflow=options.overflow.model_copy(update={"return_truncated_tokens": True}))
    if options.overflow.return_truncated_tokens:
        return replace(options, outputs=options.outputs | {TRUNCATED_TOKENS})
    return options
