"""Every parameter that OpenAI or vLLM knows: implemented, without effect, or refused.

The types that parse bodies have the implemented parameters; this module has their meanings and all other parameters.
Unknown fields are accepted, as by OpenAI and vLLM.
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


class ParameterSet(StrEnum):
    """The call whose parameters are meant."""

    COMPLETIONS = "completions"
    CHATS = "chat/completions"
    RESPONSES = "responses"
    # The `parameters` of V1 and the Open Inference Protocol; unknown ones are refused.
    PARAMETERS = "parameters"


@dataclass(frozen=True, slots=True)
class Refusal:
    """The refusal of a parameter that would change the answer.

    Attributes:
        neutral: the values that ask for nothing, beside null.
        on_vllm: whether vLLM implements the parameter, perhaps only with an argument of the server.
    """

    neutral: tuple[Any, ...] = ()
    on_vllm: bool = True


# The meaning of each parameter that some call implements.
MEANINGS: Mapping[str, str] = {
    "model": "the model's name; without it the first model answers",
    "prompt": "a text, token ids, or a list of either",
    "messages": "the chat so far; content is a text or a list of text parts",
    "input": "a text, or a list of messages",
    "instructions": "a system message before the input",
    "max_tokens": "most tokens of the output; 0 with `echo` only reads the prompt",
    "max_completion_tokens": "most tokens of the output; wins over `max_tokens`",
    "max_output_tokens": "most tokens of the output",
    "max_new_tokens": "another name of `max_tokens`",
    "min_tokens": "fewest tokens of the output",
    "temperature": "divides the logits before sampling; 0 takes the most likely token",
    "top_p": "sample from the most likely tokens whose probabilities add up to this",
    "top_k": "sample from this many most likely tokens; 0 or -1 is all",
    "min_p": "leave out tokens whose probability is below this fraction of the most likely token's",
    "seed": "makes sampling repeatable",
    "n": "number of continuations of each prompt",
    "best_of": "must not be above `n`",
    "stop": "texts that end the output",
    "include_stop_str_in_output": "keep the text that ended the output",
    "stop_token_ids": "tokens that end the output",
    "bad_words": "texts that are not generated",
    "allowed_token_ids": "the only tokens that are generated",
    "presence_penalty": "is subtracted from the logits of generated tokens, once for each token",
    "frequency_penalty": "is subtracted from the logits of generated tokens, once for each time a token was generated",
    "repetition_penalty": "divides the logits of tokens in the prompt and the output",
    "logit_bias": "numbers that are added to the logits, by token id",
    "ignore_eos": "continue after the end-of-sequence token",
    "skip_special_tokens": "leave special tokens out of the text",
    "echo": "repeat the prompt, or the last message of the same role, before the output",
    "logprobs": "return log probabilities; for completions of this many most likely tokens",
    "top_logprobs": "return the log probabilities of this many most likely tokens at each position",
    "logprob_token_ids": "return the log probabilities of these tokens instead of the most likely ones",
    "prompt_logprobs": "return log probabilities of this many tokens at each position of the prompt; not with `stream`",
    "return_tokens_as_token_ids": "write tokens as `token_id:7` in log probabilities",
    "return_token_ids": "return the token ids of the prompt and the output",
    "stream": "send the output as events while it is generated",
    "stream_options": "`include_usage`, and `continuous_usage_stats` for usage in every event",
    "use_beam_search": "return the `n` best sequences of `n` beams; not with `stream`",
    "length_penalty": "beam search divides a score by the length to this power",
    "response_format": "`text`, `json_object` or `json_schema`",
    "structured_outputs": "the constraint of the output: `json`, `json_object`, `regex`, `choice` or `grammar`",
    "text": "`format`, with the fields of `response_format`",
    "tools": "functions that the chat template puts into the prompt",
    "tool_choice": "`none`, `auto`, `required` or a function; `required` and a function force calls",
    "parallel_tool_calls": "whether `required` allows several calls",
    "add_generation_prompt": "end the prompt with the beginning of the assistant's answer",
    "continue_final_message": "continue the last message",
    "chat_template": "refused: this server does not trust templates of requests",
    "chat_template_kwargs": "variables of the chat template",
    "documents": "a variable of the chat template",
    "reasoning_effort": "a variable of the chat template, which also sets `enable_thinking`",
    "reasoning": "`effort`, as `reasoning_effort`",
    "add_special_tokens": "add the model's special tokens to the prompt; by default for texts, not for chats",
    "truncate_prompt_tokens": "keep this many tokens of the prompt; -1 keeps as many as the model takes",
    "truncation_side": "the side that loses tokens; left by default, for encoder-decoders the tokenizer's side",
    "truncation": "`auto` is `truncate_prompt_tokens` of -1",
    "request_id": "a part of the answer's id",
    "src_lang": "the tokenizer's name of the text's language, for models that translate",
    "tgt_lang": "the tokenizer's name of the output's language, for models that translate",
    "include": "`message.output_text.logprobs`",
    "service_tier": "the answer repeats it",
    "metadata": "the answer repeats it",
    "user": "the answer repeats it",
}

# Parameters for other servers, or about something that this server does not have.
_NO_EFFECT = frozenset(
    {
        "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "prediction", "session_id", "cache_salt", "include_reasoning",
        "routed_experts_prompt_start", "return_token_offsets", "mm_payload", "return_mm_kwargs",
        "guided_decoding_backend",
    }
)  # fmt: skip
NO_EFFECT: Mapping[ParameterSet, frozenset[str]] = {
    ParameterSet.COMPLETIONS: _NO_EFFECT,
    ParameterSet.CHATS: _NO_EFFECT,
    ParameterSet.RESPONSES: (_NO_EFFECT - {"user", "metadata", "service_tier"})
    # Answers are not stored, and no tool is called.
    | {"store", "stream_options", "max_tool_calls", "parallel_tool_calls"},
    ParameterSet.PARAMETERS: frozenset(),
}

# Parameters of vLLM's that all calls refuse.
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
REFUSED: Mapping[ParameterSet, Mapping[str, Refusal]] = {
    ParameterSet.COMPLETIONS: {**_OF_VLLM, "suffix": _OF_OPENAI, "prompt_embeds": Refusal(([],))},
    ParameterSet.CHATS: {
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
    ParameterSet.RESPONSES: {
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
    ParameterSet.PARAMETERS: {},
}

_fields_decoder = msgspec.json.Decoder(dict[str, Any])


async def read_request(body: Body, form: type[T], kind: ParameterSet, limits: RequestLimits) -> T:
    """Decode a body into the type of its call.

    Raises:
        LimitExceededError: the body exceeds a limit of the operator's.
        InputError: the body is malformed, or has a parameter that `refuse_unsupported` refuses.
    """

    def read(data: bytes) -> T:
        fields = decode_json(data, _fields_decoder, limits)
        call = convert_json(fields, form)
        refuse_unsupported(fields, kind)
        return call

    return await body.decode(read)


def refuse_unsupported(fields: Mapping[str, Any], call: ParameterSet) -> None:
    """
    Args:
        fields: the fields of a body.

    Raises:
        UnsupportedError: a parameter would change the answer, and this server does not implement it.
    """
    for name, refusal in REFUSED[call].items():
        if fields.get(name) not in (None, *refusal.neutral):
            raise UnsupportedError(name, name, refusal.on_vllm)
