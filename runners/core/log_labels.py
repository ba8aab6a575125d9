"""What the running code works for, as log records tell it."""

from __future__ import annotations

from contextvars import Context, ContextVar

from runners.core.request_record import current_record

# The model; None where that is clear, because the server has one model only.
model_label: ContextVar[str | None] = ContextVar("model_label", default=None)

_LONGEST = 128


def model_context() -> Context:
    """A context with the label of the running code, and nothing else of its context, such as a request's id."""
    context = Context()
    context.run(model_label.set, model_label.get())
    return context


def read_labels() -> dict[str, str]:
    """The model, and the ids of the request and of its trace and span; those that the running code has."""
    labels: dict[str, str] = {}
    record, model = current_record.get(), model_label.get()
    if model is None and record is not None:
        model = record.model_name
    if model:
        labels["model"] = printable(model)
    if record is not None:
        if record.request_id is not None:
            labels["request_id"] = printable(record.request_id)
        if record.trace_id:
            labels["trace_id"], labels["span_id"] = record.trace_id, record.span_id
    return labels


def printable(text: str, longest: int = _LONGEST) -> str:
    """A client's text for a log line: shortened, on one line, without control characters."""
    text = text[:longest]
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else "?" for character in text)
