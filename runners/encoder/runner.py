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
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from runners.core.answer_options import AnswerOptions, ReadingOptions
from runners.core.arguments import Arguments
from runners.core.draining import wait_until
from runners.core.errors import (
    ArgumentsError,
    InputError,
    LimitExceededError,
    ModelLoadError,
    ModelNotReadyError,
    load_errors,
    name_text,
)
from runners.core.machine import count_cores, limit_spinning
from runners.core.metrics import NON_FINITE_TEXTS, TRUNCATED_TEXTS, Load
from runners.core.predictions import TRUNCATED_TOKENS, Options, Output, Prediction, TensorSpec, TextInput, TokenInput
from runners.core.predictor import Predictor, PredictorWatch
from runners.core.task import ENTAILMENT, GENERATION, Task, infer_task
from runners.encoder.intake import Intake, TokenizerLanes, count_characters
from runners.encoder.loaded_model import LoadedModel
from runners.encoder.worker import run_batch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from runners.encoder.forward import Forward
    from runners.encoder.queue import BatchMode
    from runners.encoder.sequences import Reading

logger = logging.getLogger(__name__)

_LONGEST_BATCH_SECONDS = 10


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
        self._loaded: LoadedModel | None = None
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
    def generator(self) -> None:
        return None

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
    def busy(self) -> bool:
        return self._loaded is not None and self._loaded.queue.requests > 0

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
        loading: Future[LoadedModel] = Future()
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

    def _stop(self, loaded: LoadedModel) -> None:
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
            LimitExceededError: there are too many texts, or too long ones.
            ModelNotReadyError: the model is not loaded.
            OverloadedError: too many requests are under way.
        """
        loaded = self._model()
        if not texts:
            raise InputError("the request has no texts; give at least one")
        self._arguments.check_texts(texts, options)
        limits = self._arguments
        characters = _check_kinds(loaded, texts, options, limits.max_whole_text_characters)
        sequences = loaded.head.count_sequences(options) * len(texts)
        limits.check("max_request_sequences", sequences, "pairs of a text and a label", "candidate_labels")
        loaded.head.check_options(options)
        own_prompt = options.answer.prompt_name in (None, self._answer.prompt_name)
        if not own_prompt and any(isinstance(given, TokenInput) for given in texts):
            raise InputError("a prompt goes before texts, and the request has tokens", "prompt_name")
        if TRUNCATED_TOKENS.name in options.tensors:
            options = replace(options, reading=options.reading.model_copy(update={"return_truncated_tokens": True}))
        elif options.reading.return_truncated_tokens:
            options = replace(options, tensors=options.tensors | {TRUNCATED_TOKENS.name})
        job = loaded.queue.admit(len(texts), characters)
        try:
            await Intake(loaded, job, options, limits, self._note_truncation).run(texts)
            return await job.result
        finally:
            loaded.queue.release(job)

    def _model(self) -> LoadedModel:
        if self._loaded is None:
            raise ModelNotReadyError(f"Model with name {self.name} is not ready.")
        return self._loaded

    def _note_truncation(self, readings: Sequence[Reading]) -> None:
        truncated = [reading for reading in readings if any(sequence.truncated for sequence in reading.sequences)]
        if not truncated:
            return
        TRUNCATED_TEXTS.labels(self.name).inc(len(truncated))
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            logger.warning(
                "a text was longer than %d tokens and was truncated; further ones are only counted, in "
                "runtime_truncated_texts_total", self._model().token_limits.max_length
            )  # fmt: skip

    def _work(self, loading: Future[LoadedModel]) -> None:
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

    def _run(self, loaded: LoadedModel) -> None:
        try:
            while batch := loaded.queue.take(loaded.forward.mode):
                start = time.perf_counter()
                try:
                    run_batch(loaded, batch)
                finally:
                    loaded.queue.finish(batch)
                loaded.queue.note_speed(sum(entry.tokens for entry in batch), time.perf_counter() - start)
        finally:
            # Whatever ends this thread, nobody is to wait for it.
            loaded.close()
            if self._loaded is loaded:
                self._loaded = None

    def _load(self) -> LoadedModel:
        limit_spinning()
        import torch
        from transformers.utils import logging as transformers_logging

        from runners.encoder.forward import ModelInputs
        from runners.encoder.queue import BatchQueue
        from runners.encoder.remote import RemoteForward
        from runners.encoder.tasks import HEADS
        from runners.encoder.token_limits import TokenLimits, find_padding_id
        from runners.encoder.tokenization import TextTokenizer
        from runners.encoder.transformer_settings import load_transformer_settings
        from runners.encoder.trial import Trial
        from runners.modeling.loading import (
            holds_embedder,
            limit_length,
            load_config,
            load_model,
            load_tokenizer,
            outline_model,
            resolve_batch_tokens,
        )
        from runners.modeling.weights import copy_mapped_weights

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
            most_characters=arguments.max_whole_text_characters,
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
            # The operator may have texts refused that are as long as the longest one here.
            options = replace(self.default_options, reading=ReadingOptions())
            trial = Trial(head, text_tokenizer, token_limits, options)
            forward = trial.choose_forward(model_inputs, max_batch_tokens)
            # What is packed now is in memory of our own already.
            copy_mapped_weights(model)
            trial.warm_up(model, forward)
        loaded = LoadedModel(
            task=task,
            model=model,
            head=head,
            tokenizer=text_tokenizer,
            token_limits=token_limits,
            lanes=TokenizerLanes(text_tokenizer),
            forward=forward,
            queue=BatchQueue(max_batch_tokens, arguments, Load(self.name)),
            predictor=predictor,
            watch=watch,
        )
        # What is loaded stays: the collector need not look at it again (its pauses were the tail of the latency).
        gc.collect()
        gc.freeze()
        return loaded


def _check_kinds(
    loaded: LoadedModel, texts: Sequence[TextInput | TokenInput], options: Options, most_characters: int
) -> int:
    """Refuse texts that the task does not take, in one pass: the event loop waits for it.

    Args:
        most_characters: of a text that is read to its end.

    Returns:
        How many characters the texts have, as `count_characters` counts them.

    Raises:
        InputError: a text is of another kind; the message names its position.
        LimitExceededError: one that is read to its end is too long.
    """
    head, task = loaded.head, loaded.task
    accepts_pairs, needs_pairs, accepts_words = head.accepts_pairs, head.needs_pairs, head.accepts_words
    most = most_characters if head.reads_to_end(options) else None
    total = 0
    for position, given in enumerate(texts):
        length = count_characters(given)
        total += length
        if not isinstance(given, TextInput):
            continue
        if given.pair is None:
            if needs_pairs:
                raise InputError(f"text {position} is a single one, and {task} takes a question and a context")
        elif not accepts_pairs:
            raise InputError(f"text {position} is a pair, and {task} takes single texts")
        if given.words is not None and not accepts_words:
            raise InputError(f"text {position} is split into words, and {task} takes whole texts")
        if most is not None and length > most:
            what = "characters of a text that is not simply truncated"
            raise name_text(LimitExceededError(length, what, "max_whole_text_characters", most), position)
    return total


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
