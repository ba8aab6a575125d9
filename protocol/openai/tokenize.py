"""vLLM's calls of a tokenizer: a prompt's or chat's tokens, and the text of tokens."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.responses import Response

from protocol.body import json_response, parse_json
from protocol.calls import find_model
from protocol.errors import InvalidRequestError
from protocol.openai.chats import Messages, Templated
from protocol.openai.messages import count_characters, read_messages
from protocol.openai.tools import Tools, describe_tools
from protocol.sampling import TokenId
from runners.generation import PromptOptions
from runners.generator.admission import check_prompts
from runners.generator.runner import GeneratorRunner
from runners.inference import Models

_MAX_TOKENS = 2**20


class TokenizeTextRequest(msgspec.Struct, kw_only=True):
    """A body of `tokenize` with a text."""

    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChatRequest(msgspec.Struct, Templated, kw_only=True):
    """A body of `tokenize` with a chat."""

    messages: Messages
    tools: Tools | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """A body of `detokenize`."""

    tokens: Annotated[list[TokenId], Meta(max_length=_MAX_TOKENS)]
    model: str | None = None


class _Which(msgspec.Struct):
    messages: msgspec.Raw | UnsetType = UNSET
    prompt: msgspec.Raw | UnsetType = UNSET


_which_decoder = msgspec.json.Decoder(_Which)
_text_decoder = msgspec.json.Decoder(TokenizeTextRequest)
_chat_decoder = msgspec.json.Decoder(TokenizeChatRequest)
_tokens_decoder = msgspec.json.Decoder(DetokenizeRequest)


async def answer_tokenize(models: Models, runner: GeneratorRunner, body: bytes) -> Response:
    """Answer `tokenize`: the token ids of a text or a chat.

    Raises:
        InvalidRequestError: the body is not as expected.
        ModelNotFoundError: there is no model of that name.
    """
    which = parse_json(body, _which_decoder, "the body")
    if which.messages is UNSET and which.prompt is UNSET:
        raise InvalidRequestError("the body must have a prompt or messages", "prompt")
    call: TokenizeTextRequest | TokenizeChatRequest
    if which.messages is UNSET:
        call = parse_json(body, _text_decoder, "the body")
    else:
        call = parse_json(body, _chat_decoder, "the body")
    if call.model:
        find_model(models, call.model)
    options = PromptOptions(call.add_special_tokens)
    engine = runner.chat_engine
    if isinstance(call, TokenizeTextRequest):
        characters = check_prompts(runner.limits, [call.prompt])
        tokenize = partial(engine.tokenize, call.prompt, options)
    else:
        messages = read_messages(call.messages, runner.limits)
        tools = None if call.tools is None else describe_tools(call.tools)
        variables = call.template_variables()
        characters = count_characters(runner.limits, messages, tools, variables)
        tokenize = partial(engine.tokenize_chat, messages, tools, variables, options)
    with runner.admit(characters):
        tokens = await tokenize()
        names = await engine.token_strings(tokens) if call.return_token_strs else None
    return json_response(
        {"count": len(tokens), "max_model_len": engine.max_length, "tokens": tokens, "token_strs": names}
    )


async def answer_detokenize(models: Models, runner: GeneratorRunner, body: bytes) -> Response:
    """Answer `detokenize`: the text of tokens, special ones included.

    Raises:
        InvalidRequestError: the body is not as expected.
        ModelNotFoundError: there is no model of that name.
    """
    call = parse_json(body, _tokens_decoder, "the body")
    if call.model:
        find_model(models, call.model)
    with runner.admit():
        return json_response({"prompt": await runner.chat_engine.detokenize(call.tokens)})
