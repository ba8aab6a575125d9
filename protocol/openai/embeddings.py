"""OpenAI's embeddings, for models on this server's own engine; vLLM answers for a model on vLLM.

https://platform.openai.com/docs/api-reference/embeddings, with vLLM's additions.
"""

from __future__ import annotations

from starlette.responses import Response

from protocol.http.body import Body
from protocol.model_selection import SelectModel
from protocol.openai.array_answers import ArrayFields, answer_arrays
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.pooling_requests import count_input_usage, read_inputs
from protocol.vectors import list_vectors
from runners.core.errors import InputError
from runners.core.number_types import NonNegativeInt, PositiveInt
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner


class EmbeddingRequest(ArrayFields, kw_only=True):
    """The body of `embeddings`. `prompt_name` selects a prompt of the model, as in sentence-transformers."""

    # Infinity's client sends 0 for all of them.
    dimensions: NonNegativeInt | None = None
    # As LiteLLM calls it for Infinity.
    output_dimension: PositiveInt | None = None
    prompt_name: str | None = None


_decoder = BodyDecoder(EmbeddingRequest, ParameterSet.EMBEDDINGS)


async def answer_embeddings(select: SelectModel, body: Body, limits: RequestLimits) -> Response:
    """Answer `embeddings` with a vector for every text.

    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: the body is malformed, or asks for something that this engine does not do.
        ModelNotFoundError, ModelNotReadyError: there is no model of that name, or it is not loaded.
        RunnerError: the model cannot embed a text.
    """
    call, inputs = await read_inputs(_decoder, body, limits)
    runner = select(call.model)
    check_activation(runner, call.use_activation)
    dimensions = call.dimensions or call.output_dimension
    further = {"dimensions": dimensions, "prompt_name": call.prompt_name, "normalize": call.use_activation}
    options = call.resolve(runner, limits, **further)
    predictions = await runner.infer(call.truncate(inputs, runner), options)
    head = call.describe_answer("embd", runner)
    usage = count_input_usage(predictions)
    return await answer_arrays(call, head, list_vectors(predictions), usage, ("embedding", "embedding"))


def check_activation(runner: Runner, use_activation: bool | None) -> None:
    """
    Raises:
        InputError: the model's modules scale its vectors to length 1, and the request asks for other ones.
    """
    if use_activation is False and runner.supported_options.normalizes:
        raise InputError("use_activation can only be true: the model's vectors have length 1", "use_activation")
