"""The answers of models that generate text: Text Generation Inference's, whole or as a stream of tokens.

https://huggingface.github.io/text-generation-inference. The text includes the stop string that ends it, as there.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from protocol.generated_choices import Choice, describe_token, name_finish, render_logprobs
from protocol.http.body import json_response
from protocol.http.disconnects import until_disconnect
from protocol.http.errors import describe_error
from protocol.http.rendering import note_rendering
from protocol.http.sse import stream_events
from protocol.huggingface.errors import error_body
from protocol.huggingface.generation_requests import (
    GenerateParameters,
    GenerationBody,
    SequenceBody,
    SequenceParameters,
)
from protocol.huggingface.tasks import HubTask
from runners.core.generation import AcceptedRequest, Delta, GenerationRequest, TokenLogprob, TokenLogprobs
from runners.core.request_limits import RequestLimits
from runners.core.runner import TextGenerator


@dataclass(frozen=True, slots=True)
class GenerationForm:
    """The form of the bodies and answers of a task.

    Attributes:
        request: the type of the body.
        parameters: the type of its parameters.
        name: the name of the text in the answer.
        nests: whether each answer to a batch is in a list of its own, as in the pipeline.
    """

    request: type[GenerationBody]
    parameters: type[GenerateParameters]
    name: str = "generated_text"
    nests: bool = False


GENERATION_FORMS: Mapping[HubTask, GenerationForm] = {
    HubTask.SUMMARIZATION: GenerationForm(SequenceBody, SequenceParameters, "summary_text"),
    HubTask.TEXT2TEXT_GENERATION: GenerationForm(SequenceBody, SequenceParameters),
    HubTask.TEXT_GENERATION: GenerationForm(GenerationBody, GenerateParameters, nests=True),
    HubTask.TRANSLATION: GenerationForm(SequenceBody, SequenceParameters, "translation_text"),
}


async def answer_generation(
    request: Request, runner: TextGenerator, task: HubTask | None, body: GenerationBody, limits: RequestLimits
) -> Response:
    """
    Args:
        task: None if the request names none, and the model reads one text and writes another. Clients that translate or
            summarize do not say so at a model's URL, so the answer has the text under the names of all of them.

    Raises:
        LimitExceededError: there are too many prompts, outputs or stop strings, or too many characters or tokens.
        InputError: a prompt cannot be continued, or fields contradict each other.
        OverloadedError: too many requests are under way, or too much waits.
    """
    generation_request = body.to_request(limits)
    if body.stream:
        return await until_disconnect(
            request, stream_events(_stream(runner, body, generation_request), _describe_error)
        )
    if task is None:
        task, names = HubTask.TEXT2TEXT_GENERATION, [*dict.fromkeys(form.name for form in GENERATION_FORMS.values())]
    else:
        names = [GENERATION_FORMS[task].name]
    is_nested = GENERATION_FORMS[task].nests and isinstance(body.inputs, list)
    return await until_disconnect(request, _generate(runner, names, body, generation_request, is_nested))


def _describe_error(error: Exception) -> dict[str, Any]:
    status, message, _ = describe_error(error)
    return error_body(status, message)


async def _generate(
    runner: TextGenerator,
    names: Sequence[str],
    body: GenerationBody,
    request: GenerationRequest,
    is_nested: bool,
) -> Response:
    async with runner.generate(request) as accepted:
        choices = [Choice() for _ in range(len(body.prompts) * accepted.choices)]
        async for index, delta in accepted.deltas:
            choices[index].add(delta)
        note_rendering()

        def render() -> Response:
            answers = [
                _describe(names, body, accepted, position, choices[first : first + accepted.choices])
                for position, first in enumerate(range(0, len(choices), accepted.choices))
            ]
            return json_response([[answer] for answer in answers] if is_nested else answers)

        return await render_logprobs(render, sum(choice.logprobs_count for choice in choices))


def _describe(
    names: Sequence[str], body: GenerationBody, accepted: AcceptedRequest, position: int, choices: Sequence[Choice]
) -> dict[str, Any]:
    """The answer to one prompt.

    Args:
        choices: its continuations, of which the one with the highest mean log probability is the answer.
    """
    best, *others = sorted(choices, key=_score, reverse=True) if len(choices) > 1 else choices
    parameters, start = body.parameters, _find_start(body, position)
    answer: dict[str, Any] = dict.fromkeys(names, start + best.text)
    if not parameters.has_details:
        return answer
    prefill = _list_prompt(accepted, position, best)
    details = _describe_choice(best, parameters, prefill)
    if others:
        details["best_of_sequences"] = [
            {"generated_text": start + other.text, **_describe_choice(other, parameters, prefill)} for other in others
        ]
    return {**answer, "details": details}


def _find_start(body: GenerationBody, position: int) -> str:
    return body.prompts[position] if body.parameters.return_full_text else ""


def _score(choice: Choice) -> float:
    return sum(entry.chosen.logprob for entry in choice.logprobs) / max(1, len(choice.logprobs))


def _describe_choice(choice: Choice, parameters: GenerateParameters, prefill: list[dict[str, Any]]) -> dict[str, Any]:
    tops = {"top_tokens": [_list_top(entry) for entry in choice.logprobs]} if parameters.top_n_tokens else {}
    return {
        "finish_reason": name_finish(choice.finish_reason, choice.stop_reason),
        "generated_tokens": len(choice.token_ids),
        "seed": parameters.seed,
        "prefill": prefill,
        "tokens": [describe_token(entry.chosen) for entry in choice.logprobs],
        **tops,
    }


def _list_prompt(accepted: AcceptedRequest, position: int, choice: Choice) -> list[dict[str, Any]]:
    """The tokens of a prompt, if they were asked for; the first one has no log probability."""
    if choice.prompt_logprobs is None:
        return []
    first = {"id": accepted.prompts[position][0], "text": accepted.echoes[position].first_token, "logprob": None}
    return [first if entry is None else _describe_prompt_token(entry.chosen) for entry in choice.prompt_logprobs]


def _describe_prompt_token(token: TokenLogprob) -> dict[str, Any]:
    return {"id": token.token_id, "text": token.text, "logprob": token.logprob}


def _list_top(entry: TokenLogprobs) -> list[dict[str, Any]]:
    return [describe_token(token) for token in entry.top]


async def _stream(
    runner: TextGenerator, body: GenerationBody, request: GenerationRequest
) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The events; None comes first, once the request is accepted."""
    async with runner.generate(request) as accepted:
        yield None
        tokens = _TokenStream(body, len(accepted.prompts[0]))
        async for _, delta in accepted.deltas:
            for event in tokens.read(delta):
                yield event


class _TokenStream:
    """Makes an event of each token of an output; their texts add up to the output's."""

    def __init__(self, body: GenerationBody, prompt_tokens: int) -> None:
        self._parameters = body.parameters
        self._start = _find_start(body, 0)
        self._prompt_tokens = prompt_tokens
        self._index = 0
        self._texts: list[str] = []
        self._sent = 0
        self._last: dict[str, Any] = {}

    def read(self, delta: Delta) -> list[dict[str, Any]]:
        """The events of a delta."""
        events = [self._make_event(entry, text) for entry, text in zip(delta.logprobs, self._split(delta), strict=True)]
        self._texts.append(delta.text)
        self._sent += len(delta.text)
        if delta.finish_reason is None:
            return events
        if not events:
            # The text of tokens that came before.
            events = [{**self._last, "token": {**self._last.get("token", _NO_TOKEN), "text": delta.text}}]
        return [*events[:-1], {**events[-1], **self._finish(delta)}]

    def _split(self, delta: Delta) -> list[str]:
        """The text of each token; that of an incomplete character comes with the token that completes it."""
        starts = [max(0, min(entry.offset - self._sent, len(delta.text))) for entry in delta.logprobs[1:]]
        ends = [*starts, len(delta.text)]
        return [delta.text[start:end] for start, end in zip([0, *starts], ends, strict=True)][: len(delta.logprobs)]

    def _make_event(self, entry: TokenLogprobs, text: str) -> dict[str, Any]:
        self._index += 1
        tops = {"top_tokens": _list_top(entry)} if self._parameters.top_n_tokens else {}
        token = {**describe_token(entry.chosen), "text": text}
        self._last = {"index": self._index, "token": token, **tops, "generated_text": None, "details": None}
        return self._last

    def _finish(self, delta: Delta) -> dict[str, Any]:
        parameters = self._parameters
        details = {
            "finish_reason": name_finish(delta.finish_reason, delta.stop_reason),
            "generated_tokens": self._index,
            "seed": parameters.seed,
            "input_length": self._prompt_tokens,
        }
        return {
            "generated_text": self._start + "".join(self._texts),
            "details": details if parameters.details else None,
        }


# Of an output that ends before its first token.
_NO_TOKEN: dict[str, Any] = {"id": 0, "text": "", "logprob": 0.0, "special": True}
