"""The metrics of generation on this server's own engine, under vLLM's names and with its meaning.

Where vLLM runs a model, its own metrics have these names, with the label `engine` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from runners.core.generation import Delta
from runners.core.metric_families import BORROWED_NAMES, CounterFamily, GaugeFamily, HistogramFamily, counting

_MODEL = ("model_name",)

TIME_TO_FIRST_TOKEN = HistogramFamily(
    "vllm:time_to_first_token_seconds",
    "Time from a request's begin to the first token of an output",
    _MODEL,
    registry=BORROWED_NAMES,
)
INTER_TOKEN_LATENCY = HistogramFamily(
    "vllm:inter_token_latency_seconds", "Time between two tokens of an output", _MODEL, registry=BORROWED_NAMES
)
TIME_PER_OUTPUT_TOKEN = HistogramFamily(
    "vllm:request_time_per_output_token_seconds",
    "Mean time between the tokens of an output",
    _MODEL,
    registry=BORROWED_NAMES,
)
E2E_LATENCY = HistogramFamily(
    "vllm:e2e_request_latency_seconds",
    "Time from a request's begin to the end of an output",
    _MODEL,
    registry=BORROWED_NAMES,
)
PROMPT_TOKENS = CounterFamily(
    "vllm:prompt_tokens", "Tokens of prompts that were computed, for each output", _MODEL, BORROWED_NAMES
)
GENERATION_TOKENS = CounterFamily("vllm:generation_tokens", "Tokens that were generated", _MODEL, BORROWED_NAMES)
RUNNING = GaugeFamily(
    "vllm:num_requests_running", "Outputs that are generated at this moment", _MODEL, registry=BORROWED_NAMES
)
WAITING = GaugeFamily("vllm:num_requests_waiting", "Outputs that wait for the model", _MODEL, registry=BORROWED_NAMES)
SUCCESSES = CounterFamily(
    "vllm:request_success",
    "Outputs that ended, by reason: stop, length, abort or error",
    ("model_name", "finished_reason"),
    BORROWED_NAMES,
)
_REASONS = ("stop", "length", "abort", "error")


class GenerationMetrics:
    """The series of one model."""

    def __init__(self, model_name: str) -> None:
        with counting:
            self.first_token = TIME_TO_FIRST_TOKEN.series(model_name)
            self.between_tokens = INTER_TOKEN_LATENCY.series(model_name)
            self.per_token = TIME_PER_OUTPUT_TOKEN.series(model_name)
            self.latency = E2E_LATENCY.series(model_name)
            self.prompt_tokens = PROMPT_TOKENS.series(model_name)
            self.generation_tokens = GENERATION_TOKENS.series(model_name)
            self.reasons = {reason: SUCCESSES.series(model_name, reason) for reason in _REASONS}


class SequenceMetrics:
    """Counts one output while its tokens come."""

    __slots__ = ("_first", "_is_counted", "_last", "_metrics", "_prompt_tokens", "_started", "_tokens")

    def __init__(self, metrics: GenerationMetrics, started: float, prompt_tokens: int) -> None:
        """
        Args:
            started: when its request began, in seconds of `time.perf_counter`.
        """
        self._metrics = metrics
        self._started = started
        self._prompt_tokens = prompt_tokens
        self._first = self._last = 0.0
        self._tokens = 0
        self._is_counted = False

    def add(self, deltas: Sequence[Delta]) -> None:
        """Count tokens that have come together: a token, or all beams of a search."""
        now, metrics = perf_counter(), self._metrics
        tokens = sum(len(delta.token_ids) for delta in deltas)
        with counting:
            if not self._first:
                self._first = now
                metrics.prompt_tokens.value += self._prompt_tokens
                if tokens:
                    metrics.first_token.observe(now - self._started)
            elif tokens:
                metrics.between_tokens.observe(now - self._last)
            metrics.generation_tokens.value += tokens
        self._last = now
        self._tokens += tokens
        if deltas and deltas[-1].finish_reason is not None:
            self.end(deltas[-1].finish_reason)

    def end(self, reason: str) -> None:
        """Count the end of the output; the first reason counts."""
        if self._is_counted:
            return
        self._is_counted = True
        metrics = self._metrics
        with counting:
            metrics.reasons[reason].value += 1
            if reason in ("stop", "length"):
                metrics.latency.observe(perf_counter() - self._started)
                # The tokens of all beams of a search come at once, with no time between them.
                if self._tokens > 1 and self._last > self._first:
                    metrics.per_token.observe((self._last - self._first) / (self._tokens - 1))
