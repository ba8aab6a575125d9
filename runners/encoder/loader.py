"""Loading an encoder: from the operator's arguments to a `LoadedModel`, in the device thread."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from runners.core.answer_options import OverflowOptions
from runners.core.arguments import Arguments
from runners.core.device_thread import give_way
from runners.core.errors import ArgumentsError, InputError, ModelLoadError
from runners.core.garbage import freeze_objects
from runners.core.machine import count_cores
from runners.core.metrics import BatchMetrics, QueueMetrics
from runners.core.predictions import Options
from runners.core.predictor import Predictor, PredictorWatch
from runners.core.request_options import SupportedOptions, check_options, read_default_options, warn_of_unsupported
from runners.core.runner import RunnerDetails
from runners.core.task import ENTAILMENT, GENERATION, Task, infer_task
from runners.encoder.compiled_layers import compiled_layers
from runners.encoder.forward import Forward, ModelInputs
from runners.encoder.graphs import GraphCapturer, capture_graphs
from runners.encoder.loaded_model import LoadedModel
from runners.encoder.queue import MAX_BATCH_TEXTS, BatchQueue
from runners.encoder.remote import RemoteForward
from runners.encoder.sample_texts import SampleTexts
from runners.encoder.tasks import ENCODER_TASKS, EncoderTask
from runners.encoder.token_limits import TokenLimits, find_padding_id
from runners.encoder.tokenization import TextTokenizer
from runners.encoder.tokenizer_threads import TokenizerThreads
from runners.encoder.transformer_settings import load_transformer_settings
from runners.modeling.dtype_trial import check_dtype
from runners.modeling.dtypes import name_dtype
from runners.modeling.loading import (
    build_meta_model,
    find_task_of_files,
    load_config,
    load_in_fitting_dtype,
    load_model,
    load_tokenizer,
    resolve_batch_tokens,
    silence_transformers,
)
from runners.modeling.max_length import limit_length
from runners.modeling.memory import check_memory
from runners.modeling.packed_linear import name_linear_kernels
from runners.modeling.weights import copy_mapped_weights

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A model as its files describe it; if a predictor runs the model, it has no weights here."""

    task: Task
    encoder_task: EncoderTask
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    device: torch.device


def load_encoder(
    arguments: Arguments,
    connect: Callable[[Arguments], Predictor] | None,
    changed: threading.Condition,
    device: torch.device,
) -> LoadedModel:
    """Load and warm the model that the arguments name.

    Args:
        connect: opens the connection to the predictor, if the arguments name one.
        changed: of the device thread that will run the model.
        device: where the model runs; the CPU if a predictor runs it.

    Raises:
        ArgumentsError: an argument does not fit the model.
        ModelLoadError: the model cannot be served.
    """
    silence_transformers()
    torch.set_num_threads(count_cores(arguments.workers))
    return load_in_fitting_dtype(arguments, device, partial(_load_in_dtype, arguments, connect, changed, device))


def _load_in_dtype(
    arguments: Arguments,
    connect: Callable[[Arguments], Predictor] | None,
    changed: threading.Condition,
    device: torch.device,
    dtype: torch.dtype,
) -> LoadedModel:
    """As `load_encoder`, in one dtype.

    Raises:
        NonFiniteModelError: the model's weights or scores are not finite in it.
    """
    checkpoint = _load_checkpoint(arguments, device, dtype)
    encoder_task, model = checkpoint.encoder_task, checkpoint.model
    supported, default_options = _resolve_options(arguments, checkpoint)
    input_names = _input_names(arguments, model, checkpoint.tokenizer)
    max_length = limit_length(model, checkpoint.tokenizer, arguments.max_length, encoder_task.recommended_length)
    tokenizer = _make_tokenizer(arguments, checkpoint, max_length)
    token_limits = _find_token_limits(arguments, checkpoint, max_length, input_names)
    give_way()
    max_batch_tokens = resolve_batch_tokens(arguments, checkpoint.device)
    predictor = watch = None
    forward: Forward
    if arguments.predictor_host is not None:
        assert connect is not None
        predictor = connect(arguments)
        forward = RemoteForward(predictor, encoder_task, input_names, find_padding_id(model))
        watch = PredictorWatch(predictor) if arguments.enable_predictor_health_check else None
    else:
        # Probe texts may be longer than the model takes: the operator's `truncation=false` does not hold for them.
        options = replace(default_options, overflow=OverflowOptions())
        samples = SampleTexts(encoder_task, tokenizer, token_limits, options)
        forward, max_batch_tokens = _prepare_forward(checkpoint, samples, input_names, max_batch_tokens, max_length)
    loaded = LoadedModel(
        task=checkpoint.task,
        model=model,
        encoder_task=encoder_task,
        default_options=default_options,
        supported_options=supported,
        tokenizer=tokenizer,
        token_limits=token_limits,
        tokenizer_threads=TokenizerThreads(tokenizer, count_cores(arguments.workers)),
        forward=forward,
        queue=BatchQueue(max_batch_tokens, arguments, QueueMetrics(arguments.model_name), changed),
        metrics=BatchMetrics(arguments.model_name),
        details=_describe(checkpoint, forward, predictor is not None),
        predictor=predictor,
        watch=watch,
    )
    give_way()
    freeze_objects()
    return loaded


def choose_task(config: PretrainedConfig, task_of_files: Task | None) -> Task:
    """The task of a model whose operator names none.

    Args:
        task_of_files: the task of its sentence-transformers files, which win over its architecture.

    Raises:
        ModelLoadError: the architecture names no task, or one of generation.
    """
    if task_of_files is not None:
        return task_of_files
    task = infer_task(config.architectures)
    if task in GENERATION:
        raise ModelLoadError(f"its config.json could not be read when the server started: set --task={task}")
    if task is not Task.SEQUENCE_CLASSIFICATION:
        return task
    names = [str(name).lower() for name in (config.id2label or {}).values()]
    if any(name.startswith(ENTAILMENT) for name in names):
        # The answers are those of sequence classification, unless a request has candidate labels.
        return Task.ZERO_SHOT_CLASSIFICATION
    # With one class there is nothing to choose from: it is a cross-encoder, or answers as one.
    if config.num_labels == 1 and getattr(config, "problem_type", None) != "multi_label_classification":
        return Task.TEXT_RANKING
    return task


def _load_checkpoint(arguments: Arguments, device: torch.device, dtype: torch.dtype) -> _Checkpoint:
    is_remote = arguments.predictor_host is not None
    config = load_config(arguments)
    task = arguments.task or choose_task(config, find_task_of_files(arguments))
    task_class = ENCODER_TASKS[task]
    if arguments.compile_layers and device.type != "cuda":
        raise ArgumentsError("compile_layers: only layers on a GPU are compiled")
    if is_remote and not task_class.runs_on_predictor:
        raise ArgumentsError(f"predictor_host: {task} needs the model here, since its scores are too large to send")
    if is_remote and task_class.model_outputs > 1:
        raise ArgumentsError(f"predictor_host: a predictor gives one tensor, and {task} needs several")
    give_way()
    settings = load_transformer_settings(arguments, task_class.sentence_transformer)
    if settings.config:
        config = load_config(arguments, settings.config)
    tokenizer = load_tokenizer(arguments, settings.tokenizer, settings.max_length)
    give_way()
    if is_remote:
        model = build_meta_model(arguments, task_class.auto_class, config)
    else:
        check_memory(arguments, config, device, dtype)
        model = load_model(arguments, task_class.auto_class, device, dtype, task_class.unused_weights, config)
        give_way()
        check_dtype(model)
        give_way()
    encoder_task = task_class(arguments, settings, model, tokenizer, device)
    return _Checkpoint(task, encoder_task, model, tokenizer, device)


def _resolve_options(arguments: Arguments, checkpoint: _Checkpoint) -> tuple[SupportedOptions, Options]:
    """The options that the task has, and the operator's values of them.

    Raises:
        ArgumentsError: an option does not fit the model.
    """
    encoder_task = checkpoint.encoder_task
    supported = encoder_task.supported_options(checkpoint.task)
    warn_of_unsupported(arguments, checkpoint.task, supported.names, encoder_task.returns_offsets)
    options = read_default_options(arguments, supported.names)
    try:
        check_options(options, supported, arguments)
    except InputError as error:
        raise ArgumentsError(str(error)) from error
    return supported, options


def _input_names(arguments: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Names of the tensors that the model gets; by default those that `tokenizer(text)` returns.

    Raises:
        ArgumentsError: the arguments name a tensor that this model does not take.
    """
    tensor_names = {"input_ids", "attention_mask", "token_type_ids"}
    parameter_names = tensor_names & {*inspect.signature(model.forward).parameters}
    if arguments.return_token_type_ids and "token_type_ids" not in parameter_names:
        raise ArgumentsError(f"return_token_type_ids: {type(model).__name__} takes no token_type_ids")
    if arguments.tensor_input_names is None:
        requested = ["token_type_ids"] if arguments.return_token_type_ids else []
        return frozenset(parameter_names & {*tokenizer.model_input_names, *requested})
    names = frozenset(arguments.tensor_input_names)
    if not names <= parameter_names or "input_ids" not in names:
        raise ArgumentsError(
            f"tensor_input_names is {','.join(arguments.tensor_input_names)}; {type(model).__name__} needs input_ids "
            f"and takes {', '.join(sorted(parameter_names))}"
        )
    return names


def _describe(checkpoint: _Checkpoint, forward: Forward, is_remote: bool) -> RunnerDetails:
    if is_remote:
        return RunnerDetails("predictor", batching=forward.mode)
    model = checkpoint.model
    dtype = name_dtype(model.dtype)
    return RunnerDetails("encoder", dtype, str(checkpoint.device), forward.mode, name_linear_kernels(model))


def _make_tokenizer(arguments: Arguments, checkpoint: _Checkpoint, max_length: int) -> TextTokenizer:
    return TextTokenizer(
        checkpoint.tokenizer,
        max_length=max_length,
        add_special_tokens=not arguments.disable_special_tokens,
        lower_case=checkpoint.encoder_task.lower_case,
        max_characters=arguments.max_whole_text_characters,
    )


def _find_token_limits(
    arguments: Arguments, checkpoint: _Checkpoint, max_length: int, input_names: frozenset[str]
) -> TokenLimits:
    encoder_task = checkpoint.encoder_task
    return TokenLimits.of(checkpoint.model, max_length, "token_type_ids" in input_names).compare(
        checkpoint.tokenizer,
        add_special_tokens=not arguments.disable_special_tokens,
        accepts_pairs=encoder_task.accepts_pairs,
        needs_pairs=encoder_task.needs_pairs,
        needed_tokens=encoder_task.needed_tokens,
    )


def _forbids_graphs(arguments: Arguments) -> bool:
    """Whether vLLM's argument `enforce_eager` is set."""
    argument = arguments.engine.get("enforce_eager")
    return argument is not None and argument.value == "true"


def _prepare_forward(
    checkpoint: _Checkpoint,
    samples: SampleTexts,
    input_names: frozenset[str],
    max_batch_tokens: int,
    max_length: int,
) -> tuple[Forward, int]:
    """Choose the forward pass by trying, and warm it.

    Args:
        max_batch_tokens: the most tokens of a batch, if there is memory for it.
        max_length: the most tokens of a text.

    Returns:
        The forward pass, and the most tokens of a batch that there is memory for.

    Raises:
        ModelLoadError: the model does not run, its scores are not finite, or there is no memory for a small batch.
    """
    model, task = checkpoint.model, checkpoint.encoder_task
    inputs = ModelInputs(
        model, input_names, task.selection, checkpoint.tokenizer.mask_token_id, find_padding_id(model), task.pooling
    )
    probe = samples.make_probe(inputs, max_batch_tokens)
    forward = samples.select_forward(probe)
    give_way()
    # Packed layers hold copies of their weights already.
    copy_mapped_weights(model)
    give_way()
    with compiled_layers(probe, forward) if task.arguments.compile_layers else nullcontext():
        if checkpoint.device.type == "cuda":
            max_batch_tokens = samples.find_batch_tokens(forward, max_batch_tokens, checkpoint.device)
        if checkpoint.device.type == "cuda" and not _forbids_graphs(task.arguments):
            capturer = GraphCapturer(checkpoint.device)
            forward, reason = capture_graphs(forward, probe, capturer, max_batch_tokens, MAX_BATCH_TEXTS, max_length)
            logger.info("%s", reason)
        samples.warm_up(model, forward)
    return forward, max_batch_tokens
