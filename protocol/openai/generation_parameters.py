"""The parameters of completions, chats and responses: their meanings, and those that are not implemented."""

from __future__ import annotations

from collections.abc import Mapping

from protocol.openai.parameter_sets import ParameterSet
from protocol.refused_parameters import RefusedParameter

# The meaning of each parameter that some call implements, for the OpenAPI document and the docs.
MEANINGS: Mapping[str, str] = {
    "model": "The name of the model. If it is missing, the first model answers.",
    "prompt": "A text, a list of token ids, or a list of either.",
    "messages": "The chat so far. The content of a message is a text or a list of text parts.",
    "input": "A text, or a list of messages.",
    "instructions": "A system message that precedes the input.",
    "max_tokens": "The output has at most this many tokens. With `echo`, 0 returns the prompt only.",
    "max_completion_tokens": "The output has at most this many tokens. This wins over `max_tokens`.",
    "max_output_tokens": "The output has at most this many tokens.",
    "max_new_tokens": "Another name for `max_tokens`.",
    "min_tokens": "The output has at least this many tokens.",
    "temperature": "The logits are divided by this number before sampling. 0 selects the most likely token.",
    "top_p": "Sampling selects from the most likely tokens whose probabilities add up to this number.",
    "top_k": "Sampling selects from this many most likely tokens. 0 and -1 mean all tokens.",
    "min_p": "Sampling ignores tokens whose probability is below this fraction of the most likely token's.",
    "seed": "Sampling with the same seed gives the same output.",
    "n": "The number of outputs for each prompt.",
    "best_of": "This must not be greater than `n`.",
    "stop": "Texts that end the output.",
    "include_stop_str_in_output": "The output includes the text that ended it.",
    "stop_token_ids": "Ids of tokens that end the output.",
    "bad_words": "Texts that the output does not contain.",
    "allowed_token_ids": "The output consists of these tokens only.",
    "presence_penalty": "This is subtracted once from the logit of each generated token.",
    "frequency_penalty": "This is subtracted from the logit of a token once for each time that it was generated.",
    "repetition_penalty": "Logits of tokens in the prompt and the output are divided by this number, negative ones "
    "multiplied.",
    "logit_bias": "Numbers that are added to logits, by token id.",
    "ignore_eos": "The output continues after the end-of-sequence token.",
    "skip_special_tokens": "The text contains no special tokens.",
    "echo": "The output begins with the prompt or, in a chat, with the last message if it has the output's role.",
    "logprobs": "The answer has log probabilities; in completions, of this many most likely tokens at each position.",
    "top_logprobs": "The answer has the log probabilities of this many most likely tokens at each position.",
    "logprob_token_ids": "The answer has the log probabilities of these tokens instead of the most likely ones.",
    "prompt_logprobs": "The answer has the log probabilities of this many most likely tokens at each position of the "
    "prompt. Not with `stream`.",
    "return_tokens_as_token_ids": "Log probabilities name a token by its id, such as `token_id:7`.",
    "return_token_ids": "The answer has the token ids of the prompt and the output.",
    "stream": "The output is sent as events while it is generated.",
    "stream_options": "`include_usage` adds the usage to the stream, and `continuous_usage_stats` to each event.",
    "use_beam_search": "Beam search with `n` beams returns the `n` best outputs. Not with `stream`.",
    "length_penalty": "Beam search divides a score by the output's length to the power of this number.",
    "response_format": "The form of the output: `text`, `json_object` or `json_schema`; also a grammar of Text "
    "Generation Inference (`json`, `json_schema` or `regex` with a `value`).",
    "structured_outputs": "The constraint on the output: `json`, `json_object`, `regex`, `choice` or `grammar`.",
    "text": "Its `format` sets the form of the output, as `response_format` does in chats.",
    "tools": "Functions that the chat template writes into the prompt.",
    "tool_choice": "`none`, `auto`, `required` or a function. With the last two, the model must call functions.",
    "parallel_tool_calls": "With `required`, the model may call several functions.",
    "add_generation_prompt": "The prompt ends with the beginning of the assistant's answer.",
    "continue_final_message": "The output continues the last message.",
    "chat_template": "The server refuses this, because it does not trust templates in requests.",
    "chat_template_kwargs": "Variables of the chat template.",
    "documents": "A variable of the chat template.",
    "reasoning_effort": "A variable of the chat template. It also sets the variable `enable_thinking`.",
    "reasoning": "Its `effort` means the same as `reasoning_effort`.",
    "add_special_tokens": "The model's special tokens are added to the prompt. The default is true for texts and false "
    "for chats.",
    "truncate_prompt_tokens": "The prompt is truncated to this many tokens, or with -1 to as many as the model takes.",
    "truncation_side": "Truncation removes tokens on this side. The default is left, and for encoder-decoders the "
    "tokenizer's side.",
    "truncation": "`auto` truncates the prompt to as many tokens as the model takes.",
    "request_id": "The answer's id contains this.",
    "src_lang": "The language of the text, under the tokenizer's name, for models that translate.",
    "tgt_lang": "The language of the output, under the tokenizer's name, for models that translate.",
    "include": "`message.output_text.logprobs` adds log probabilities to the answer.",
    "service_tier": "The answer repeats this.",
    "metadata": "The answer repeats this.",
    "user": "The answer repeats this.",
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

# A parameter of OpenAI's that vLLM does not implement either.
_OF_OPENAI = RefusedParameter(on_vllm=False)
# Parameters of vLLM's that all calls refuse.
_OF_VLLM: Mapping[str, RefusedParameter] = {
    "spaces_between_special_tokens": RefusedParameter((True,)),
    "watermarking": RefusedParameter((False,)),
    "priority": RefusedParameter((0,)),
    "kv_transfer_params": RefusedParameter(),
    "ec_transfer_params": RefusedParameter(),
    "vllm_xargs": RefusedParameter(({},)),
    "repetition_detection": RefusedParameter(),
    "thinking_token_budget": RefusedParameter((-1,)),
    "stream_interval": RefusedParameter((1,)),
    # Removed from vLLM.
    **dict.fromkeys(
        ("guided_json", "guided_regex", "guided_choice", "guided_grammar", "guided_whitespace_pattern"),
        RefusedParameter(advice="use structured_outputs", on_vllm=False),
    ),
}
_OF_MEDIA: Mapping[str, RefusedParameter] = {
    "media_io_kwargs": RefusedParameter(({},)),
    "mm_processor_kwargs": RefusedParameter(({},)),
}
REFUSED: Mapping[ParameterSet, Mapping[str, RefusedParameter]] = {
    ParameterSet.COMPLETIONS: {**_OF_VLLM, "suffix": _OF_OPENAI, "prompt_embeds": RefusedParameter(([],))},
    ParameterSet.CHATS: {
        **_OF_VLLM,
        **_OF_MEDIA,
        "return_prompt_text": RefusedParameter((False,)),
        "audio": _OF_OPENAI,
        "modalities": RefusedParameter((["text"],), on_vllm=False),
        "moderation": _OF_OPENAI,
        "function_call": RefusedParameter(("none",), on_vllm=False),
        "functions": RefusedParameter(([],), on_vllm=False),
        "store": RefusedParameter((False,), on_vllm=False),
        # Of Text Generation Inference.
        "tool_prompt": _OF_OPENAI,
        "verbosity": RefusedParameter(("medium",), on_vllm=False),
        "web_search_options": _OF_OPENAI,
    },
    ParameterSet.RESPONSES: {
        **_OF_VLLM,
        **_OF_MEDIA,
        "background": RefusedParameter((False,)),
        "context_management": RefusedParameter(([],), on_vllm=False),
        "conversation": _OF_OPENAI,
        "enable_response_messages": RefusedParameter((False,)),
        "moderation": _OF_OPENAI,
        "previous_input_messages": RefusedParameter(),
        "previous_response_id": RefusedParameter(),
        "prompt": _OF_OPENAI,
        "tools": RefusedParameter(([],)),
        "tool_choice": RefusedParameter(("auto", "none")),
        **dict.fromkeys(("access_programs", "background_options", "image"), _OF_OPENAI),
    },
    ParameterSet.PARAMETERS: {},
}
