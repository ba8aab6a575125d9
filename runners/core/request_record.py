"""The record of one request: what it was, how it was answered, and the moments at which its phases began.

Protocols begin and end records; engines set fields of the record of the running code. Observers, such as metrics, the
access log and traces, get each record once, when its request has ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from runners.core.generation import Sampling

# The route of a request to no route of this server, or whose head was not read.
UNKNOWN_ROUTE = "unknown"
# The statuses of a request whose client left before its answer: nginx's for HTTP, and gRPC's.
CLIENT_LEFT = "499"
CANCELLED = "CANCELLED"
_MOST_REASONS = 64


class RequestRecord:
    """One HTTP request, gRPC call or message of a gRPC stream.

    Moments are seconds of `time.perf_counter`, 0 if the request did not come so far. Any thread may set a field; one
    phase is set by one thread at a time.

    Attributes:
        protocol: a name of `protocol.application.PROTOCOLS`, grpc, or server for health, metrics, docs and unknown
            paths.
        route: the template of the path, such as /v1/models/{name}:predict, or the gRPC method; never a client's text.
        path: the path as the client sent it, without the query; the method of a gRPC call.
        method: the HTTP method, or gRPC.
        model_name: the first name of the model that answers; empty if none was found.
        status: the HTTP status, such as 200, or the name of the gRPC status, such as OK; 499 or CANCELLED if the client
            left before the answer.
        request_id: the id that the client sent; None if it sent none.
        texts: the texts, pairs or prompts that the model was given.
        tokens: the tokens that an encoder computes; a generator's are in the next two fields.
        prompt_tokens: the tokens of all prompts.
        generation_tokens: the tokens of all outputs so far.
        refusal: why the request got an error, as one of the words of `protocol.http.errors.REFUSALS`; None without one.
        cancelled: whether the client left before its answer was sent.
        started: when the request's head had been read.
        queued: when its first text was put into the queue: it had been read and tokenized.
        computing: when its first batch began.
        computed: when its last batch had ended.
        rendering: when the rendering of its answer began; 0 for streams.
        ended: when its answer had been written.
        first_token: when the first token of its first output came.
        trace_id, span_id: hexadecimal, set when it begins if tracing is on; else empty.
        trace: what the tracer keeps of the request; None if tracing is off.
        scheme: of the URL, http or https; empty for gRPC.
        sampling: how a generator continues the prompts; None for other requests.
        finish_reasons: why the first outputs have ended: length, stop, or another word of vLLM's.
    """

    __slots__ = (
        "cancelled",
        "computed",
        "computing",
        "ended",
        "finish_reasons",
        "first_token",
        "generation_tokens",
        "method",
        "model_name",
        "path",
        "prompt_tokens",
        "protocol",
        "queued",
        "refusal",
        "rendering",
        "request_id",
        "route",
        "sampling",
        "scheme",
        "span_id",
        "started",
        "status",
        "texts",
        "tokens",
        "trace",
        "trace_id",
    )

    def __init__(self, protocol: str, route: str, method: str) -> None:
        self.protocol = protocol
        self.route = self.path = route
        self.method = method
        self.model_name = ""
        self.status = ""
        self.request_id: str | None = None
        self.texts = self.tokens = self.prompt_tokens = self.generation_tokens = 0
        self.refusal: str | None = None
        self.cancelled = False
        self.queued = self.computing = self.computed = self.rendering = self.ended = self.first_token = 0.0
        self.trace_id = self.span_id = self.scheme = ""
        self.trace: object = None
        self.sampling: Sampling | None = None
        self.finish_reasons: tuple[str, ...] = ()
        self.started = perf_counter()

    def note_finish(self, reason: str) -> None:
        """Note why an output has ended; of the first outputs only, so that a record stays small."""
        if len(self.finish_reasons) < _MOST_REASONS:
            self.finish_reasons = (*self.finish_reasons, reason)

    def locate(self, protocol: str, route: str) -> None:
        """Set the route, once it is found."""
        in_progress[self.protocol] -= 1
        in_progress[protocol] += 1
        self.protocol = protocol
        self.route = route


# The value of a header of the request, or metadata of the call, by its name in lower case; None if it is missing.
ReadHeader = Callable[[str], str | None]
StartObserver = Callable[[RequestRecord, ReadHeader], None]
Observer = Callable[[RequestRecord], None]

# The record of the running code. A task that a request starts has its record too; other threads get it explicitly.
current_record: ContextVar[RequestRecord | None] = ContextVar("current_record", default=None)
# By protocol, the requests that have begun and not ended; changed on the event loop only.
in_progress: Counter[str] = Counter()
# They must be quick and raise nothing: they run on the event loop, for every request.
_start_observers: list[StartObserver] = []
_observers: list[Observer] = []


def add_start_observer(observer: StartObserver) -> None:
    """Call `observer` with each record that begins, before anything else is done for the request; as `add_observer`."""
    if observer not in _start_observers:
        _start_observers.append(observer)


def add_observer(observer: Observer) -> None:
    """Call `observer` with each record whose request has ended; all its fields are set then.

    It is still the current record of the code that runs. Adding an observer again has no effect.
    """
    if observer not in _observers:
        _observers.append(observer)


def remove_observer(observer: Observer | StartObserver) -> None:
    """Call an observer no more; without an effect if it is none."""
    for observers in (_start_observers, _observers):
        if observer in observers:
            observers.remove(observer)  # type: ignore[arg-type]


def begin_record(protocol: str, route: str, method: str, read_header: ReadHeader) -> RequestRecord:
    """Make the record of a request that begins; `end_record` must follow."""
    record = RequestRecord(protocol, route, method)
    in_progress[protocol] += 1
    current_record.set(record)
    for observer in _start_observers:
        observer(record, read_header)
    return record


def end_record(record: RequestRecord) -> None:
    """Tell the observers that a request has ended. The running code has no record from then on.

    It has none rather than the one before: a pipelined request begins in the context of an earlier one.
    """
    record.ended = perf_counter()
    in_progress[record.protocol] -= 1
    for observer in _observers:
        observer(record)
    current_record.set(None)


def record_refusal(protocol: str, status: str, refusal: str, method: str) -> None:
    """Record a request that is refused before its head or its call is read."""
    outer = current_record.get()
    record = begin_record(protocol, UNKNOWN_ROUTE, method, lambda _: None)
    record.status, record.refusal = status, refusal
    end_record(record)
    current_record.set(outer)
