"""The choices of a generator, as far as they have been generated, and the rendering of many log probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from protocol.http.offload import offload_large
from runners.core.generation import Delta, FinishReason, TokenLogprob, TokenLogprobs

T = TypeVar("T")

# This many log probabilities take 2 ms to render.
_INLINE_LOGPROBS = 256


@dataclass(slots=True)
class Choice:
    """One continuation of one prompt, as far as it has been generated.

    Attributes:
        texts: the parts of its text.
        logprobs_count: number of all its log probabilities.
    """

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    logprobs_count: int = 0

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.logprobs_count += count_logprobs((*delta.logprobs, *(delta.prompt_logprobs or ())))
        self.token_ids += delta.token_ids
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        self.logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs


async def render_logprobs(render: Callable[[], T], count: int) -> T:
    """Call a renderer, in a thread if rendering `count` log probabilities would block the event loop."""
    return await offload_large(render, count, _INLINE_LOGPROBS)


def count_logprobs(entries: Iterable[TokenLogprobs | None]) -> int:
    """The number of log probabilities of some positions."""
    return sum(1 + len(entry.top) for entry in entries if entry is not None)


def describe_token(token: TokenLogprob) -> dict[str, Any]:
    """A token, as Text Generation Inference and the Open Inference Protocol describe it."""
    return {"id": token.token_id, "text": token.text, "logprob": token.logprob, "special": token.special}


def name_finish(finish_reason: FinishReason | None, stop_reason: int | str | None) -> str:
    """Why an output ended, in the same protocols' words.

    Args:
        stop_reason: a text of `stop`, or a token: one of `stop_token_ids`, or a further end token of the model.
    """
    if finish_reason == "length":
        return "length"
    return "stop_sequence" if isinstance(stop_reason, str) else "eos_token"
