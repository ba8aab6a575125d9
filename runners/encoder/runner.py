"""One encoder model, from a request's texts to its predictions.

A request passes these stages (docs/explanation/engine.md):

1. `EncoderRunner.infer` checks and admits the request on the event loop (`request_checks`, `queue`).
2. `RequestTokenizer` tokenizes its texts in slices, in the tokenizer threads, and queues them.
3. The device thread takes batches from the queue and runs them: forward pass, scores, predictions (`worker`).

`torch` and `transformers` are imported in the device thread only. BentoML imports service.py in its parent process and
when it builds a Bento, so importing this module must stay cheap.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from runners.core.allocator import prepare_allocator
from runners.core.arguments import Arguments
from runners.core.declarations import FIRST_VERSION
from runners.core.device_thread import DeviceThread
from runners.core.errors import EngineDeadError, InputError, ModelNotReadyError
from runners.core.garbage import importing
from runners.core.generation import Prompt
from runners.core.input_log import log_inputs
from runners.core.machine import count_cores
from runners.core.metrics import TRUNCATED_TEXTS
from runners.core.predictions import TRUNCATED_TOKENS, Options, OutputSpec, Prediction, TextInput, TokenInput
from runners.core.predictor import Predictor
from runners.core.request_options import (
    SupportedOptions,
    count_truncated_tokens,
    read_default_options,
    resolve_options,
)
from runners.core.runner import RunnerDetails
from runners.core.spinning import prepare_spin_control
from runners.core.task import Task
from runners.core.tokens import DEFAULT_TOKENIZE_OPTIONS, TokenizedPrompt, TokenizeOptions
from runners.encoder.loaded_model import LoadedModel
from runners.encoder.request_checks import check_request
from runners.encoder.request_tokenizer import RequestTokenizer
from runners.encoder.text_tokens import decode_tokens, list_tokens
from runners.encoder.tokenizer_threads import disable_library_threads
from runners.encoder.worker import ModelWorker
from runners.modeling.lean_imports import import_transformers, load_torch_libraries
from runners.modeling.load_errors import load_errors

if TYPE_CHECKING:
    from runners.encoder.batch_mode import BatchMode
    from runners.encoder.sequences import EncodedText

logger = logging.getLogger(__name__)

_TRUNCATED_TOKENS = OutputSpec(TRUNCATED_TOKENS, np.int64, (-1,))
# Arguments of vLLM that have an effect on encoders too.
_HONOURED = frozenset({"served_model_name", "enforce_eager"})
# A predictor computes one batch while the next is on its way.
_PREDICTOR_BATCHES = 2


class EncoderRunner:
    """One encoder model, loaded in the background and run in the device thread or by a predictor."""

    def __init__(
        self,
        arguments: Arguments,
        connect: Callable[[Arguments], Predictor] | None = None,
        device: DeviceThread | None = None,
        version: str = FIRST_VERSION,
    ) -> None:
        """
        Args:
            connect: opens the connection to the predictor, if the arguments name one.
            device: the thread that all models share; None for one of its own. A predictor's model always has its own.
        """
        arguments.warn_of_engine_arguments("this model does not run on vLLM", _HONOURED)
        self.version = version
        self._arguments = arguments
        self._connect = connect
        self._default_options = read_default_options(arguments)
        self._loaded: LoadedModel | None = None
        self._worker: ModelWorker | None = None
        self._warned_of_truncation = False
        self._is_remote = arguments.predictor_host is not None
        shared = None if self._is_remote else device
        self._device = shared or self._create_device()
        self._owns_device = shared is None
        if not self._is_remote:
            # libgomp and PyTorch read their environment when they are loaded.
            prepare_spin_control()
            prepare_allocator()
        disable_library_threads()
        load_torch_libraries()

    def _create_device(self) -> DeviceThread:
        return DeviceThread(_PREDICTOR_BATCHES if self._is_remote else 1)

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        """One prediction per text, in order; tokenizer and model run in their threads, never on the event loop.

        Args:
            texts: either all texts or all tokenized texts.

        Raises:
            InputError: a text cannot be served; the message names its position.
            LimitExceededError: there are too many texts, or too long ones.
            ModelNotReadyError: the model is not loaded.
            EngineDeadError: the device has failed.
            OverloadedError: too many requests are under way.
        """
        log_inputs(texts, self._arguments.log_inputs)
        loaded = self._model()
        characters = check_request(loaded, self._arguments, texts, options)
        options = count_truncated_tokens(options)
        request = loaded.queue.admit(len(texts), characters)
        try:
            await RequestTokenizer(loaded, request, options, self._arguments, self._count_truncated).run(texts)
            return await request.result
        except ModelNotReadyError:
            if self.failed:
                raise EngineDeadError.of_server() from None
            raise
        finally:
            loaded.queue.release(request)

    async def tokenize(
        self, prompts: Sequence[Prompt], options: TokenizeOptions = DEFAULT_TOKENIZE_OPTIONS
    ) -> list[TokenizedPrompt]:
        log_inputs(prompts, self._arguments.log_inputs)
        loaded = self._model()
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        if len(texts) < len(prompts):
            raise InputError(f"{loaded.task} takes texts, neither chats nor token ids")
        named = {} if options.prompt_name is None else {"prompt_name": options.prompt_name}
        resolved = resolve_options(self, named, self._arguments)
        loaded.encoder_task.check_options(resolved)
        before = loaded.encoder_task.prompt(resolved.answer)
        return await list_tokens(loaded, self._arguments, texts, options, before)

    async def detokenize(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = False) -> list[str]:
        return await decode_tokens(self._model(), self._arguments, ids, skip_special_tokens)

    def _count_truncated(self, encoded_texts: Sequence[EncodedText]) -> None:
        """Count the truncated texts; log the first one. Called from the tokenizer threads."""
        truncated = [encoded for encoded in encoded_texts if any(sequence.truncated for sequence in encoded.sequences)]
        if not truncated:
            return
        TRUNCATED_TEXTS.add((self.name,), len(truncated))
        if not self._warned_of_truncation:
            self._warned_of_truncation = True
            logger.warning(
                "a text was longer than %d tokens and was truncated; further ones are only counted, in "
                "runtime_truncated_texts_total", self._model().token_limits.max_length
            )  # fmt: skip

    def _model(self) -> LoadedModel:
        if self._loaded is not None:
            return self._loaded
        raise EngineDeadError.of_server() if self.failed else ModelNotReadyError.of_model(self.name)

    async def load(self) -> None:
        """Load and warm the model; it is ready when this returns, or once its predictor is ready.

        Raises:
            ModelLoadError: the model cannot be served; the message is one line.
        """
        with load_errors(self._arguments.model, self._arguments.model_revision):
            # The result of a job may outlive it, so it is not the model.
            await asyncio.wrap_future(self._device.run(self._load))

    def _load(self) -> None:
        """Called in the device thread."""
        with importing("runners.encoder.loader"):
            import_transformers()
            from runners.encoder.loader import load_encoder
            from runners.modeling.device_failures import device_failures
            from runners.modeling.devices import CPU, choose_device
        if not self._is_remote:
            self._device.control_spinning(count_cores(self._arguments.workers))
        device = CPU if self._is_remote else choose_device(self._arguments, self._device.position)
        with device_failures(device):
            loaded = load_encoder(self._arguments, self._connect, self._device.changed, device)
        self._default_options = loaded.default_options
        self._worker = ModelWorker(loaded, self._forget)
        self._loaded = loaded
        self._device.attach(self._worker)
        place = f" {loaded.details.describe_place()}"
        where = f", run by {self._arguments.predictor_host}" if self._is_remote else place
        logger.info("%s is ready: %s from %s%s", self.name, loaded.task, self._arguments.model, where)

    async def unload(self) -> None:
        """Refuse new requests, finish those under way, and free the memory; `load` loads the model again."""
        loaded, self._loaded = self._loaded, None
        if loaded is None:
            return
        await loaded.queue.admission.drain()
        await asyncio.to_thread(self._stop, loaded)
        model = weakref.ref(loaded.model)
        del loaded
        if self._owns_device:
            await asyncio.to_thread(self._device.close)
            self._device = self._create_device()
        from runners.modeling.devices import free_unloaded

        await asyncio.to_thread(free_unloaded, lambda: model() is None)

    def close(self) -> None:
        """Stop the model and fail all waiting requests. Returns when the running batch is done."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            self._stop(loaded)
        if self._owns_device:
            self._device.close()

    def _stop(self, loaded: LoadedModel) -> None:
        loaded.close()
        if self._worker is not None:
            self._device.detach(self._worker)
            self._worker = None
        if loaded.watch is not None:
            loaded.watch.stop()
        if loaded.predictor is not None:
            # A batch that the predictor is still computing fails.
            loaded.predictor.close()

    def _forget(self, loaded: LoadedModel) -> None:
        """Called when the model has ended."""
        if self._loaded is loaded:
            self._loaded = None

    @property
    def name(self) -> str:
        return self._arguments.model_name

    @property
    def names(self) -> Sequence[str]:
        return self._arguments.names

    @property
    def task(self) -> Task | None:
        return self._loaded.task if self._loaded is not None else None

    @property
    def generator(self) -> None:
        return None

    @property
    def watched(self) -> None:
        return None

    @property
    def loaded(self) -> bool:
        return self._loaded is not None

    @property
    def ready(self) -> bool:
        loaded = self._loaded
        is_answering = loaded is not None and (loaded.watch is None or loaded.watch.ready)
        return is_answering and not self._device.stuck and not self._device.failed

    @property
    def failed(self) -> bool:
        return self._device.failed

    @property
    def forward_mode(self) -> BatchMode | None:
        """How texts share batches; None before the model is loaded."""
        return self._loaded.forward.mode if self._loaded is not None else None

    @property
    def busy(self) -> bool:
        return self._loaded is not None and self._loaded.queue.admission.requests > 0

    @property
    def default_options(self) -> Options:
        return self._default_options

    @property
    def properties(self) -> Mapping[str, str]:
        loaded = self._model()
        return {
            "task": loaded.task,
            "max_length": str(self.max_length),
            **loaded.encoder_task.properties,
        }

    def class_name(self, index: int) -> str:
        return self._model().encoder_task.class_name(index)

    @property
    def details(self) -> RunnerDetails:
        return self._loaded.details if self._loaded is not None else RunnerDetails()

    @property
    def max_length(self) -> int:
        return self._model().token_limits.max_length

    @property
    def max_batch_tokens(self) -> int:
        return self._model().queue.max_batch_tokens

    @property
    def tokenizer_threads(self) -> int:
        return self._model().tokenizer_threads.count

    @property
    def supported_options(self) -> SupportedOptions:
        return self._loaded.supported_options if self._loaded is not None else SupportedOptions()

    def outputs(self, options: Options) -> Sequence[OutputSpec]:
        counted = [_TRUNCATED_TOKENS] if options.overflow.return_truncated_tokens else []
        return [*self._model().encoder_task.outputs(options), *counted]

    def named_outputs(self) -> Sequence[OutputSpec]:
        encoder_task = self._model().encoder_task
        counted = [_TRUNCATED_TOKENS] if "return_truncated_tokens" in encoder_task.overflow_options else []
        return [*encoder_task.named_outputs(), *counted]
