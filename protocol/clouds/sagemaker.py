"""The route of Amazon SageMaker's contract for containers; its `/ping` is a path of the server's health.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html. A stream of the body's own protocol
is the answer to InvokeEndpointWithResponseStream.
"""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.clouds.invocations import Invocations
from protocol.context import ServerContext
from protocol.http.body import read_body, read_media_type
from protocol.http.routing import post_route, with_errors
from protocol.huggingface.errors import render_hub_error
from runners.core.errors import InputError

INVOCATIONS = "/invocations"
TEXT = "text/plain"
# Names the adapter of an inference component, which vLLM has as a model.
_ADAPTER = "x-amzn-sagemaker-adapter-identifier"
# Names the archive of one of a multi-model endpoint's models. All other headers of SageMaker's are for its own use.
_TARGET_MODEL = "x-amzn-sagemaker-target-model"


def routes(context: ServerContext) -> list[Route]:
    """The route of all invocations."""
    invocations, limits = Invocations(context), context.arguments

    async def invoke(request: Request) -> Response:
        if _TARGET_MODEL in request.headers:
            raise InputError(f"{_TARGET_MODEL} is not supported: this server loads no models of multi-model endpoints")
        body = await read_body(request, limits, more_types=(TEXT,))
        if read_media_type(request) == TEXT:
            body.data = await body.check(_to_inputs)
        return await invocations.answer(request, body, request.headers.get(_ADAPTER) or None)

    return [post_route(INVOCATIONS, with_errors(invoke, render_hub_error), render_hub_error)]


def _to_inputs(text: bytes) -> bytes:
    """The body, in JSON, that asks the model's pipeline for a text.

    Raises:
        InputError: the text is not UTF-8.
    """
    try:
        return msgspec.json.encode({"inputs": text.decode()})
    except UnicodeDecodeError:
        raise InputError("the body is not UTF-8") from None
