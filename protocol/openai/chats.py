"""OpenAI's chat completions, for models that `transformers` runs; vLLM answers for those that it runs.

https://platform.openai.com/docs/api-reference/chat, with vLLM's additions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal

from msgspec import Meta
from starlette.responses import Response

from protocol.generated_choices import Choice
from protocol.http.body import Body
from protocol.model_selection import SelectModel, name_in_answer, select_generator
from protocol.openai.choices import Renderer, answer
from protocol.openai.logprobs import chat_logprobs, prompt_logprobs
from protocol.openai.messages import read_messages
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.requests import CommonFields, TopLogprobs
from protocol.openai.tools import (
    CallReader,
    NamedTool,
    ToolChoice,
    Tools,
    check_choice,
    constrain_to_tools,
    describe_tools,
    read_calls,
)
from runners.core.errors import InputError
from runners.core.generation import (
    AcceptedRequest,
    Chat,
    Constraint,
    Delta,
    GenerationRequest,
    Sampling,
    TokenLogprobs,
    join_text_parts,
)
from runners.core.number_types import PositiveInt
from runners.core.request_limits import RequestLimits
from runners.core.runner import TextGenerator
from runners.core.sampling_parameters import check_counts

ChatMessages = Annotated[list[dict[str, Any]], Meta(min_length=1)]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Templated:
    """The fields of a body that the chat template reads.

    Both bodies declare them again, because a msgspec struct has at most one base that has fields; a test compares them.
    """

    __slots__ = ()

    add_generation_prompt: bool
    continue_final_message: bool
    chat_template: str | None
    chat_template_kwargs: dict[str, Any] | None

    def template_variables(self) -> dict[str, Any]:
        """The variables of the template; the request's fields win over `chat_template_kwargs`.

        Raises:
            InputError: the request brings a template, or its fields contradict each other.
        """
        kwargs = self.chat_template_kwargs or {}
        if self.chat_template is not None or kwargs.get("chat_template") is not None:
            raise InputError("this server does not take chat templates of requests", "chat_template")
        if self.continue_final_message and self.add_generation_prompt:
            raise InputError("continue_final_message needs add_generation_prompt to be false", "continue_final_message")
        flags = {
            "add_generation_prompt": self.add_generation_prompt,
            "continue_final_message": self.continue_final_message,
        }
        return {**kwargs, **flags}


class ChatRequest(CommonFields, Templated, kw_only=True):
    """The body of `chat/completions`."""

    messages: ChatMessages
    tools: Tools | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    max_completion_tokens: PositiveInt | None = None
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    echo: bool | None = None
    documents: list[dict[str, str]] | None = None
    reasoning_effort: Effort | None = None

    @property
    def forced(self) -> ToolChoice | None:
        """The tool that the model must call, or `required`; None if it writes text."""
        return None if self.tool_choice in (None, "none", "auto") else self.tool_choice


_decoder = BodyDecoder(ChatRequest, ParameterSet.CHATS)


async def answer_chat(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `chat/completions`; the template puts tools into the prompt, and the request may force their calls.

    Raises:
        LimitExceededError: the body exceeds a limit of the operator's.
        InputError: the body is malformed, or asks for something that this engine does not do.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
    """
    call = await _decoder.read(body, limits)
    runner = select_generator(select, call.model)
    call.check(bool(call.logprobs))
    _check(call)
    check_counts(call, runner.limits)
    messages = read_messages(call.messages, runner.limits)
    sampling = _read_sampling(call)
    tools = None if call.tools is None else describe_tools(call.tools)
    request = GenerationRequest(
        [Chat(messages, tools, _variables(call))],
        sampling,
        call.to_prompt_options(),
        call.choices,
        collected=not call.stream,
    )
    make_renderer = partial(_ChatRenderer, call, runner, messages[-1])
    return await answer(runner, request, make_renderer, call.stream_settings())


def _check(call: ChatRequest) -> None:
    if call.top_logprobs and not call.logprobs:
        raise InputError("top_logprobs needs logprobs to be true", "top_logprobs")
    if call.max_tokens == 0:
        raise InputError("max_tokens must be at least 1", "max_tokens")
    check_choice(call.tools, call.tool_choice)
    if call.forced is not None and call.structured_outputs is not None:
        raise InputError("give one of structured_outputs and a forced tool_choice", "structured_outputs")


def _variables(call: ChatRequest) -> dict[str, Any]:
    variables = call.template_variables()
    if call.documents is not None:
        variables["documents"] = call.documents
    return {**variables, **effort_variables(call.reasoning_effort, call.chat_template_kwargs)}


def effort_variables(effort: Effort | None, kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """The variables of a template for the effort; some templates only know whether the model thinks.

    Args:
        kwargs: the request's `chat_template_kwargs`, which win.
    """
    if effort is None:
        return {}
    thinking = {} if "enable_thinking" in (kwargs or {}) else {"enable_thinking": effort != "none"}
    return {"reasoning_effort": effort, **thinking}


def _read_sampling(call: ChatRequest) -> Sampling:
    max_tokens = call.max_tokens if call.max_completion_tokens is None else call.max_completion_tokens
    logprobs = (call.top_logprobs or 0) if call.logprobs else None
    sampling = call.to_sampling(max_tokens, _constraint(call))
    return replace(sampling, logprobs=logprobs, prompt_logprobs=call.prompt_logprobs, **call.special_fields())


def _constraint(call: ChatRequest) -> Constraint | None:
    if call.forced is None or call.tools is None:
        return call.constraint()
    # A forced call takes precedence over `response_format`, as in vLLM.
    return constrain_to_tools(call.tools, call.forced, call.parallel_tool_calls is not False)


class _ChatRenderer(Renderer):
    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(
        self, call: ChatRequest, runner: TextGenerator, last_message: Mapping[str, Any], accepted: AcceptedRequest
    ) -> None:
        super().__init__("chatcmpl", name_in_answer(runner, call.model), call.request_id)
        self._call = call
        self._prompt = list(accepted.prompts[0])
        self._role = "assistant" if call.add_generation_prompt else last_message["role"]
        echoes = call.echo and last_message["role"] == self._role
        self._echo = join_text_parts(last_message["content"]) if echoes else ""
        # By the index of the choice.
        self._call_readers: dict[int, CallReader] = {}

    def choice(self, index: int, choice: Choice) -> dict[str, Any]:
        call = self._call
        message: dict[str, Any] = {"role": self._role, "content": self._echo + choice.text, "refusal": None}
        if call.forced is not None:
            calls = read_calls(call.forced, choice.text)
            message = {**message, "content": self._echo or None, **({"tool_calls": calls} if calls else {})}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": self._finish_reason(choice.finish_reason, bool(message.get("tool_calls"))),
            "stop_reason": choice.stop_reason,
            "token_ids": choice.token_ids if call.return_token_ids else None,
        }

    def extra_fields(self, first: Choice) -> dict[str, Any]:
        return {
            "prompt_logprobs": prompt_logprobs(first.prompt_logprobs),
            "prompt_token_ids": self._prompt if self._call.return_token_ids else None,
        }

    def opening(self, index: int) -> list[dict[str, Any]]:
        empty = {"role": self._role, "content": ""}
        chunks: list[dict[str, Any]] = [{"choices": [_opening_choice(index, empty)]}]
        if self._call.return_token_ids:
            chunks[0]["prompt_token_ids"] = self._prompt
        if self._echo:
            chunks.append({"choices": [_opening_choice(index, {"content": self._echo})]})
        return chunks

    def delta(self, index: int, delta: Delta, is_first: bool) -> dict[str, Any] | None:
        message: dict[str, Any] = {"content": delta.text}
        has_calls = False
        if self._call.forced is not None:
            reader = self._call_readers.setdefault(index, CallReader(self._call.forced))
            calls = reader.read(delta.text)
            message = {"tool_calls": calls} if calls else {}
            has_calls = reader.has_calls
        with_ids = bool(self._call.return_token_ids and delta.token_ids)
        if not (message.get("content") or "tool_calls" in message or delta.finish_reason or delta.logprobs or with_ids):
            return None
        choice = {
            "index": index,
            "delta": message,
            "logprobs": self._logprobs(delta.logprobs),
            "finish_reason": self._finish_reason(delta.finish_reason, has_calls),
        }
        if delta.finish_reason is not None:
            choice["stop_reason"] = delta.stop_reason
        return {**choice, "token_ids": list(delta.token_ids)} if with_ids else choice

    def _finish_reason(self, reason: str | None, has_calls: bool) -> str | None:
        """`tool_calls` after calls, except those of a named tool, which end with `stop`, as in OpenAI's API."""
        is_named = isinstance(self._call.forced, NamedTool)
        return "tool_calls" if reason == "stop" and has_calls and not is_named else reason

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> dict[str, Any] | None:
        call = self._call
        if not call.logprobs:
            return None
        return chat_logprobs(entries, bool(call.return_tokens_as_token_ids), bool(call.logprob_token_ids))


def _opening_choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
