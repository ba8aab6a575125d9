"""The flow of an encoder: texts -> tokens -> forward pass -> head -> predictions.

torch and transformers are imported when the model is loaded, in the thread that runs it: importing this module stays
cheap, because BentoML imports service.py in its parent process and at build.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from runners.arguments import Arguments
from runners.errors import ArgumentsError, InputError, ModelLoadError, ModelNotReadyError, RunnerError
from runners.inference import Options, Output, Prediction, TensorSpec, TextInput
from runners.metrics import TRUNCATED_TEXTS
from runners.task import Task, infer_task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from runners.encoder.heads import Head
    from runners.encoder.tokenization import TextTokenizer, TokenizedText

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """Everything that exists once the model is loaded."""

    task: Task
    head: Head
    tokenizer: TextTokenizer
    inputs: frozenset[str]


class EncoderRunner:
    """One encoder model, loaded in the background and run in a thread of its own."""

    def __init__(self, arguments: Arguments) -> None:
        """
        Raises:
            ArgumentsError: the arguments ask for what an encoder cannot do.
        """
        if arguments.backend == "vllm":
            raise ArgumentsError("backend vllm does not run these tasks: leave it at auto, or set huggingface")
        self._arguments = arguments
        self._loaded: _Loaded | None = None
        self._warned_of_truncation = False
        # libgomp: the thread that loads and warms the model must be the one that runs it (8-26 % slower otherwise).
        self._model_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._tokenizer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    @property
    def name(self) -> str:
        return self._arguments.model_name

    @property
    def ready(self) -> bool:
        return self._loaded is not None

    @property
    def default_options(self) -> Options:
        output = Output.LABELS
        if self._arguments.return_probabilities:
            output = Output.PROBABILITIES
        elif self._arguments.return_raw_logits:
            output = Output.RAW_LOGITS
        return Options(output, self._arguments.return_offsets_mapping)

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._model().head.outputs(self.default_options)

    async def load(self) -> None:
        """Load and warm the model; it is ready when this returns.

        Raises:
            ModelLoadError: the model cannot be served; the message is one line.
        """
        try:
            self._loaded = await asyncio.get_running_loop().run_in_executor(self._model_thread, self._load)
        except RunnerError:
            raise
        except Exception as error:
            logger.debug("loading failed", exc_info=True)
            raise ModelLoadError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
        logger.info("%s is ready: %s from %s", self.name, self._loaded.task, self._arguments.model)

    def close(self) -> None:
        """Stop the threads; what waits in them is cancelled."""
        self._loaded = None
        self._tokenizer_thread.shutdown(wait=False, cancel_futures=True)
        self._model_thread.shutdown(wait=False, cancel_futures=True)

    async def infer(self, texts: Sequence[TextInput], options: Options) -> list[Prediction]:
        """One prediction a text, in order; tokenizer and model run in their threads, never on the event loop.

        Raises:
            InputError: a text cannot be served; the message names its position.
            ModelNotReadyError: the model is not loaded.
        """
        loaded = self._model()
        for position, given in enumerate(texts):
            if given.pair is not None and not loaded.head.accepts_pairs:
                raise InputError(f"text {position} is a pair, and {loaded.task} takes single texts")
        loop = asyncio.get_running_loop()
        tokenized = await loop.run_in_executor(
            self._tokenizer_thread, loaded.tokenizer.tokenize, texts, options.offsets
        )
        for position, text in enumerate(tokenized):
            try:
                loaded.head.check(text)
            except InputError as error:
                raise InputError(f"text {position} cannot be served: {error}") from error
        self._count_truncated(tokenized)
        forwards = [loop.run_in_executor(self._model_thread, _run, loaded, text, options) for text in tokenized]
        return await asyncio.gather(*forwards)

    def _model(self) -> _Loaded:
        if self._loaded is None:
            raise ModelNotReadyError(f"Model with name {self.name} is not ready.")
        return self._loaded

    def _count_truncated(self, tokenized: Sequence[TokenizedText]) -> None:
        truncated = sum(text.truncated for text in tokenized)
        if not truncated:
            return
        TRUNCATED_TEXTS.labels(self.name).inc(truncated)
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            logger.warning(
                "a text was longer than %d tokens and was truncated; further ones are only counted, in "
                "runtime_truncated_texts_total", max(len(text.input_ids) for text in tokenized if text.truncated)
            )  # fmt: skip

    def _load(self) -> _Loaded:
        import torch
        from transformers.utils import logging as transformers_logging

        from runners.encoder.heads import HEADS
        from runners.encoder.tokenization import TextTokenizer
        from runners.loading import limit_length, load_config, load_model, load_tokenizer

        # What is worth saying about a load is said in our own errors and log lines.
        transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        arguments = self._arguments
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = load_config(arguments)
        task = arguments.task or _infer_task(config)
        head_class = HEADS[task]
        tokenizer = load_tokenizer(arguments)
        model = load_model(arguments, head_class.auto_class, device, head_class.unused_weights)
        head = head_class(arguments, model, tokenizer)
        loaded = _Loaded(
            task=task,
            head=head,
            tokenizer=TextTokenizer(
                tokenizer,
                max_length=limit_length(model, tokenizer, arguments.max_length, head.recommended_length),
                add_special_tokens=not arguments.disable_special_tokens,
                prompt=head.prompt,
            ),
            inputs=_input_names(arguments, model, tokenizer),
        )
        if arguments.return_offsets_mapping and task is not Task.TOKEN_CLASSIFICATION:
            logger.warning("return_offsets_mapping has no effect on %s", task)
        self._warm_up(loaded)
        return loaded

    def _warm_up(self, loaded: _Loaded) -> None:
        mask = loaded.head.tokenizer.mask_token or ""
        texts = [TextInput(f"{mask} warm-up"), TextInput(f"{mask} {'a longer warm-up ' * 20}")]
        for text in loaded.tokenizer.tokenize(texts, offsets=False):
            _run(loaded, text, self.default_options)


def _infer_task(config: PretrainedConfig) -> Task:
    task = infer_task(config.architectures)
    if task is Task.TEXT_EMBEDDING and config.is_encoder_decoder:
        raise ModelLoadError(f"{config.architectures} is an encoder-decoder, which this server does not run")
    return task


def _input_names(arguments: Arguments, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[str]:
    """Which of the tokenizer's outputs the model is given: by default those that `tokenizer(text)` returns.

    Raises:
        ArgumentsError: the arguments name what this model does not take.
    """
    import inspect

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


def _run(loaded: _Loaded, text: TokenizedText, options: Options) -> Prediction:
    import torch

    device = loaded.head.model.device
    ids = torch.from_numpy(text.input_ids)[None].to(device)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.from_numpy(text.token_type_ids)[None].to(device),
    }
    with torch.inference_mode():
        scores = loaded.head.forward({name: inputs[name] for name in loaded.inputs}, text)
    return loaded.head.predict(scores, text, options)
