"""How much one request, and all requests together, may ask of the server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from runners.core.errors import LimitExceededError

if TYPE_CHECKING:
    from runners.core.predictions import Options, TextInput, TokenInput

_MIB = 2**20


class RequestLimits(BaseModel):
    """Each is an argument of the server; docs/reference/limits.md says what it protects and what exceeding it gets.

    Counts of one request are checked while it is parsed or before any work is done for it.
    """

    model_config = ConfigDict(frozen=True)

    max_header_bytes: int = Field(
        64 * 2**10, ge=1024, description="largest request line and headers together in bytes, larger ones are a 431"
    )
    max_headers: int = Field(256, ge=16, description="most headers of a request, more are a 431")
    max_url_bytes: int = Field(8 * 2**10, ge=256, description="longest URL in bytes, a longer one is a 414")
    max_request_bytes: int = Field(32 * _MIB, ge=1, description="largest request body in bytes, a larger one is a 413")
    max_buffered_bytes: int = Field(
        256 * _MIB, ge=1, description="most bytes of request bodies that all connections may hold together, further "
        "ones are a 503 with Retry-After",
    )  # fmt: skip
    max_json_values: int = Field(2**19, ge=1, description="most values in a JSON body, or elements of a gRPC message")
    max_json_containers: int = Field(
        2**16, ge=1, description="most lists, objects and members of objects in a JSON body, or fields of all "
        "messages in a gRPC message",
    )  # fmt: skip
    max_json_depth: int = Field(64, ge=8, le=256, description="deepest nesting of a JSON body")
    max_client_batch_size: int = Field(
        4096, ge=1, description="most texts, pairs or documents in a request, and parts of a chat's messages"
    )
    max_text_characters: int = Field(_MIB, ge=1, description="most characters of a text")
    max_whole_text_characters: int = Field(
        _MIB // 2, ge=1, description="most characters of a text that is read to its end: with `stride`, without "
        "`truncation`, or where truncated tokens are counted",
    )  # fmt: skip
    max_request_characters: int = Field(
        32 * _MIB, ge=1, description="most characters of all texts of a request, where a text counts each time it is "
        "paired with another",
    )  # fmt: skip
    max_request_sequences: int = Field(
        2**15, ge=1, description="most sequences that the model computes for a request: texts times labels, and windows"
    )
    max_labels: int = Field(1000, ge=1, description="most names in candidate_labels, targets or ignore_labels")
    max_label_characters: int = Field(4096, ge=1, description="most characters of such a name")
    max_top_k: int = Field(1000, ge=1, description="largest top_k of an answer")
    max_answer_tokens: int = Field(1000, ge=1, description="largest max_answer_len of question answering")
    max_tensors: int = Field(64, ge=1, description="most inputs, and most outputs, of the Open Inference Protocol")
    max_parameters: int = Field(
        256, ge=1, description="most entries of a request's, an input's or output's parameters, attributes of a "
        "CloudEvent, and tools of a chat",
    )  # fmt: skip
    max_choices: int = Field(1024, ge=1, description="most outputs of a generation request: prompts times n")
    max_stop_strings: int = Field(64, ge=1, description="most stop strings, and most bad_words, of a request")
    max_logit_bias: int = Field(1024, ge=1, description="most tokens in logit_bias, and in stop_token_ids")
    max_messages: int = Field(2048, ge=1, description="most messages of a chat")
    max_answer_numbers: int = Field(
        8 * _MIB, ge=1, description="most numbers and names in an answer, eight times as many in all answers until "
        "they are read, and as many log probabilities in all of generation",
    )  # fmt: skip
    max_concurrent_requests: int = Field(
        512, ge=1, description="most requests under way at once, further ones are a 429 with Retry-After"
    )
    max_queue_characters: int = Field(
        64 * _MIB, ge=1, description="most characters of texts that wait, further requests are a 429 with Retry-After"
    )
    max_queue_tokens: int = Field(
        4 * _MIB, ge=1, description="most tokens that wait for the model, and tokens of a request, further requests "
        "are a 429 with Retry-After",
    )  # fmt: skip
    max_connections: int = Field(
        4096, ge=1, description="most connections of HTTP, of which idle ones are closed first, and as many of gRPC"
    )
    max_streams: int = Field(
        128, ge=1, description="most streams over gRPC; a further one ends the one that idles longest, or is refused"
    )
    header_timeout: float = Field(10, gt=0, description="seconds in which a request's headers must arrive")
    body_timeout: float = Field(
        30, gt=0, description="seconds after which a request body that makes no progress ends, "
        "with a 408; progress is 64 KiB or its end",
    )  # fmt: skip
    answer_timeout: float = Field(
        60, gt=0, description="seconds in which a client must read 64 KiB of its answer, or the rest"
    )
    timeout_keep_alive: int = Field(
        65, ge=1, description="seconds after which a connection over which no request comes is closed"
    )

    def check(self, argument: str, count: int, what: str, param: str | None = None) -> None:
        """Check an amount against the limit that an argument of the server sets.

        Args:
            what: of what there are so many, as a plural: "texts".

        Raises:
            LimitExceededError: there are more.
        """
        limit = getattr(self, argument)
        if count > limit:
            raise LimitExceededError(count, what, argument, limit, param)

    def check_texts(self, texts: Sequence[TextInput | TokenInput], options: Options) -> None:
        """Check how many texts a request has, and how many characters each and all have, before any work for them.

        Raises:
            LimitExceededError: there are more than the operator allows.
        """
        self.check("max_client_batch_size", len(texts), "texts")
        longest = characters = tokens = 0
        for given in texts:
            tokens += len(getattr(given, "input_ids", ()))
            if (text := getattr(given, "text", None)) is not None:
                pair = getattr(given, "pair", None) or ""
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
