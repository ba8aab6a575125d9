"""vLLM's `tokenize` and `detokenize`: the token ids of a text or a chat, and the text of token ids."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from protocol.http.body import Body, decode_json, json_response
from protocol.http.rendering import render_off_loop
from protocol.model_selection import SelectModel
from protocol.openai.chats import ChatMessages, Templated
from protocol.openai.messages import read_messages
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.tools import Tools, describe_tools
from runners.core.errors import InputError
from runners.core.generation import Chat, Prompt
from runners.core.number_types import TokenIds
from runners.core.request_limits import RequestLimits
from runners.core.tokens import TokenizeOptions

_VALUES_A_NAME = 4


class TokenizeTextRequest(msgspec.Struct, kw_only=True):
    """The body of `tokenize` with a text."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(msgspec.Struct, Templated, kw_only=True):
    """The body of `tokenize` with a chat."""

    messages: ChatMessages
    tools: Tools | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class _Kind(msgspec.Struct):
    """The fields that tell a chat from a text."""

    prompt: Any = UNSET
    messages: Any = UNSET


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """The body of `detokenize`."""

    tokens: TokenIds
    model: str | None = None


_kind_decoder = msgspec.json.Decoder(_Kind)
_text_decoder = BodyDecoder(TokenizeTextRequest, ParameterSet.TOKENIZE)
_chat_decoder = BodyDecoder(TokenizeChatRequest, ParameterSet.TOKENIZE)
_tokens_decoder = BodyDecoder(DetokenizeRequest, ParameterSet.DETOKENIZE)


async def answer_tokenize(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `tokenize`: the token ids of a text or a chat.

    Raises:
        LimitExceededError: the body exceeds a limit of the operator's.
        InputError: the body is malformed.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
    """

    def read(data: bytes) -> TokenizeTextRequest | TokenizeChatRequest:
        kind = decode_json(data, _kind_decoder, limits)
        if kind.messages is not UNSET:
            return _chat_decoder.decode(data, limits)
        if kind.prompt is UNSET:
            raise InputError("the body must have a prompt or messages", "prompt")
        return _text_decoder.decode(data, limits)

    call = await body.decode(read)
    runner = select(call.model)
    prompt: Prompt
    if isinstance(call, TokenizeTextRequest):
        prompt = call.prompt
    elif runner.generator is None:
        raise InputError(f"messages are for models that generate; {runner.name} serves {runner.task}", "messages")
    else:
        tools = None if call.tools is None else describe_tools(call.tools)
        prompt = Chat(read_messages(call.messages, limits), tools, call.template_variables())
    with_strings = bool(call.return_token_strs)
    [tokens] = await runner.tokenize([prompt], TokenizeOptions(call.add_special_tokens, details=with_strings))
    answer = {
        "count": len(tokens.ids),
        "max_model_len": runner.max_length,
        "tokens": tokens.ids,
        "token_strs": tokens.strings if with_strings else None,
    }
    values = len(tokens.ids) + _VALUES_A_NAME * len(tokens.strings)
    return await render_off_loop(lambda: json_response(answer, values), values)


async def answer_detokenize(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `detokenize`: the text of tokens, special ones included.

    Raises:
        LimitExceededError: the body exceeds a limit of the operator's.
        InputError: the body is malformed.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
    """
    call = await _tokens_decoder.read(body, limits)
    runner = select(call.model)
    [prompt] = await runner.detokenize([call.tokens])
    return json_response({"prompt": prompt})
