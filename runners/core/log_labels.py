"""What the running code works for, as log records tell it."""

from __future__ import annotations

from contextvars import Context, ContextVar

# The model; None where that is clear, because the server has one model only.
model_label: ContextVar[str | None] = ContextVar("model_label", default=None)


def model_context() -> Context:
    """A context with the label of the running code, and nothing else of its context, such as a request's id."""
    context = Context()
    context.run(model_label.set, model_label.get())
    return context
