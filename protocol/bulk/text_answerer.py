"""Predictions of many texts, which keep the engine's batches full."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any, TypeAlias, TypeVar

from protocol.bulk.rows import count_characters
from protocol.output_tensors import wire_name
from protocol.request_parameters import select_model_parameters
from protocol.service_paths import check_generates
from runners.core.errors import (
    EngineDeadError,
    InputError,
    LimitExceededError,
    ModelNotReadyError,
    OverloadedError,
    PredictorError,
    RunnerError,
    list_names,
    log_failure,
    refer_to,
)
from runners.core.predictions import MAIN, Options, Prediction, TextInput
from runners.core.request_limits import RequestLimits
from runners.core.request_options import OPTION_FLAGS, check_options, count_truncated_tokens, resolve_options
from runners.core.runner import Runner
from runners.core.task import Task

logger = logging.getLogger(__name__)

Answer: TypeAlias = Prediction | InputError
T = TypeVar("T")

# The texts and characters of a call of the engine, and the calls at once: more than two batches always wait.
_CALL_TEXTS = 256
_CALL_CHARACTERS = 2**20
_CALLS = 8
# A generator gets one text a call, so that a wrong text makes no other begin again.
_GENERATING_CALLS = 256
_LONGEST_PAUSE = 5.0
_SHORT = TextInput("a")
# What ends the job: further texts would fail too.
_FATAL = (EngineDeadError, ModelNotReadyError, PredictorError)
# The position of a text in its call, which means nothing to the reader of a row.
_POSITION = re.compile(r"^text 0 (cannot be served: )?")


class UnexpectedTextError(InputError):
    """A text cannot be answered because of a fault of this server."""


class TextAnswerer:
    """Answers texts with the options of one job.

    Attributes:
        extra_names: the columns that an answer has beside its prediction.
    """

    def __init__(self, runner: Runner, parameters: Mapping[str, Any], limits: RequestLimits) -> None:
        """
        Args:
            runner: a loaded model.
            parameters: V1's `parameters` of a request.

        Raises:
            InputError: the model does not generate text, or a parameter is wrong.
        """
        limits.check("max_parameters", len(parameters), "parameters")
        check_generates(runner)
        chosen = select_model_parameters(parameters)
        options = resolve_options(runner, chosen, limits)
        generates = runner.generator is not None
        if generates:
            _check_length(runner, options)
        else:
            check_options(options, runner.supported_options, limits)
            _warn_of_unknown(chosen, {*runner.supported_options.names, *OPTION_FLAGS})
        self._runner = runner
        self._parameters = frozenset(chosen)
        self._options = options
        self._limits = limits
        self._call_texts = 1 if generates else min(_CALL_TEXTS, limits.max_client_batch_size)
        calls = _GENERATING_CALLS if generates else _CALLS
        self._calls = asyncio.Semaphore(min(calls, limits.max_concurrent_requests))
        self.extra_names = tuple(wire_name(name) for name in sorted(count_truncated_tokens(options).outputs - {MAIN}))

    async def check(self) -> None:
        """Answer a short text, which finds parameters that only the engine can tell to be wrong.

        Raises:
            RunnerError: a parameter is wrong, or the model has died.
        """
        sampling = replace(self._options.sampling, max_tokens=1, min_tokens=0)
        try:
            await self._infer_patiently([_SHORT], replace(self._options, sampling=sampling))
        except _FATAL:
            raise
        except Exception as error:
            # Any other error is that of a text, which the task may want to be another.
            if isinstance(error, InputError) and error.param in self._parameters:
                raise InputError(f"the parameter {error.param} is wrong: {_to_answer(error)}", error.param) from error

    async def answer(self, texts: Sequence[TextInput | InputError]) -> list[Answer]:
        """The answer to each text, in order.

        Args:
            texts: texts, and why others cannot be answered, which are their answers.

        Raises:
            RunnerError: the model has died, the predictor that runs it does not answer, or each of several texts fails
                by a fault of this server.
        """
        given = [text for text in texts if not isinstance(text, InputError)]
        found = [answer for some in await _gather(map(self._call, self._cut(given))) for answer in some]
        if len(found) > 1 and all(isinstance(answer, UnexpectedTextError) for answer in found):
            raise RunnerError(f"none of {len(found)} texts could be answered: {found[0]}")
        answers = iter(found)
        return [text if isinstance(text, InputError) else next(answers) for text in texts]

    def _cut(self, texts: Sequence[TextInput]) -> Iterator[list[TextInput]]:
        """The texts of each call."""
        call: list[TextInput] = []
        characters = 0
        for text in texts:
            size = count_characters(text)
            if call and (len(call) == self._call_texts or characters + size > _CALL_CHARACTERS):
                yield call
                call, characters = [], 0
            call.append(text)
            characters += size
        if call:
            yield call

    async def _call(self, texts: Sequence[TextInput]) -> list[Answer]:
        async with self._calls:
            return await self._infer(texts)

    async def _infer(self, texts: Sequence[TextInput]) -> list[Answer]:
        """The answers to the texts of a call; if it fails, to smaller ones."""
        try:
            return [*await self._infer_patiently(texts, self._options)]
        except _FATAL:
            raise
        except Exception as error:
            if len(texts) == 1:
                return [_to_answer(error)]
            # A limit of one request allows fewer texts; any other error is that of a text, which is searched for.
            size = len(texts) // 2 if isinstance(error, LimitExceededError) else isqrt(len(texts))
        pieces = [texts[start : start + size] for start in range(0, len(texts), size)]
        return [answer for answers in await _gather(map(self._infer, pieces)) for answer in answers]

    async def _infer_patiently(self, texts: Sequence[TextInput], options: Options) -> list[Prediction]:
        """As the runner, but wait where it is too busy."""
        pause = 0.01
        while True:
            try:
                return await self._runner.infer(texts, options)
            except OverloadedError as error:
                await asyncio.sleep(min(pause, error.retry_after))
                pause = min(2 * pause, _LONGEST_PAUSE)


async def _gather(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; the first error ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


def _check_length(runner: Runner, options: Options) -> None:
    """
    Raises:
        InputError: a prompt would have no room beside so many tokens of an answer.
    """
    count, limit = options.sampling.max_tokens, runner.max_length
    if runner.task == Task.TEXT_GENERATION and count is not None and count >= limit:
        raise InputError(
            f"{count} of max_tokens leave no room for a text: the model takes {limit} tokens of both", "max_tokens"
        )


def _warn_of_unknown(parameters: Collection[str], known: Collection[str]) -> None:
    if unknown := sorted({*parameters} - {*known}):
        logger.warning(
            "the parameters %s are unknown and ignored; this model has %s",
            list_names(unknown), ", ".join(sorted(known)),
        )  # fmt: skip


def _to_answer(error: Exception) -> InputError:
    """The error of a row."""
    if isinstance(error, RunnerError):
        return InputError(_POSITION.sub(_name_text, str(error)))
    log_failure(error, "a text cannot be answered")
    return UnexpectedTextError(f"an unexpected error, which the log has (reference {refer_to(error)})")


def _name_text(found: re.Match[str]) -> str:
    return "" if found[1] else "the text "
