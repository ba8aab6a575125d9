"""The model process: token ids from front processes through the server's own queue and device thread.

python -m benchmarks.front_processes.engine SOCKET MODEL
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial

import numpy as np
import uvloop

from benchmarks.front_processes.frames import Connection, Message, read_request
from benchmarks.front_processes.null_model import replace_forward
from runners.core.arguments import Arguments
from runners.core.predictions import MAIN, Numbers
from runners.encoder.loaded_model import LoadedModel
from runners.encoder.queue_entries import PendingRequest
from runners.encoder.runner import EncoderRunner
from runners.encoder.sequences import EncodedText, TokenizedText


async def main(socket: str, model: str) -> None:
    replace_forward()
    runner = EncoderRunner(Arguments(model_dir=model, max_concurrent_requests=100_000))
    await runner.load()
    receive = partial(_receive, runner._model())
    server = await asyncio.get_running_loop().create_unix_server(lambda: Connection(receive), socket)
    await server.serve_forever()


def _receive(loaded: LoadedModel, connection: Connection, message: Message) -> None:
    number, texts = read_request(message)
    request = loaded.queue.admit(len(texts), 0)
    tokenized = (TokenizedText(ids, np.zeros_like(ids), None, truncated=False) for ids in texts)
    encoded = [EncodedText(text, [text]) for text in tokenized]
    request.result.add_done_callback(partial(_answer, loaded, connection, number, request))
    loaded.queue.put(request, 0, encoded, loaded.default_options)


def _answer(
    loaded: LoadedModel, connection: Connection, number: int, request: PendingRequest, _: asyncio.Future[object]
) -> None:
    classes = [number]
    for prediction in request.result.result():
        output = prediction.outputs[MAIN]
        assert isinstance(output, Numbers)
        classes.append(int(output.values))
    loaded.queue.release(request)
    connection.send(np.array(classes, np.int32))


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
