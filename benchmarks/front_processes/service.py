"""The real service with the null model; with `BENCHMARK_ENGINE`, a socket, the model process runs it instead."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.front_processes.frames import Connection, Message, make_request
from runners.core.predictions import MAIN, Numbers, Options, Prediction, TextInput, TokenInput
from runners.encoder import runner
from runners.encoder.request_checks import check_request
from runners.encoder.tokenizer_threads import SliceWork

if TYPE_CHECKING:
    from runners.encoder.sequences import EncodedText
    from runners.encoder.tokenization import TextTokenizer

SOCKET = os.environ.get("BENCHMARK_ENGINE")


class NullRunner(runner.EncoderRunner):
    """Runs the null model."""

    def _load(self) -> None:
        # It imports torch, which BentoML's parent process should not.
        from benchmarks.front_processes.null_model import replace_forward

        replace_forward()
        super()._load()


class FrontRunner(NullRunner):
    """Tokenizes texts and hands their token ids over to the model process."""

    async def load(self) -> None:
        await super().load()
        self._numbers = itertools.count()
        self._answers: dict[int, asyncio.Future[list[int]]] = {}
        self._connection = Connection(self._receive)
        await asyncio.get_running_loop().create_unix_connection(lambda: self._connection, SOCKET)

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        loaded = self._model()
        check_request(loaded, self._arguments, texts, options)
        found: dict[int, EncodedText] = {}

        def tokenize(tokenizer: TextTokenizer, texts: Sequence[TextInput], first: int) -> list[EncodedText]:
            return loaded.encoder_task.tokenize(tokenizer, texts, options, first)

        def finish(start: int, encoded: Sequence[EncodedText]) -> None:
            found.update(enumerate(encoded, start))

        items = [text for text in texts if isinstance(text, TextInput)]
        await loaded.tokenizer_threads.run(items, SliceWork(tokenize, finish, lambda: False, options))
        classes = await self._ask([found[position] for position in range(len(texts))])
        return [Prediction({MAIN: Numbers(np.asarray(each))}, 1) for each in classes]

    async def _ask(self, encoded: Sequence[EncodedText]) -> list[int]:
        number = next(self._numbers)
        answer: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._connection.send(make_request(number, [each.text.input_ids for each in encoded]))
        return await answer

    def _receive(self, _: Connection, message: Message) -> None:
        number, *classes = message.tolist()
        answer = self._answers.pop(number)
        if not answer.done():
            answer.set_result(classes)


# The service, imported after this, takes it for the real one.
runner.EncoderRunner = NullRunner if SOCKET is None else FrontRunner  # type: ignore[misc]

from service import Runtime, create_worker  # noqa: E402

__all__ = ["Runtime", "create_worker"]
