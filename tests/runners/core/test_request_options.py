"""The options of a request: defaults, parameters, and what a task has."""

from __future__ import annotations

from typing import Any

import pytest

from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.arguments import Arguments
from runners.core.errors import InputError, LimitExceededError
from runners.core.predictions import OFFSETS, TRUNCATED_TOKENS, AnswerForm, Options
from runners.core.request_options import (
    SupportedOptions,
    check_options,
    check_prompt_name,
    count_truncated_tokens,
    read_default_options,
    resolve_options,
)
from runners.core.task import Task

ARGUMENTS = Arguments()
CLASSIFICATION = SupportedOptions(
    Task.SEQUENCE_CLASSIFICATION, frozenset({"labels", "top_k", "threshold", "truncation", "stride"})
)


class Runner:
    """What `resolve_options` asks of a runner."""

    generator = None

    def __init__(self, supported: SupportedOptions = CLASSIFICATION, defaults: Options | None = None) -> None:
        self.supported_options = supported
        self.default_options = Options() if defaults is None else defaults


def resolve(parameters: dict[str, Any] | None, **runner: Any) -> Options:
    given: Any = Runner(**runner)
    return resolve_options(given, parameters, ARGUMENTS)


def test_without_parameters_the_options_are_the_operator_s() -> None:
    defaults = read_default_options(Arguments(top_k=3, return_offsets_mapping=True))
    for parameters in (None, {}, {"unknown": 1}):
        assert resolve(parameters, defaults=defaults) is defaults
    assert (defaults.answer.top_k, defaults.outputs) == (3, frozenset({OFFSETS}))


def test_parameters_win_over_the_operator_s() -> None:
    defaults = Options(answer=AnswerOptions(top_k=3, labels=True), overflow=OverflowOptions(truncation=False))
    options = resolve({"top_k": 5, "stride": 2, "return_offsets_mapping": True}, defaults=defaults)
    assert options.answer == AnswerOptions(top_k=5, labels=True)
    assert options.overflow == OverflowOptions(truncation=False, stride=2)
    assert options.outputs == {OFFSETS}
    assert resolve({"return_offsets_mapping": False}, defaults=options).outputs == frozenset()


def test_flags_choose_the_form() -> None:
    defaults = Options(AnswerForm.RAW_LOGITS, AnswerOptions())
    assert resolve({"return_probabilities": True}, defaults=defaults).form is AnswerForm.PROBABILITIES
    assert resolve({"return_raw_logits": False}, defaults=defaults).form is AnswerForm.LABELS
    assert resolve({"return_probabilities": False}, defaults=defaults).form is AnswerForm.RAW_LOGITS
    records = Options(answer=AnswerOptions(top_k=3))
    assert resolve({"return_raw_logits": True}, defaults=records) == Options(AnswerForm.RAW_LOGITS)
    vectors = SupportedOptions(Task.TEXT_EMBEDDING, frozenset({"dimensions"}), scores_classes=False)
    assert resolve({"return_raw_logits": True, "dimensions": 2}, supported=vectors).answer.dimensions == 2


@pytest.mark.parametrize(
    ("parameters", "error", "param"),
    [
        ({"targets": "a"}, InputError, "targets"),
        ({"top_k": "3"}, InputError, "top_k"),
        ({"labels": 1}, InputError, "labels"),
        ({"top_k": 10**6}, LimitExceededError, "top_k"),
        ({"return_probabilities": "true"}, InputError, None),
        ({"return_probabilities": True, "return_raw_logits": True}, InputError, None),
        ({"return_probabilities": True, "labels": True}, InputError, None),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], error: type[InputError], param: str | None) -> None:
    with pytest.raises(InputError) as raised:
        resolve(parameters)
    assert (type(raised.value), raised.value.param) == (error, param)


def test_options_that_exclude_an_output() -> None:
    supported = SupportedOptions(excluded_outputs={"candidate_labels": frozenset({"logits"})})
    options = Options(answer=AnswerOptions(candidate_labels=("a",)), outputs=frozenset({"logits"}))
    check_options(Options(outputs=frozenset({"logits"})), supported, ARGUMENTS)
    with pytest.raises(InputError, match="leave out candidate_labels"):
        check_options(options, supported, ARGUMENTS)


def test_the_operator_s_own_options_are_checked_too() -> None:
    supported = SupportedOptions(names=frozenset({"max_answer_len"}))
    with pytest.raises(LimitExceededError, match="max_answer_tokens"):
        check_options(Options(answer=AnswerOptions(max_answer_len=2000)), supported, ARGUMENTS)


def test_a_prompt_goes_before_texts_only() -> None:
    named = Options(answer=AnswerOptions(prompt_name="query"))
    check_prompt_name(named, Options(), has_tokens=False)
    check_prompt_name(named, named, has_tokens=True)
    with pytest.raises(InputError, match="the request has token ids"):
        check_prompt_name(named, Options(), has_tokens=True)


def test_truncated_tokens_are_an_option_and_an_output() -> None:
    by_option = count_truncated_tokens(Options(overflow=OverflowOptions(return_truncated_tokens=True)))
    by_name = count_truncated_tokens(Options(outputs=frozenset({TRUNCATED_TOKENS})))
    assert by_option == by_name
    assert by_option.outputs == {TRUNCATED_TOKENS}
    assert count_truncated_tokens(Options()) == Options()
