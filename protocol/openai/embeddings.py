"""OpenAI's embeddings, for models on this server's own engine; vLLM answers for a model on vLLM.

https://platform.openai.com/docs/api-reference/embeddings, with vLLM's additions.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from protocol.http.body import Body
from protocol.model_selection import SelectModel
from protocol.openai.array_answers import ArrayFields, answer_arrays
from protocol.openai.parameter_sets import ParameterSet
from protocol.openai.parameters import BodyDecoder
from protocol.openai.pooling_requests import count_input_usage, read_inputs
from protocol.prompt_names import find_input_prompt
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
    # NVIDIA's and Voyage's.
    input_type: str | None = None
    # Older versions' of vLLM, and Jina's.
    normalize: bool | None = None
    normalized: bool | None = None

    def options(self, runner: Runner) -> dict[str, Any]:
        """The options of the vectors, under the names of the other protocols' `parameters`.

        Raises:
            InputError: fields contradict each other, or the model cannot do what they ask for.
        """
        activation = self._choose("use_activation", "normalize", "normalized")
        check_activation(runner, activation)
        self._choose("prompt_name", "input_type")
        return {
            "dimensions": self._choose("dimensions", "output_dimension") or None,
            "prompt_name": self.prompt_name or find_input_prompt(runner, self.input_type),
            "normalize": activation,
        }

    def _choose(self, *names: str) -> Any:
        """The value of fields with one meaning; None if none of them has one."""
        values = {name: value for name in names if (value := getattr(self, name)) is not None}
        if len({*values.values()}) > 1:
            raise InputError(f"{' and '.join(values)} contradict each other; give one of them", [*values][1])
        return next(iter(values.values()), None)


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
    options = call.resolve(runner, limits, **call.options(runner))
    predictions = await runner.infer(call.truncate_inputs(inputs, runner), options)
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
