"""Writes the parts of docs/ that come from the code: `python -m tools.generated_pages`, or `make arguments-table`.

The names, defaults and descriptions of arguments, limits and generation parameters are in the code alone.
"""

from __future__ import annotations

import importlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from protocol.openai import generation_parameters, pooling_parameters
from protocol.openai.chats import ChatRequest
from protocol.openai.classify import ClassifyRequest
from protocol.openai.completions import CompletionRequest
from protocol.openai.embeddings import EmbeddingRequest
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import NO_EFFECT, REFUSED
from protocol.openai.pooling import PoolingRequest
from protocol.openai.ranking import RerankRequest, ScoreRequest
from protocol.openai.responses import ResponsesRequest
from protocol.openai.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from runners.core.argument_groups import ArgumentGroup, LimitArguments, PredictArguments, show_default
from runners.core.arguments import GROUPS
from runners.core.metric_families import HistogramFamily, list_families
from runners.core.sampling_parameters import SamplingParameters
from runners.hosting.bentoml_settings import SETTINGS, Effect

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARK = "<!-- Written by `make arguments-table`; do not edit below. -->\n"

# What each limit protects, which the code does not say.
PROTECTS: Mapping[str, str] = {
    "max_header_bytes": "the event loop: the time to parse headers is quadratic in their size",
    "max_headers": "the event loop: each header is read several times",
    "max_url_bytes": "the event loop and the log",
    "max_request_bytes": "memory; a compressed body is measured as it is inflated",
    "max_buffered_bytes": "memory, against many connections that each send a large body slowly. The first 16 KiB of a "
    "body are not counted, so that small requests still pass. A compressed body counts with its inflated size, and a "
    "decoded body with what is kept of it. Unread answers may have four times as many bytes",
    "max_json_values": "the event loop: time to decode a body, and memory for the result",
    "max_json_containers": "the event loop and memory: a list or an object costs ten times a number",
    "max_json_depth": "the stack",
    "max_client_batch_size": "the event loop, which handles each text; other requests in the queue",
    "max_text_characters": "the tokenizer. The parameters, the attributes of an event and the id of a request may "
    "together have as many characters, plus those that labels may have",
    "max_whole_text_characters": "the tokenizer, which reads all of such a text",
    "max_request_characters": "the tokenizer: a long query with many documents",
    "max_request_sequences": "the model: labels and windows multiply texts",
    "max_labels": "the tokenizer and the answer",
    "max_label_characters": "the tokenizer and the answer",
    "max_top_k": "the answer",
    "max_answer_tokens": "the search for spans",
    "max_tensors": "the event loop, and the answer: an output is named once",
    "max_parameters": "the event loop",
    "max_choices": "the scheduler of generation",
    "max_stop_strings": "the search in each new token of an output",
    "max_logit_bias": "each step of generation",
    "max_messages": "the chat template",
    "max_answer_numbers": "memory: all scores of a whole vocabulary at every mask",
    "max_concurrent_requests": "memory, and the latency of requests under way",
    "max_queue_characters": "memory, and the time until an answer",
    "max_queue_tokens": "memory, and the time until an answer",
    "max_connections": "file descriptors, so that probes and clients can still connect",
    "max_streams": "memory: each may hold a part of a message",
    "header_timeout": "connections, against headers that never end",
    "body_timeout": "buffered bytes, against bodies that never end",
    "answer_timeout": "memory, against clients that do not read their answers",
    "timeout_keep_alive": "connections; longer than the idle time of load balancers (60 s)",
}
# What the settings of CORS do that are no arguments.
CORS_MEANINGS: Mapping[str, str] = {
    "enabled": "whether the others of `http.cors` are read",
    "origin_pattern": "pages of origins that match it as a whole may read answers too",
    "exposed": "the headers of answers that pages may read, in place of this server's own",
    "max_age": "the seconds for which a browser remembers the answer to a preflight; 600 by default",
}
# Each defines metrics when it is imported.
METRIC_MODULES = ("runners.core.metrics", "runners.core.generation_metrics", "runners.core.worker_metrics")
METRIC_PREFIXES = ("request_", "runtime_", "vllm:")
# Of metrics whose names do not have their unit.
UNITS: Mapping[str, str] = {"runtime_refusals_total": "requests", "vllm:request_success_total": "outputs"}
TYPES: Mapping[ParameterSet, Sequence[type[msgspec.Struct]]] = {
    ParameterSet.COMPLETIONS: (CompletionRequest,),
    ParameterSet.CHATS: (ChatRequest,),
    ParameterSet.RESPONSES: (ResponsesRequest,),
    ParameterSet.PARAMETERS: (SamplingParameters,),
    ParameterSet.EMBEDDINGS: (EmbeddingRequest,),
    ParameterSet.RERANK: (RerankRequest,),
    ParameterSet.SCORE: (ScoreRequest,),
    ParameterSet.CLASSIFY: (ClassifyRequest,),
    ParameterSet.POOLING: (PoolingRequest,),
    ParameterSet.TOKENIZE: (TokenizeTextRequest, TokenizeChatRequest),
    ParameterSet.DETOKENIZE: (DetokenizeRequest,),
}
# The calls of each table of parameters, under the headings of their columns.
GENERATION = {
    "completions": ParameterSet.COMPLETIONS,
    "chats": ParameterSet.CHATS,
    "responses": ParameterSet.RESPONSES,
    "V1, OIP": ParameterSet.PARAMETERS,
}
POOLING = {route.value: route for route in pooling_parameters.REFUSED}


def render_arguments() -> str:
    """Every argument by group, without the limits, which have a page of their own."""
    parts = []
    groups: tuple[type[ArgumentGroup], ...] = (*GROUPS, PredictArguments)
    for group in groups:
        if group is LimitArguments:
            parts.append("## Limits\n\nSee [limits](limits.md).\n")
            continue
        parts.append(f"## {group.title}\n")
        parts += [
            _render_argument(name, field.default, field.description) for name, field in group.model_fields.items()
        ]
        parts.append("")
    return "\n".join(parts)


def render_limits() -> str:
    """Every limit with what it protects."""
    lines = []
    for name, field in LimitArguments.model_fields.items():
        lines.append(_render_argument(name, field.default, field.description, f"Protects {PROTECTS[name]}."))
    return "\n".join([*lines, ""])


def _render_argument(name: str, default: object, description: str | None, more: str = "") -> str:
    default = show_default(default)
    shown = f" (default `{default}`)" if default else ""
    text = (description or "").replace("](docs/", "](../").rstrip(".")
    item = f"- `{name}`{shown}: {text}. {more}".rstrip()
    return textwrap.fill(item, 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def list_supported(route: ParameterSet) -> set[str]:
    """The parameters that the types of a route have."""
    return {field.name for kind in TYPES[route] for field in msgspec.structs.fields(kind)}


def render_generation_parameters() -> str:
    return _render_parameters(GENERATION, generation_parameters.MEANINGS)


def render_pooling_parameters() -> str:
    return _render_parameters(POOLING, pooling_parameters.MEANINGS)


def _render_parameters(columns: Mapping[str, ParameterSet], meanings: Mapping[str, str]) -> str:
    rows = describe_parameters([*columns.values()], meanings).items()
    lines = [f"| `{name}` | {' | '.join(cells)} |" for name, cells in rows]
    head = [f"| parameter | {' | '.join(columns)} | meaning |", f"|{'---|' * (len(columns) + 2)}"]
    return "\n".join([*head, *lines, ""])


def describe_parameters(routes: Sequence[ParameterSet], meanings: Mapping[str, str]) -> dict[str, list[str]]:
    """The cells of each parameter: how each route treats it, and its meaning."""
    unused = sorted(set().union(*(NO_EFFECT[route] for route in routes)))
    refused = sorted(set().union(*(REFUSED[route] for route in routes)))
    names = dict.fromkeys([*meanings, *unused, *refused])
    return {name: [*(_describe(name, route) for route in routes), meanings.get(name, "")] for name in names}


def _describe(name: str, route: ParameterSet) -> str:
    if name in list_supported(route):
        return "refused" if name == "chat_template" else "yes"
    if name in NO_EFFECT[route]:
        return "no effect"
    if (refusal := REFUSED[route].get(name)) is None:
        return ""
    values = ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in refusal.neutral)
    only = "vLLM" if refusal.on_vllm else "refused"
    return f"{only}, or {values}" if values else only


def render_settings() -> str:
    """A table of every setting of BentoML's: what reads it, or why it has no effect."""
    columns = {
        Effect.BENTOML: "BentoML: {}",
        Effect.ARGUMENT: "`--{}`",
        Effect.VARIABLE: "`{}`",
        Effect.NONE: "no effect: {}",
    }
    lines = ["| setting | read as |", "|---|---|"]
    for path, each in SETTINGS.items():
        text = CORS_MEANINGS[each.text] if each.effect is Effect.CORS else columns[each.effect].format(each.text)
        lines.append(f"| `{path}` | {text} |")
    return "\n".join([*lines, ""])


def render_metrics() -> str:
    """A table of every metric: its type, labels, unit and meaning."""
    for module in METRIC_MODULES:
        importlib.import_module(module)
    families = sorted(
        (each for each in list_families() if each.name.startswith(METRIC_PREFIXES)), key=lambda each: each.name
    )
    lines = ["| metric | type | labels | unit | meaning |", "|---|---|---|---|---|"]
    for family in families:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        lines.append(f"| `{family.name}` | {family.kind} | {labels} | {find_unit(family.name)} | {family.meaning} |")
    lines += ["", "The upper bounds of the buckets of histograms:", ""]
    histograms = [family for family in families if isinstance(family, HistogramFamily)]
    for bounds in dict.fromkeys(family.bounds for family in histograms):
        names = [family.name for family in histograms if family.bounds == bounds]
        of_times = all("seconds" in name for name in names)
        which = "of times, in seconds" if of_times else " and ".join(f"of `{name}`" for name in names)
        lines.append(f"- {which}: {', '.join(f'{bound:g}' for bound in bounds)}")
    return "\n".join([*lines, ""])


def find_unit(name: str) -> str:
    """The unit of a metric, by its name."""
    for unit in ("seconds", "tokens", "texts", "requests"):
        if unit in name.split("_"):
            return unit
    return UNITS.get(name, "")


PAGES: Mapping[Path, Callable[[], str]] = {
    DOCS / "reference" / "arguments.md": render_arguments,
    DOCS / "reference" / "limits.md": render_limits,
    DOCS / "reference" / "bentoml-settings.md": render_settings,
    DOCS / "reference" / "metrics.md": render_metrics,
    DOCS / "reference" / "generation-parameters.md": render_generation_parameters,
    DOCS / "reference" / "pooling-parameters.md": render_pooling_parameters,
}


def generate(page: str, render: Callable[[], str]) -> str:
    """The page with its generated part written anew."""
    return f"{page.partition(MARK)[0]}{MARK}\n{render()}"


def check_marks() -> None:
    """
    Raises:
        ValueError: a page has lost the line that its generated part follows.
    """
    for path in PAGES:
        if not re.search(re.escape(MARK), path.read_text(encoding="utf-8")):
            raise ValueError(f"{path} has no line {MARK!r}")


if __name__ == "__main__":
    check_marks()
    for path, render in PAGES.items():
        path.write_text(generate(path.read_text(encoding="utf-8"), render), encoding="utf-8")
