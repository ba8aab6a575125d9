"""The metrics of this server, which /metrics serves, except those of generation (generation_metrics.py)."""

from __future__ import annotations

from weakref import WeakKeyDictionary

from runners.core.admission import Admission
from runners.core.metric_families import BORROWED_NAMES, CounterFamily, GaugeFamily, HistogramFamily, counting

_MODEL = ("model_name",)
_VERSION = ("model_name", "version")
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)

# KServe's names, for its dashboards: https://kserve.github.io/website/docs/admin-guide/observability
PREPROCESS_SECONDS = HistogramFamily(
    "request_preprocess_seconds",
    "KServe's name of runtime_read_seconds",
    _MODEL,
    registry=BORROWED_NAMES,
)
PREDICT_SECONDS = HistogramFamily(
    "request_predict_seconds",
    "KServe's: time from the queue to the end of a request's last batch",
    _MODEL,
    registry=BORROWED_NAMES,
)
POSTPROCESS_SECONDS = HistogramFamily(
    "request_postprocess_seconds",
    "KServe's name of runtime_render_seconds",
    _MODEL,
    registry=BORROWED_NAMES,
)
EXPLAIN_SECONDS = HistogramFamily(
    "request_explain_seconds",
    "KServe's: this server has no explainer, so there are none",
    _MODEL,
    registry=BORROWED_NAMES,
)

REQUESTS = CounterFamily(
    "runtime_requests",
    "Requests whose answer has ended; status is that of HTTP, 499 if the client left before an answer, or gRPC's",
    ("protocol", "route", "model_name", "status"),
)
REQUEST_SECONDS = HistogramFamily(
    "runtime_request_seconds",
    "Time of a whole request, from its head until its answer is written",
    ("protocol", "route", "model_name"),
)
READ_SECONDS = HistogramFamily(
    "runtime_read_seconds",
    "Time to read, decode and tokenize a request, until its first text is in the queue",
    _MODEL,
    other_names=[PREPROCESS_SECONDS],
)
QUEUE_SECONDS = HistogramFamily(
    "runtime_queue_seconds", "Time that a request's first text waits until its batch begins", _MODEL
)
COMPUTE_SECONDS = HistogramFamily(
    "runtime_compute_seconds", "Time from the begin of a request's first batch to the end of its last", _MODEL
)
RENDER_SECONDS = HistogramFamily(
    "runtime_render_seconds",
    "Time to render and write an answer; streams are left out",
    _MODEL,
    other_names=[POSTPROCESS_SECONDS],
)
BATCH_TEXTS = HistogramFamily(
    "runtime_batch_texts",
    "Sequences in a batch, which is a forward pass: texts, windows or pairs; of a generator, prompts or outputs",
    _MODEL,
    _TEXTS,
)
BATCH_TOKENS = HistogramFamily("runtime_batch_tokens", "Tokens in a batch, without padding", _MODEL, _TOKENS)
PADDING_TOKENS = CounterFamily(
    "runtime_padding_tokens", "Tokens of padding that were computed beside those of texts", _MODEL
)
BATCHED_TOKENS = CounterFamily("runtime_batched_tokens", "Tokens of texts that were computed in batches", _MODEL)
TEXTS = CounterFamily("runtime_texts", "Texts, pairs or prompts of requests that were answered", _MODEL)
TOKENS = CounterFamily(
    "runtime_tokens", "Tokens of requests that were answered: those computed, or of prompts and outputs", _MODEL
)
WAITING_TEXTS = GaugeFamily(
    "runtime_waiting_texts",
    "Texts in the queue before the model, of requests that somebody still waits for",
    _MODEL,
)
WAITING_TOKENS = GaugeFamily(
    "runtime_waiting_tokens", "Tokens of the texts in the queue before the model; of prompts for each output", _MODEL
)
RUNNING_TEXTS = GaugeFamily("runtime_running_texts", "Texts that the model computes at this moment", _MODEL)
REQUESTS_IN_PROGRESS = GaugeFamily(
    "runtime_requests_in_progress", "Requests, calls and messages of streams that are not answered yet", ("protocol",)
)
REFUSALS = CounterFamily(
    "runtime_refusals", "Requests that got an error, by its reason", ("protocol", "model_name", "reason")
)
CANCELLED_REQUESTS = CounterFamily(
    "runtime_cancelled_requests", "Requests whose client left before the end of the answer", ("protocol", "model_name")
)
TRUNCATED_TEXTS = CounterFamily(
    "runtime_truncated_texts",
    "Texts of which only a part was read: those longer than the model's limit, or than a generator's request asks for",
    _MODEL,
)
NON_FINITE_TEXTS = CounterFamily(
    "runtime_non_finite_texts",
    "Texts that were answered with an error because the model's scores of them were NaN or infinity",
    _MODEL,
)
MODEL_LOAD_SECONDS = GaugeFamily(
    "runtime_model_load_seconds",
    "Time of the last load of a model that is to be loaded, in the slowest worker",
    _VERSION,
    "livemax",
)
MODEL_READY = GaugeFamily(
    "runtime_model_ready", "1 if a model that is to be loaded is ready in all workers, else 0", _VERSION, "livemin"
)
SERVER_READY = GaugeFamily("runtime_server_ready", "1 if all workers are ready, else 0", (), "livemin")
MODEL_INFO = GaugeFamily(
    "runtime_model_info",
    "1 for what a loaded model is and how it runs; 0 for what it was before",
    (*_VERSION, "task", "engine", "dtype", "device", "batching", "linear_kernels"),
    "livemax",
)
PROCESS_INFO = GaugeFamily(
    "runtime_process_info",
    "1 for the versions of this server and of its libraries",
    ("version", "python", "torch", "transformers", "bentoml"),
    "livemax",
)
# What each model's requests hold together, for as long as its runner exists.
_admissions: WeakKeyDictionary[Admission, str] = WeakKeyDictionary()


def watch_waiting_tokens(model_name: str, admission: Admission) -> None:
    """Let the waiting tokens of a model count in the gauge for as long as the admission exists."""
    with counting:
        _admissions[admission] = model_name


def update_waiting_tokens() -> None:
    """Set the gauge of waiting tokens; called before each flush."""
    held = dict.fromkeys((name for (name,) in WAITING_TOKENS.list_labels()), 0)
    with counting:
        # Threads that load models add to them.
        admissions = list(_admissions.items())
    for admission, name in admissions:
        held[name] = held.get(name, 0) + admission.tokens.held
    for name, tokens in held.items():
        WAITING_TOKENS.set((name,), tokens)


class GaugePart:
    """The part of one queue in gauges. The queue of a model that is loaded again adds a part of its own.

    Not thread-safe: the caller of `set` holds the lock of the queue.
    """

    def __init__(self, model_name: str, *gauges: GaugeFamily) -> None:
        # This creates the gauges with the value 0: an autoscaler needs a number from an idle server too.
        with counting:
            self._series = [gauge.series(model_name) for gauge in gauges]
        self._value = 0

    def set(self, value: int) -> None:
        """Make this part `value`."""
        if value != self._value:
            with counting:
                for series in self._series:
                    series.value += value - self._value
            self._value = value


class QueueMetrics:
    """How many texts of a model wait and run.

    Attributes:
        model_name: the first name of the model.
    """

    def __init__(
        self, model_name: str, also_waiting: tuple[GaugeFamily, ...] = (), also_running: tuple[GaugeFamily, ...] = ()
    ) -> None:
        """
        Args:
            also_waiting, also_running: further gauges of the same numbers.
        """
        self.model_name = model_name
        self.waiting = GaugePart(model_name, WAITING_TEXTS, *also_waiting)
        self.running = GaugePart(model_name, RUNNING_TEXTS, *also_running)

    def watch(self, admission: Admission) -> None:
        """Let the tokens that wait count in the gauge for as long as the admission exists."""
        watch_waiting_tokens(self.model_name, admission)


class BatchMetrics:
    """The sizes of a model's batches, and their texts without an answer."""

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        with counting:
            self._texts, self._tokens = BATCH_TEXTS.series(model_name), BATCH_TOKENS.series(model_name)
            self._batched, self._padding = BATCHED_TOKENS.series(model_name), PADDING_TOKENS.series(model_name)

    def count(self, texts: int, tokens: int, padding: int) -> None:
        """Count a batch.

        Args:
            tokens: the tokens of its texts, and `padding`, those that are computed beside them.
        """
        with counting:
            self._texts.observe(texts)
            self._tokens.observe(tokens)
            self._batched.value += tokens
            self._padding.value += padding

    def count_non_finite(self, texts: int) -> None:
        """Count texts whose scores are not finite."""
        NON_FINITE_TEXTS.add((self._model_name,), texts)
