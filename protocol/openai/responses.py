"""OpenAI's responses with text output, for models that `transformers` runs; vLLM answers for those that it runs.

Nothing is stored. https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from starlette.responses import Response

from protocol.generated_choices import Choice, count_logprobs, render_logprobs
from protocol.http.body import Body, json_response
from protocol.http.rendering import note_rendering
from protocol.http.sse import stream_events
from protocol.model_selection import SelectModel, name_in_answer, select_generator
from protocol.openai.chats import Effort, effort_variables
from protocol.openai.choices import count_generation_usage
from protocol.openai.errors import openai_error
from protocol.openai.logprobs import chat_logprobs
from protocol.openai.messages import read_messages
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.requests import TopLogprobs
from protocol.openai.response_formats import JsonSchema, ResponseFormat, read_response_format
from runners.core.errors import InputError, UnsupportedError
from runners.core.generation import (
    AcceptedRequest,
    Chat,
    Constraint,
    GenerationRequest,
    PromptOptions,
    Sampling,
    TokenLogprobs,
)
from runners.core.log_labels import printable
from runners.core.number_types import PositiveInt
from runners.core.output_constraints import read_structured_outputs
from runners.core.request_limits import RequestLimits
from runners.core.runner import TextGenerator
from runners.core.sampling_parameters import SamplingFields, check_counts

_WITH_LOGPROBS = "message.output_text.logprobs"
_UNFINISHED = frozenset({"in_progress", "incomplete"})


class TextFormat(JsonSchema, kw_only=True):
    """The format of the output, with the JSON schema if the type is `json_schema`."""

    type: Literal["text", "json_object", "json_schema"] = "text"


class TextConfig(msgspec.Struct, kw_only=True):
    """OpenAI's `text`: the format of the output."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(msgspec.Struct, kw_only=True):
    """OpenAI's `reasoning`: how long the model thinks."""

    effort: Effort | None = None


class ResponsesRequest(SamplingFields, kw_only=True):
    """The body of `responses`."""

    input: str | Annotated[list[dict[str, Any]], Meta(min_length=1)]
    model: str | None = None
    instructions: str | None = None
    max_output_tokens: PositiveInt | None = None
    stream: bool | None = None
    text: TextConfig | None = None
    include: list[str] | None = None
    top_logprobs: TopLogprobs | None = None
    truncation: Literal["auto", "disabled"] | None = None
    reasoning: Reasoning | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    request_id: str | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    user: str | None = None

    @property
    def with_logprobs(self) -> bool:
        return _WITH_LOGPROBS in (self.include or ())

    @property
    def continues(self) -> bool:
        """Whether the last message is unfinished: the output continues it."""
        return isinstance(self.input, list) and self.input[-1].get("status") in _UNFINISHED


_decoder = BodyDecoder(ResponsesRequest, ParameterSet.RESPONSES)


async def answer_response(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `responses` with a message of text.

    Raises:
        LimitExceededError: the body exceeds a limit of the operator's.
        InputError: the body is malformed, or asks for something that this engine does not do.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
    """
    call = await _decoder.read(body, limits)
    runner = select_generator(select, call.model)
    sampling = _read_sampling(call)
    options = PromptOptions(truncate_to=-1 if call.truncation == "auto" else None, source_language=call.src_lang)
    check_counts(call, runner.limits)
    chat = Chat(_read_input(call, runner.limits), None, _variables(call))
    answer = _Answer(call, runner, GenerationRequest([chat], sampling, options))
    if call.stream:
        return await stream_events(answer.stream(), answer.describe_error, named=True)
    return json_response(await answer.complete())


def _read_input(call: ResponsesRequest, limits: RequestLimits) -> list[dict[str, Any]]:
    items = [{"role": "user", "content": call.input}] if isinstance(call.input, str) else call.input
    for position, item in enumerate(items):
        if (kind := item.get("type", "message")) != "message":
            raise InputError(f"input[{position}] is of type {str(kind)[:40]}: only messages are read", "input")
    messages = read_messages(items, limits, "input")
    return [{"role": "system", "content": call.instructions}, *messages] if call.instructions else messages


def _variables(call: ResponsesRequest) -> dict[str, Any]:
    kwargs = call.chat_template_kwargs or {}
    if kwargs.get("chat_template") is not None:
        raise InputError("this server does not take chat templates of requests", "chat_template_kwargs")
    flags = {"add_generation_prompt": not call.continues, "continue_final_message": call.continues}
    effort = None if call.reasoning is None else call.reasoning.effort
    return {**kwargs, **flags, **effort_variables(effort, kwargs)}


def _read_sampling(call: ResponsesRequest) -> Sampling:
    if others := [name for name in call.include or () if name != _WITH_LOGPROBS]:
        raise InputError(f"include {others[0][:60]} is not supported; there is {_WITH_LOGPROBS}", "include")
    sampling = call.to_sampling(call.max_output_tokens, _constraint(call))
    return replace(sampling, logprobs=(call.top_logprobs or 0) if call.with_logprobs else None)


def _constraint(call: ResponsesRequest) -> Constraint | None:
    text = call.text or TextConfig()
    if text.verbosity not in (None, "medium"):
        raise UnsupportedError("text.verbosity", "text", on_vllm=False)
    constraint = read_structured_outputs(call.structured_outputs)
    if text.format is None:
        return constraint
    if constraint is not None:
        raise InputError("give one of text.format and structured_outputs", "structured_outputs")
    if text.format.type == "json_schema" and text.format.schema is None:
        raise InputError("text.format json_schema needs a schema", "text")
    return read_response_format(ResponseFormat(type=text.format.type, json_schema=text.format))


class _Answer:
    """The answer to a request: its response object, or the events of its stream."""

    def __init__(self, call: ResponsesRequest, runner: TextGenerator, request: GenerationRequest) -> None:
        self._call = call
        self._runner = runner
        self._request = request
        self._id = printable(call.request_id) if call.request_id else f"resp_{uuid.uuid4().hex}"
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._events = 0

    async def complete(self) -> dict[str, Any]:
        choice = Choice()
        async with self._runner.generate(self._request) as accepted:
            async for _, delta in accepted.deltas:
                choice.add(delta)
            note_rendering()
            return self._finished(accepted, choice, await self._part(choice.text, choice.logprobs))

    async def stream(self) -> AsyncGenerator[dict[str, Any] | None, None]:
        """The events; None comes first, once the request is accepted."""
        choice = Choice()
        place = {"output_index": 0, "item_id": self._message_id, "content_index": 0}
        async with self._runner.generate(self._request) as accepted:
            yield None
            for event in self._opening(place):
                yield event
            async for _, delta in accepted.deltas:
                choice.add(delta)
                if delta.text or delta.logprobs:
                    logprobs = self._logprobs(delta.logprobs)
                    yield self._event("response.output_text.delta", **place, delta=delta.text, logprobs=logprobs)
            part = await self._part(choice.text, choice.logprobs)
            yield self._event("response.output_text.done", **place, text=choice.text, logprobs=part["logprobs"])
            yield self._event("response.content_part.done", **place, part=part)
            finished = self._finished(accepted, choice, part)
            yield self._event("response.output_item.done", output_index=0, item=finished["output"][0])
            yield self._event("response.completed", response=finished)

    def _opening(self, place: dict[str, Any]) -> list[dict[str, Any]]:
        response = self._describe("in_progress", [], None, None)
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
            self._event("response.output_item.added", output_index=0, item=self._message("in_progress", [])),
            self._event("response.content_part.added", **place, part=part),
        ]

    def describe_error(self, error: Exception) -> dict[str, Any]:
        """The event of an error after the stream has begun."""
        described: Any = openai_error(error)["error"]
        return self._event("error", message=described["message"], code=described["code"], param=described["param"])

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._events += 1
        return {"type": kind, "sequence_number": self._events - 1, **fields}

    def _finished(self, accepted: AcceptedRequest, choice: Choice, part: dict[str, Any]) -> dict[str, Any]:
        usage = count_generation_usage(self._runner, accepted.prompts, [len(choice.token_ids)])
        counted = {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }
        content = [part] if choice.text else []
        incomplete = {"reason": "max_output_tokens"} if choice.finish_reason == "length" else None
        output = [self._message("completed", content)]
        return self._describe("completed" if incomplete is None else "incomplete", output, incomplete, counted)

    def _describe(
        self, status: str, output: list[dict[str, Any]], incomplete: dict[str, str] | None, usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        call = self._call
        text = {"format": {"type": "text"}} if call.text is None else msgspec.to_builtins(call.text)
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status, "error": None,
            "incomplete_details": incomplete, "model": name_in_answer(self._runner, call.model), "output": output,
            "instructions": call.instructions, "max_output_tokens": call.max_output_tokens, "max_tool_calls": None,
            "parallel_tool_calls": True, "previous_response_id": None, "prompt": None, "background": False,
            "reasoning": None if call.reasoning is None else msgspec.to_builtins(call.reasoning),
            "service_tier": call.service_tier or "auto", "store": False, "temperature": call.temperature,
            "text": text, "tool_choice": "none", "tools": [], "top_logprobs": call.top_logprobs, "top_p": call.top_p,
            "presence_penalty": call.presence_penalty, "frequency_penalty": call.frequency_penalty,
            "truncation": call.truncation or "disabled", "metadata": call.metadata, "user": call.user, "usage": usage,
        }  # fmt: skip

    def _message(self, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self._message_id, "type": "message", "role": "assistant", "status": status, "content": content}

    async def _part(self, text: str, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        logprobs = await render_logprobs(lambda: self._logprobs(entries), count_logprobs(entries))
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> Any:
        return chat_logprobs(entries, as_ids=False)["content"] if self._call.with_logprobs else []
