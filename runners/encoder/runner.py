"""The flow of an encoder: texts -> tokens -> queue -> batch -> forward pass -> head -> predictions.

The event loop admits requests and hands out answers; a thread tokenizes; another one loads the model and then does
nothing but run batches. torch and transformers are imported in that thread: importing this module stays cheap, because
BentoML imports service.py in its parent process and at build.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TYPE_CHECKING

import numpy as np

from runners.answers import AnswerOptions, ReadingOptions
from runners.arguments import Arguments
from runners.cores import count_cores
from runners.draining import wait_until
from runners.errors import (
    ArgumentsError,
    InputError,
    ModelLoadError,
    ModelNotReadyError,
    NonFiniteScoresError,
    PredictorAnswerError,
    PredictorError,
    PredictorRefusalError,
    load_errors,
    naming_text,
)
from runners.inference import TRUNCATED_TOKENS, Options, Output, Prediction, TensorSpec, TextInput, TokenInput
from runners.metrics import NON_FINITE_TEXTS, TRUNCATED_TEXTS, Load
from runners.predictor import Predictor, PredictorWatch
from runners.task import ENTAILMENT, GENERATION, Task, infer_task

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from runners.encoder.batching import BatchMode, BatchQueue, Entry, Job
    from runners.encoder.forward import Forward, ModelInputs
    from runners.encoder.heads import Head
    from runners.encoder.reading import Reading, TokenizedText
    from runners.encoder.token_limits import TokenLimits
    from runners.encoder.tokenization import TextTokenizer

logger = logging.getLogger(__name__)

# Texts of one request that are tokenized at a time: other requests get their turn in between.
_TOKENIZED_AT_A_TIME = 64
# Tokens of the largest batch whose kernels are built when the model is loaded.
_WARM_ROWS = 128
_LONGEST_BATCH_SECONDS = 10
# What the texts are made of that a model is tried and warmed with.
_TRIAL_WORDS = tuple("the quick brown fox jumps over a lazy dog and runs away from it into the old forest".split())  # noqa: SIM905
# A text that is tokenized to its end holds others up for half a second if it has so many.
_MOST_CHARACTERS = 2**19
# Of the texts of a request and what each is paired with; 0.3 GB of tokens if they are long.
_MOST_SEQUENCES = 2**15
_SCORES = frozenset({"logits", "probabilities"})
# Numbers in the answer to one request: 128 MiB, half a GB of JSON. Fill-mask has the whole vocabulary at every mask.
_MOST_SCORES = 2**25


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Everything that exists once the model is loaded."""

    task: Task
    model: PreTrainedModel
    head: Head
    tokenizer: TextTokenizer
    tokenizer_thread: ThreadPoolExecutor
    token_limits: TokenLimits
    forward: Forward
    queue: BatchQueue
    predictor: Predictor | None = None
    watch: PredictorWatch | None = None

    def close(self) -> None:
        """Fail what waits; what runs ends by itself."""
        self.tokenizer_thread.shutdown(wait=False, cancel_futures=True)
        self.queue.close()


class EncoderRunner:
    """One encoder model, loaded in the background and run in a thread of its own, or by a predictor."""

    def __init__(self, arguments: Arguments, connect: Callable[[Arguments], Predictor] | None = None) -> None:
        """
        Args:
            connect: reaches the predictor that the arguments name, if they do.
        """
        arguments.ignore_engine_arguments("this model does not run on vLLM")
        self._arguments = arguments
        self._answer = AnswerOptions.model_validate(arguments.model_dump(include={*AnswerOptions.model_fields}))
        self._reading = ReadingOptions.model_validate(arguments.model_dump(include={*ReadingOptions.model_fields}))
        self._loaded: _Loaded | None = None
        self._warned_of_truncation = False
        self._connect = connect
        self._threads: list[threading.Thread] = []

    @property
    def name(self) -> str:
        return self._arguments.model_name

    @property
    def names(self) -> Sequence[str]:
        return (self.name,)

    @property
    def task(self) -> Task | None:
        return self._loaded.task if self._loaded is not None else None

    @property
    def ready(self) -> bool:
        loaded = self._loaded
        return loaded is not None and (loaded.watch is None or loaded.watch.ready)

    @property
    def failed(self) -> bool:
        # Its model thread answers whatever happens.
        return False

    @property
    def forward_mode(self) -> BatchMode | None:
        """How texts share batches; None before the model is loaded."""
        return self._loaded.forward.mode if self._loaded is not None else None

    @property
    def default_options(self) -> Options:
        output = Output.LABELS
        if self._arguments.return_probabilities:
            output = Output.PROBABILITIES
        elif self._arguments.return_raw_logits:
            output = Output.RAW_LOGITS
        return Options(output, self._answer, self._reading, self._arguments.return_offsets_mapping)

    @property
    def properties(self) -> Mapping[str, str]:
        loaded = self._model()
        return {"task": loaded.task, "max_length": str(loaded.token_limits.max_length), **loaded.head.properties}

    def class_name(self, index: int) -> str:
        return self._model().head.class_name(index)

    @property
    def answer_options(self) -> frozenset[str]:
        return self._loaded.head.options if self._loaded is not None else frozenset()

    def outputs(self, options: Options) -> Sequence[TensorSpec]:
        counted = [TRUNCATED_TOKENS] if options.reading.return_truncated_tokens else []
        return [*self._model().head.outputs(options), *counted]

    def named_outputs(self) -> Sequence[TensorSpec]:
        head = self._model().head
        counted = [TRUNCATED_TOKENS] if "return_truncated_tokens" in head.reading_options else []
        return [*head.named_outputs(), *counted]

    async def load(self) -> None:
        """Load and warm the model; it is ready when this returns, or once its predictor is.

        Raises:
            ModelLoadError: the model cannot be served; the message is one line.
        """
        if self._loaded is not None:
            # Its predictor is what is not ready.
            return
        loading: Future[_Loaded] = Future()
        self._threads = [threading.Thread(target=self._work, args=(loading,), name="model", daemon=True)]
        self._threads[0].start()
        with load_errors(self._arguments.model):
            self._loaded = await asyncio.wrap_future(loading)
        where = f", run by {self._arguments.predictor_host}" if self._loaded.predictor is not None else ""
        logger.info("%s is ready: %s from %s%s", self.name, self._loaded.task, self._arguments.model, where)

    async def unload(self) -> None:
        """Refuse what comes, let what is under way end, and free the memory; `load` loads it again."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        queue = loaded.queue
        await wait_until(lambda: not queue.requests)
        await asyncio.to_thread(self._stop, loaded)
        del loaded
        # What was frozen when the model was loaded is to be looked at again: the model is part of it.
        gc.unfreeze()
        gc.collect()

    def close(self) -> None:
        """Stop the threads; what waits for them fails. Returns when the batch that runs is done."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._stop(loaded)

    def _stop(self, loaded: _Loaded) -> None:
        loaded.close()
        deadline = time.monotonic() + _LONGEST_BATCH_SECONDS
        for thread in self._threads:
            # A thread that is killed inside torch takes the process down with a message.
            thread.join(max(0.0, deadline - time.monotonic()))
        if loaded.watch is not None:
            loaded.watch.stop()
        if loaded.predictor is not None:
            # A batch that the predictor still has fails.
            loaded.predictor.close()

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        """One prediction a text, in order; tokenizer and model run in their threads, never on the event loop.

        Args:
            texts: all of them texts, or all of them tokenized.

        Raises:
            InputError: a text cannot be served; the message names its position.
            ModelNotReadyError: the model is not loaded.
            OverloadedError: too many requests are under way.
        """
        loaded = self._model()
        to_end = loaded.head.reads_to_end(options)
        for position, given in enumerate(texts):
            if isinstance(given, TextInput) and given.pair is not None and not loaded.head.accepts_pairs:
                raise InputError(f"text {position} is a pair, and {loaded.task} takes single texts")
            if isinstance(given, TextInput) and given.pair is None and loaded.head.needs_pairs:
                raise InputError(f"text {position} is a single one, and {loaded.task} takes a question and a context")
            if isinstance(given, TextInput) and given.words is not None and not loaded.head.accepts_words:
                raise InputError(f"text {position} is split into words, and {loaded.task} takes whole texts")
            if to_end and (length := _count_characters(given)) > _MOST_CHARACTERS:
                raise InputError(
                    f"text {position} has {length} characters; one that is not simply truncated may have "
                    f"{_MOST_CHARACTERS}"
                )
        sequences = loaded.head.count_sequences(options)
        if sequences * len(texts) > _MOST_SEQUENCES and sequences > 1:
            raise InputError(
                f"{len(texts)} texts with {sequences} labels each are more than {_MOST_SEQUENCES} pairs, which a "
                "request may have"
            )
        loaded.head.check_options(options)
        own_prompt = options.answer.prompt_name in (None, self._answer.prompt_name)
        if not own_prompt and any(isinstance(given, TokenInput) for given in texts):
            raise InputError("a prompt goes before texts, and the request has tokens", "prompt_name")
        if TRUNCATED_TOKENS.name in options.tensors:
            options = replace(options, reading=options.reading.model_copy(update={"return_truncated_tokens": True}))
        elif options.reading.return_truncated_tokens:
            options = replace(options, tensors=options.tensors | {TRUNCATED_TOKENS.name})
        scores = 0
        job = loaded.queue.admit(len(texts))
        try:
            for start, chunk in _chunks(texts, sequences, to_end):
                readings = await _tokenize(loaded, start, chunk, options)
                self._check(loaded, start, readings, options)
                answers_scores = options.output is not Output.LABELS or options.tensors & _SCORES
                # Those of windows are kept until the last one's are there.
                kept = [reading.text for reading in readings if answers_scores or reading.own]
                scores += sum(map(loaded.head.count_scores, kept))
                _check_scores(scores)
                loaded.queue.put(job, start, readings, options)
            return await job.result
        finally:
            loaded.queue.release(job)

    def _model(self) -> _Loaded:
        if self._loaded is None:
            raise ModelNotReadyError(f"Model with name {self.name} is not ready.")
        return self._loaded

    def _check(self, loaded: _Loaded, start: int, readings: Sequence[Reading], options: Options) -> None:
        for position, reading in enumerate(readings, start):
            with naming_text(position):
                loaded.head.check(reading, options.answer)
                loaded.token_limits.check(reading)
        truncated = [reading for reading in readings if any(sequence.truncated for sequence in reading.sequences)]
        if not truncated:
            return
        TRUNCATED_TEXTS.labels(self.name).inc(len(truncated))
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            logger.warning(
                "a text was longer than %d tokens and was truncated; further ones are only counted, in "
                "runtime_truncated_texts_total", loaded.token_limits.max_length
            )  # fmt: skip

    def _work(self, loading: Future[_Loaded]) -> None:
        """The model thread: load, then run batches until the queue is closed.

        libgomp wants this to be one thread: where another has run a parallel operator before, batches take 8-26 % more.
        """
        try:
            loaded = self._load()
        except BaseException as error:
            loading.set_exception(error)
            return
        # A batch of the predictor's takes no core here: others may be under way.
        others = [
            threading.Thread(target=self._run, args=(loaded,), name="model", daemon=True)
            for _ in range(1, loaded.forward.at_once)
        ]
        self._threads += others
        for thread in others:
            thread.start()
        loading.set_result(loaded)
        self._run(loaded)

    def _run(self, loaded: _Loaded) -> None:
        try:
            while batch := loaded.queue.take(loaded.forward.mode):
                start = time.perf_counter()
                try:
                    _run_batch(loaded, batch)
                finally:
                    loaded.queue.finish(batch)
                loaded.queue.note_speed(sum(entry.tokens for entry in batch), time.perf_counter() - start)
        finally:
            # Whatever ends this thread, nobody is to wait for it.
            loaded.close()
            if self._loaded is loaded:
                self._loaded = None

    def _load(self) -> _Loaded:
        # Spin shortly at OpenMP's barriers: where another process wants the cores, long spinning is 20 times slower.
        # libgomp reads it when torch is imported.
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        import torch
        from transformers.utils import logging as transformers_logging

        from runners.encoder.batching import BatchQueue
        from runners.encoder.forward import ModelInputs
        from runners.encoder.heads import HEADS
        from runners.encoder.remote import RemoteForward
        from runners.encoder.token_limits import TokenLimits, find_padding_id
        from runners.encoder.tokenization import TextTokenizer
        from runners.encoder.transformer_settings import load_transformer_settings
        from runners.loading import (
            holds_embedder,
            limit_length,
            load_config,
            load_model,
            load_tokenizer,
            outline_model,
            resolve_batch_tokens,
        )

        # What is worth saying about a load is said in our own errors and log lines.
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        arguments = self._arguments
        torch.set_num_threads(count_cores(arguments.workers))
        remote = arguments.predictor_host is not None
        device = torch.device("cuda" if torch.cuda.is_available() and not remote else "cpu")
        config = load_config(arguments)
        task = arguments.task or _infer_task(config, holds_embedder(arguments))
        if remote and task is Task.QUESTION_ANSWERING:
            raise ArgumentsError("predictor_host: a predictor gives one tensor, and question_answering needs two")
        head_class = HEADS[task]
        settings = load_transformer_settings(arguments, task)
        if settings.config:
            config = load_config(arguments, settings.config)
        tokenizer = load_tokenizer(arguments, settings.tokenizer, settings.max_length)
        if remote:
            model = outline_model(arguments, head_class.auto_class, config)
        else:
            model = load_model(arguments, head_class.auto_class, device, head_class.unused_weights, config)
        head = head_class(arguments, settings, model, tokenizer, device)
        if arguments.return_offsets_mapping and task is not Task.TOKEN_CLASSIFICATION:
            logger.warning("return_offsets_mapping has no effect on %s", task)
        given = {**self._answer.model_dump(), **self._reading.model_dump()}
        for name in sorted(given.keys() - head.options):
            if given[name] != Arguments.model_fields[name].default:
                logger.warning("%s has no effect on %s", name, task)
        own = {name: value for name, value in given.items() if name in head.options}
        self._answer, self._reading = AnswerOptions.model_validate(own), ReadingOptions.model_validate(own)
        try:
            head.check_options(self.default_options)
        except InputError as error:
            raise ArgumentsError(str(error)) from error
        inputs = _input_names(arguments, model, tokenizer)
        TRUNCATED_TEXTS.labels(self.name)
        NON_FINITE_TEXTS.labels(self.name)
        max_batch_tokens = resolve_batch_tokens(arguments, device)
        max_length = limit_length(model, tokenizer, arguments.max_length, head.recommended_length)
        text_tokenizer = TextTokenizer(
            tokenizer,
            max_length=max_length,
            add_special_tokens=not arguments.disable_special_tokens,
            lower_case=head.lower_case,
        )
        token_limits = TokenLimits.of(model, max_length, "token_type_ids" in inputs).compare(
            tokenizer,
            add_special_tokens=not arguments.disable_special_tokens,
            accepts_pairs=head.accepts_pairs,
            needs_pairs=head.needs_pairs,
            needed_tokens=head.needed_tokens,
        )
        padding_id = find_padding_id(model)
        forward: Forward
        predictor = watch = None
        if remote:
            assert self._connect is not None
            predictor = self._connect(arguments)
            forward = RemoteForward(predictor, head, inputs, padding_id)
            watch = PredictorWatch(predictor) if arguments.enable_predictor_health_check else None
        else:
            model_inputs = ModelInputs(model, inputs, head.rows, tokenizer.mask_token_id, padding_id)
            forward = self._choose_forward(model_inputs, head, text_tokenizer, token_limits)
        loaded = _Loaded(
            task=task,
            model=model,
            head=head,
            tokenizer=text_tokenizer,
            token_limits=token_limits,
            tokenizer_thread=ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer"),
            forward=forward,
            queue=BatchQueue(max_batch_tokens, arguments.max_concurrent_requests, Load(self.name)),
            predictor=predictor,
            watch=watch,
        )
        if not remote:
            self._warm_up(loaded)
        # What is loaded stays: the collector need not look at it again (its pauses were the tail of the latency).
        gc.collect()
        gc.freeze()
        return loaded

    def _warm_up(self, loaded: _Loaded) -> None:
        from runners.encoder.linear import warm_linears
        from runners.encoder.packing import ROW_MULTIPLE

        # Tokens come in multiples. A larger batch takes so long that its kernels' first use is not noticed, and kernels
        # that are never used are memory and time.
        warm_linears(loaded.model, range(ROW_MULTIPLE, _WARM_ROWS + 1, ROW_MULTIPLE))
        options = self._trial_options
        for reading in self._read_trial_texts(loaded.head, loaded.tokenizer, loaded.token_limits, (1, 30, 200)):
            loaded.head.predict(_compute(loaded, reading.sequences), reading, options)

    def _choose_forward(
        self, inputs: ModelInputs, head: Head, tokenizer: TextTokenizer, limits: TokenLimits
    ) -> Forward:
        """Try the forward passes on texts as the model's own tokenizer makes them."""
        from runners.encoder.batching import BatchMode
        from runners.encoder.probe import Probe, choose_forward, count_probe_words

        readings = self._read_trial_texts(head, tokenizer, limits, count_probe_words(head.config))
        texts = [reading.sequences[0] for reading in readings]
        probe = Probe(inputs, texts, _find_ordinary_ids(head, inputs.model))
        head.learn_width(probe.expected[0].shape[-1])
        forward, reason = choose_forward(probe, head.tokenizer.padding_side)
        slow = forward.mode in (BatchMode.EQUAL_LENGTH, BatchMode.ONE_BY_ONE)
        logger.log(logging.WARNING if slow else logging.INFO, "%s", reason)
        return forward

    def _read_trial_texts(
        self, head: Head, tokenizer: TextTokenizer, limits: TokenLimits, lengths: Sequence[int]
    ) -> list[Reading]:
        """Texts of so many words, the second ones of pairs where the task needs pairs, with a mask if there is one.

        Only those that the model has embeddings for: others would end a GPU's context.

        Raises:
            ModelLoadError: it has none for any of them.
        """
        mask = "" if head.tokenizer.mask_token_id in limits.unreadable else head.tokenizer.mask_token or ""
        texts = []
        for words in lengths:
            text = " ".join([mask, *islice(cycle(_TRIAL_WORDS), words)])
            texts.append(TextInput("where" if head.needs_pairs else text, text if head.needs_pairs else None))
        readable, refusal = [], None
        for reading in head.tokenize(tokenizer, texts, self._trial_options):
            try:
                limits.check(reading)
            except InputError as error:
                refusal = error
            else:
                readable.append(reading)
        if not readable:
            raise ModelLoadError(f"the tokenizer is another model's: of ordinary words {refusal}")
        return readable

    @property
    def _trial_options(self) -> Options:
        # The operator may have texts refused that are as long as the longest trial.
        return replace(self.default_options, reading=ReadingOptions())


def _chunks(
    texts: Sequence[TextInput | TokenInput], sequences: int, to_end: bool
) -> Iterator[tuple[int, Sequence[TextInput | TokenInput]]]:
    """As many texts as may be tokenized at a time, with the position of the first.

    Args:
        sequences: how many sequences a text makes, those of windows not counted.
        to_end: whether long texts take long.
    """
    start, characters = 0, 0
    most = max(1, _TOKENIZED_AT_A_TIME // sequences)
    for position, given in enumerate(texts):
        length = _count_characters(given) if to_end else 0
        if position - start == most or (position > start and characters + length > _MOST_CHARACTERS):
            yield start, texts[start:position]
            start, characters = position, 0
        characters += length
    yield start, texts[start:]


def _count_characters(given: TextInput | TokenInput) -> int:
    return len(given.text) + len(given.pair or "") if isinstance(given, TextInput) else 0


async def _tokenize(
    loaded: _Loaded, start: int, chunk: Sequence[TextInput | TokenInput], options: Options
) -> list[Reading]:
    """Texts in the tokenizer's thread; what the caller has tokenized is only checked."""
    texts = [given for given in chunk if isinstance(given, TextInput)]
    if texts:
        return await asyncio.get_running_loop().run_in_executor(
            loaded.tokenizer_thread, loaded.head.tokenize, loaded.tokenizer, texts, options, start
        )
    accepted = []
    for position, given in enumerate(chunk, start):
        assert isinstance(given, TokenInput)
        with naming_text(position):
            accepted.append(loaded.token_limits.accept(given))
    return accepted


def _check_scores(scores: int) -> None:
    if scores > _MOST_SCORES:
        raise InputError(
            f"the scores of the whole vocabulary at every mask are more than the {_MOST_SCORES} numbers of one "
            "request: send fewer masks, or shorter texts for the output labels alone"
        )


def _infer_task(config: PretrainedConfig, embedder: bool) -> Task:
    """
    Args:
        embedder: whether the model comes with the files of one, which say more than its architecture.
    """
    if embedder:
        return Task.TEXT_EMBEDDING
    task = infer_task(config.architectures)
    if task in GENERATION:
        raise ModelLoadError(f"its config.json could not be read when the server started: set --task={task}")
    names = [str(name).lower() for name in (config.id2label or {}).values()]
    if task is Task.SEQUENCE_CLASSIFICATION and any(name.startswith(ENTAILMENT) for name in names):
        # It answers as before, unless a request has labels of its own.
        return Task.ZERO_SHOT_CLASSIFICATION
    # With one class there is nothing to choose from: it is a cross-encoder, or answers as one.
    one_class = config.num_labels == 1 and getattr(config, "problem_type", None) != "multi_label_classification"
    if task is Task.SEQUENCE_CLASSIFICATION and one_class:
        return Task.TEXT_RANKING
    return task


def _find_ordinary_ids(head: Head, model: PreTrainedModel) -> NDArray[np.int64]:
    """The token ids that texts are made of, without special ones: int64 [ids]."""
    from runners.encoder.token_limits import count_token_ids

    tokenizer, rows = head.tokenizer, count_token_ids(model)
    ids = {*tokenizer.get_vocab().values()} - {*tokenizer.all_special_ids}
    return np.array(sorted(token for token in ids if rows is None or token < rows), dtype=np.int64)


def _input_names(arguments: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Which of the tokenizer's outputs the model is given: by default those that `tokenizer(text)` returns.

    Raises:
        ArgumentsError: the arguments name what this model does not take.
    """
    taken = frozenset(inspect.signature(model.forward).parameters) & {"input_ids", "attention_mask", "token_type_ids"}
    if arguments.return_token_type_ids and "token_type_ids" not in taken:
        raise ArgumentsError(f"return_token_type_ids: {type(model).__name__} takes no token_type_ids")
    names = taken & {*tokenizer.model_input_names, *(["token_type_ids"] if arguments.return_token_type_ids else [])}
    if arguments.tensor_input_names is None:
        return names
    asked = frozenset(arguments.tensor_input_names)
    if not asked <= taken or "input_ids" not in asked:
        raise ArgumentsError(
            f"tensor_input_names is {','.join(arguments.tensor_input_names)}; {type(model).__name__} needs input_ids "
            f"and takes {', '.join(sorted(taken))}"
        )
    return asked


def _run_batch(loaded: _Loaded, batch: Sequence[Entry]) -> None:
    """Answer a batch; if it fails its halves, and so on, so that only those texts fail that must.

    A predictor that has failed would fail them all, one after another.
    """
    predictions: Sequence[Prediction | Exception | None]
    try:
        predictions = _predict(loaded, batch)
        _count_failed(loaded, batch, predictions)
    except Exception as error:
        hopeless = isinstance(error, PredictorError) and not isinstance(error, PredictorRefusalError)
        if len(batch) > 1 and not hopeless:
            middle = len(batch) // 2
            for half in (batch[:middle], batch[middle:]):
                _run_batch(loaded, half)
            return
        predictions = [error] * len(batch)
    answers: dict[Job, list[tuple[int, Prediction | Exception]]] = {}
    for entry, prediction in zip(batch, predictions, strict=True):
        if prediction is not None:
            answers.setdefault(entry.job, []).append((entry.position, prediction))
    for job, answered in answers.items():
        job.deliver(answered)


def _predict(loaded: _Loaded, batch: Sequence[Entry]) -> list[Prediction | Exception | None]:
    """The answers to those texts of which no sequence is missing any more; an error for scores that are not finite."""
    scores = _compute(loaded, [entry.text for entry in batch])
    predictions: list[Prediction | Exception | None] = []
    for entry, rows in zip(batch, scores, strict=True):
        if not np.isfinite(rows).all():
            predictions.append(_non_finite_error(loaded, entry.position))
            continue
        parts = entry.reading.accept(entry.part, rows)
        predictions.append(None if parts is None else loaded.head.predict(parts, entry.reading, entry.options))
    return predictions


def _non_finite_error(loaded: _Loaded, position: int) -> Exception:
    if loaded.predictor is not None:
        return PredictorAnswerError(f"the predictor's scores of text {position} are not finite (NaN or infinity)")
    dtype = str(loaded.model.dtype).removeprefix("torch.")
    return NonFiniteScoresError(
        f"the scores of model {loaded.head.arguments.model_name} for text {position} are not finite (NaN or infinity) "
        f"and mean nothing: its weights are damaged, or overflow in {dtype}"
    )


def _count_failed(
    loaded: _Loaded, batch: Sequence[Entry], predictions: Sequence[Prediction | Exception | None]
) -> None:
    """Count the texts whose scores are not finite, and log one of them."""
    pairs = zip(batch, predictions, strict=True)
    failed = {
        (id(entry.job), entry.position): prediction
        for entry, prediction in pairs if isinstance(prediction, Exception)
    }  # fmt: skip
    if failed:
        NON_FINITE_TEXTS.labels(loaded.head.arguments.model_name).inc(len(failed))
        logger.error("%d of %d texts failed: %s", len(failed), len(batch), next(iter(failed.values())))


def _compute(loaded: _Loaded, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
    import torch

    with torch.inference_mode():
        return loaded.head.read(*loaded.forward.run(texts))
