"""Every parameter of OpenAI's API that OpenAI or vLLM know: what it does here, that it changes nothing, or a refusal.

What is done is what the types have that parse the bodies; this module says the rest, and what each means. Fields that
nobody knows are accepted, as by OpenAI and vLLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from protocol.http.body import Body, convert_json, decode_json
from runners.core.errors import UnsupportedError
from runners.core.request_limits import RequestLimits

T = TypeVar("T")


class Route(StrEnum):
    """Whose parameters are meant."""

    COMPLETIONS = "completions"
    CHATS = "chat/completions"
    RESPONSES = "responses"
    # Of V1 and of the Open Inference Protocol, whose unknown parameters are refused.
    PARAMETERS = "parameters"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Of a parameter that would change the answer.

    Attributes:
        neutral: values that ask for nothing, beside null.
        on_vllm: whether vLLM has it, perhaps with an argument of the server's.
    """

    neutral: tuple[Any, ...] = ()
    on_vllm: bool = True


# What each parameter means that is done by some route; `{default}` is what the engine or the model has.
MEANINGS: Mapping[str, str] = {
    "model": "the model's name; the only one there is if left out",
    "prompt": "a text, token ids, or a list of either",
    "messages": "the chat so far; content is a text or a list of text parts",
    "input": "a text, or a list of messages",
    "instructions": "a message of the system before the input",
    "max_tokens": "most tokens of the output; 0 with `echo` only reads the prompt",
    "max_completion_tokens": "the same, and wins over it",
    "max_output_tokens": "most tokens of the output",
    "max_new_tokens": "the same as `max_tokens`",
    "min_tokens": "no end before so many tokens",
    "temperature": "0 is greedy",
    "top_p": "sample from the most likely tokens with this probability together",
    "top_k": "sample from so many most likely tokens; 0 or -1 is all",
    "min_p": "leave out tokens less likely than this part of the most likely one",
    "seed": "makes sampling repeatable",
    "n": "how many continuations of each prompt",
    "best_of": "not above `n`",
    "stop": "texts that end the output",
    "include_stop_str_in_output": "keep the text that ended the output",
    "stop_token_ids": "tokens that end the output",
    "bad_words": "texts that are not generated",
    "allowed_token_ids": "the only tokens that are generated",
    "presence_penalty": "subtracted from the logits of tokens that were generated",
    "frequency_penalty": "the same, for each time",
    "repetition_penalty": "divides the logits of tokens of prompt and output",
    "logit_bias": "added to the logits, by token id",
    "ignore_eos": "go on where the model would end",
    "skip_special_tokens": "leave special tokens out of the text",
    "echo": "the prompt, or the last message of the same role, before the output",
    "logprobs": "log probabilities; for completions of so many most likely tokens",
    "top_logprobs": "of so many most likely tokens at each position",
    "logprob_token_ids": "tokens whose log probabilities are given instead of the most likely ones'",
    "prompt_logprobs": "the same of the prompt's tokens; not with `stream`",
    "return_tokens_as_token_ids": "`token_id:7` instead of a token's text in log probabilities",
    "return_token_ids": "the ids of prompt and output beside the text",
    "stream": "events as the output comes",
    "stream_options": "`include_usage`, and `continuous_usage_stats` in every event",
    "use_beam_search": "the `n` best sequences of `n` beams; not with `stream`",
    "length_penalty": "of beam search: a score is divided by the length to this power",
    "response_format": "`text`, `json_object` or `json_schema`",
    "structured_outputs": "what the output must match: `json`, `json_object`, `regex`, `choice` or `grammar`",
    "text": "`format` as `response_format` has it",
    "tools": "functions that the template puts into the prompt",
    "tool_choice": "`none`, `auto`, `required`, or a function: the last two force calls",
    "parallel_tool_calls": "whether `required` may be several calls",
    "add_generation_prompt": "end the prompt where the assistant's answer begins",
    "continue_final_message": "go on with the last message",
    "chat_template": "refused: templates of requests are not trusted",
    "chat_template_kwargs": "variables of the chat template",
    "documents": "a variable of the chat template",
    "reasoning_effort": "a variable of the chat template, with `enable_thinking`",
    "reasoning": "`effort`, the same",
    "add_special_tokens": "put the model's special tokens into the prompt: by default for texts, not for chats",
    "truncate_prompt_tokens": "keep so many tokens of the prompt; -1 as many as the model takes",
    "truncation_side": "where tokens are dropped; by default left, for encoder-decoders the tokenizer's side",
    "truncation": "`auto` is `truncate_prompt_tokens` of -1",
    "request_id": "a part of the answer's id",
    "src_lang": "the language of the text, for models that translate, by the tokenizer's name",
    "tgt_lang": "the language of the output",
    "include": "`message.output_text.logprobs`",
    "service_tier": "comes back",
    "metadata": "comes back",
    "user": "comes back",
}

# They are read by others than this server, or are about something that it does not have.
_NO_EFFECT = frozenset(
    {
        "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "prediction", "session_id", "cache_salt", "include_reasoning",
        "routed_experts_prompt_start", "return_token_offsets", "mm_payload", "return_mm_kwargs",
        "guided_decoding_backend",
    }
)  # fmt: skip
NO_EFFECT: Mapping[Route, frozenset[str]] = {
    Route.COMPLETIONS: _NO_EFFECT,
    Route.CHATS: _NO_EFFECT,
    Route.RESPONSES: (_NO_EFFECT - {"user", "metadata", "service_tier"})
    # The answers are not stored, and no tool is called.
    | {"store", "stream_options", "max_tool_calls", "parallel_tool_calls"},
    Route.PARAMETERS: frozenset(),
}

# vLLM's, of all routes.
_OF_VLLM: Mapping[str, Refusal] = {
    "spaces_between_special_tokens": Refusal((True,)),
    "watermarking": Refusal((False,)),
    "priority": Refusal((0,)),
    "kv_transfer_params": Refusal(),
    "ec_transfer_params": Refusal(),
    "vllm_xargs": Refusal(({},)),
    "repetition_detection": Refusal(),
    "thinking_token_budget": Refusal((-1,)),
    "stream_interval": Refusal((1,)),
    # Removed from vLLM, for `structured_outputs`.
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_whitespace_pattern"),
        Refusal(on_vllm=False),
    ),
}
_OF_MEDIA: Mapping[str, Refusal] = {"media_io_kwargs": Refusal(({},)), "mm_processor_kwargs": Refusal(({},))}
_OF_OPENAI = Refusal(on_vllm=False)
REFUSED: Mapping[Route, Mapping[str, Refusal]] = {
    Route.COMPLETIONS: {**_OF_VLLM, "suffix": _OF_OPENAI, "prompt_embeds": Refusal(([],))},
    Route.CHATS: {
        **_OF_VLLM,
        **_OF_MEDIA,
        "return_prompt_text": Refusal((False,)),
        "audio": _OF_OPENAI,
        "modalities": Refusal((["text"],), on_vllm=False),
        "moderation": _OF_OPENAI,
        "function_call": Refusal(("none",), on_vllm=False),
        "functions": Refusal(([],), on_vllm=False),
        "store": Refusal((False,), on_vllm=False),
        "verbosity": Refusal(("medium",), on_vllm=False),
        "web_search_options": _OF_OPENAI,
    },
    Route.RESPONSES: {
        **_OF_VLLM,
        **_OF_MEDIA,
        "background": Refusal((False,)),
        "context_management": Refusal(([],), on_vllm=False),
        "conversation": _OF_OPENAI,
        "enable_response_messages": Refusal((False,)),
        "moderation": _OF_OPENAI,
        "previous_input_messages": Refusal(),
        "previous_response_id": Refusal(),
        "prompt": _OF_OPENAI,
        "tools": Refusal(([],)),
        "tool_choice": Refusal(("auto", "none")),
        **dict.fromkeys(("access_programs", "background_options", "image"), _OF_OPENAI),
    },
    Route.PARAMETERS: {},
}

_fields_decoder = msgspec.json.Decoder(dict[str, Any])


async def read_request(body: Body, form: type[T], route: Route, limits: RequestLimits) -> T:
    """A body as what its route takes.

    Raises:
        LimitExceededError: there is more in it than the operator allows.
        InputError: it is of another form, or has a parameter that `refuse_unsupported` refuses.
    """

    def read(data: bytes) -> T:
        fields = decode_json(data, _fields_decoder, limits)
        call = convert_json(fields, form)
        refuse_unsupported(fields, route)
        return call

    return await body.decode(read)


def refuse_unsupported(fields: Mapping[str, Any], route: Route) -> None:
    """
    Args:
        fields: of a body.

    Raises:
        UnsupportedError: it has a parameter that would change the answer and is not done here.
    """
    for name, refusal in REFUSED[route].items():
        if fields.get(name) not in (None, *refusal.neutral):
            raise UnsupportedError(name, name, refusal.on_vllm)
