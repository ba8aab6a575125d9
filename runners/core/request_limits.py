"""Limits of one request, and of all requests together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from runners.core.errors import LimitExceededError

if TYPE_CHECKING:
    from runners.core.predictions import Options, TextInput, TokenInput

_MIB = 2**20


class RequestLimits(BaseModel):
    """The limits, each an argument of the server; docs/reference/limits.md says what they protect.

    The counts of one request are checked while it is parsed, or before any work is done for it.
    """

    model_config = ConfigDict(frozen=True)

    max_header_bytes: int = Field(
        64 * 2**10, ge=1024, description="the request line and the headers may have at most this many bytes, else a 431"
    )
    max_headers: int = Field(256, ge=16, description="a request may have at most this many headers, else a 431")
    max_url_bytes: int = Field(8 * 2**10, ge=256, description="a URL may have at most this many bytes, else a 414")
    max_request_bytes: int = Field(
        32 * _MIB, ge=1, description="a request body may have at most this many bytes, else a 413"
    )
    max_buffered_bytes: int = Field(
        256 * _MIB,
        ge=1,
        description="the request bodies of all connections together may hold at most this many bytes, else a 503 with "
        "Retry-After",
    )
    max_json_values: int = Field(
        2**19, ge=1, description="a JSON body may have at most this many values, and a gRPC message this many elements"
    )
    max_json_containers: int = Field(
        2**16,
        ge=1,
        description="a JSON body may have at most this many lists, objects and members of objects, and a gRPC message "
        "this many fields in all its messages",
    )
    max_json_depth: int = Field(64, ge=8, le=256, description="a JSON body may be nested at most this deeply")
    max_client_batch_size: int = Field(
        4096,
        ge=1,
        description="a request may have at most this many texts, pairs or documents, and a chat this many parts of "
        "messages",
    )
    max_text_characters: int = Field(_MIB, ge=1, description="a text may have at most this many characters")
    max_whole_text_characters: int = Field(
        _MIB // 2,
        ge=1,
        description="a text that the tokenizer reads to its end may have at most this many characters: with `stride`, "
        "without `truncation`, with `return_truncated_tokens`, with the `truncation_side` `left`, and in calls that "
        "tokenize only",
    )
    max_request_characters: int = Field(
        32 * _MIB,
        ge=1,
        description="all texts of a request together may have at most this many characters; a text counts each time "
        "it is paired with another",
    )
    max_request_sequences: int = Field(
        2**15,
        ge=1,
        description="a request may make at most this many sequences for the model: one for each label and window of a "
        "text",
    )
    max_labels: int = Field(
        1000, ge=1, description="candidate_labels, targets and ignore_labels may each have at most this many names"
    )
    max_label_characters: int = Field(
        4096, ge=1, description="a name in these lists may have at most this many characters"
    )
    max_top_k: int = Field(1000, ge=1, description="top_k may be at most this large")
    max_answer_tokens: int = Field(1000, ge=1, description="max_answer_len may be at most this large")
    max_tensors: int = Field(
        64,
        ge=1,
        description="a request of the Open Inference Protocol may have at most this many inputs, and as many outputs",
    )
    max_parameters: int = Field(
        256,
        ge=1,
        description="a request, an input and an output may each have at most this many parameters, a CloudEvent at "
        "most this many attributes, and a chat at most this many tools (on `transformers` never more than 128, else a "
        "400)",
    )
    max_choices: int = Field(
        1024, ge=1, description="a generation request may ask for at most this many outputs: its prompts times n"
    )
    max_stop_strings: int = Field(
        64, ge=1, description="a generation request may have at most this many stop strings, and as many bad_words"
    )
    max_logit_bias: int = Field(
        1024, ge=1, description="logit_bias and stop_token_ids may each have at most this many tokens"
    )
    max_messages: int = Field(2048, ge=1, description="a chat may have at most this many messages")
    max_answer_numbers: int = Field(
        8 * _MIB,
        ge=1,
        description="an answer may have at most this many numbers and names. All unread answers together may have at "
        "most 8 times as many. All running generation requests together may have at most this many log probabilities",
    )
    max_concurrent_requests: int = Field(
        512, ge=1, description="at most this many requests of a model may run at once, else a 429 with Retry-After"
    )
    max_queue_characters: int = Field(
        64 * _MIB,
        ge=1,
        description="all waiting texts of a model together may have at most this many characters, else a 429 with "
        "Retry-After",
    )
    max_queue_tokens: int = Field(
        4 * _MIB,
        ge=1,
        description="all texts that wait for a model together may have at most this many tokens, else a 429 with "
        "Retry-After; the limit also holds for the token ids of one request",
    )
    max_connections: int = Field(
        4096,
        ge=1,
        description="the server holds at most this many HTTP connections and as many gRPC connections; a further HTTP "
        "connection closes an idle one",
    )
    max_streams: int = Field(
        128,
        ge=1,
        description="the server holds at most this many gRPC streams; a further one ends the one that has been idle "
        "for longest, or is refused",
    )
    header_timeout: float = Field(
        10, gt=0, description="the headers of a request must arrive within this many seconds, else a 408"
    )
    body_timeout: float = Field(
        30,
        gt=0,
        description="64 KiB of a request body, or its rest, must arrive within this many seconds, else a 408",
    )
    answer_timeout: float = Field(
        60,
        gt=0,
        description="a client must read 64 KiB of its answer, or its rest, within this many seconds, else the server "
        "closes the connection",
    )
    timeout_keep_alive: int = Field(
        65, ge=1, description="the server closes a connection that has no request for this many seconds"
    )

    def check(self, argument: str, count: int, what: str, param: str | None = None) -> None:
        """Check an amount of a request against a limit.

        Args:
            argument: the name of the limit.
            count: the amount.
            what: what is counted, as a plural for the message: "texts".
            param: the parameter of the request, for errors that name it.

        Raises:
            LimitExceededError: the amount exceeds the limit.
        """
        limit = getattr(self, argument)
        if count > limit:
            raise LimitExceededError(count, what, argument, limit, param)

    def check_texts(self, texts: Sequence[TextInput | TokenInput], options: Options) -> None:
        """Check the number of texts of a request, and the characters of each and of all, before any work for them.

        Raises:
            LimitExceededError: one of them exceeds its limit.
        """
        self.check("max_client_batch_size", len(texts), "texts")
        longest = characters = tokens = 0
        for item in texts:
            tokens += len(getattr(item, "input_ids", ()))
            if (text := getattr(item, "text", None)) is not None:
                pair = getattr(item, "pair", None) or ""
                longest = max(longest, len(text), len(pair))
                characters += len(text) + len(pair)
        self.check("max_queue_tokens", tokens, "tokens of all texts")
        if labels := options.answer.candidate_labels:
            template = options.answer.hypothesis_template
            holes, rest = template.count("{}"), len(template.replace("{}", ""))
            hypotheses = [rest + holes * len(label) for label in labels]
            longest = max(longest, *hypotheses)
            characters = characters * len(labels) + sum(hypotheses) * len(texts)
        self.check("max_text_characters", longest, "characters of a text")
        self.check("max_request_characters", characters, "characters of all texts, each as often as it is paired,")
