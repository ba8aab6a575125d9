"""Bodies of several protocols at one path, as clouds pass them on: the fields of a body tell its protocol.

Which they are is what vLLM, Text Embeddings Inference and Hugging Face's containers take at SageMaker's path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from protocol.context import ServerContext
from protocol.http.body import Body, decode_json, hand_on, make_fields_decoder
from protocol.http.routing import Endpoint, find_endpoint
from protocol.huggingface.pipelines import PIPELINE_FORMS
from protocol.huggingface.routes import create_endpoint
from protocol.huggingface.tasks import serves_task
from protocol.model_selection import ModelSelection, query_model
from protocol.openai import routes as openai
from protocol.openai.forwarded_limits import change_fields
from protocol.openai.model_list import find_base_model
from protocol.openai_paths import is_served
from protocol.tei import routes as tei
from runners.core.errors import InputError, list_names
from runners.core.probe_paths import ROOT_PATH
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner


@dataclass(frozen=True, slots=True)
class Target:
    """A call of another protocol.

    Attributes:
        protocol: its name, as records of requests have it.
        path: its path.
        serves: whether a model answers it.
    """

    protocol: str
    path: str
    serves: Callable[[Runner], bool]


def _of_openai(*paths: str) -> tuple[Target, ...]:
    return tuple(Target("openai", path, partial(is_served, path=path)) for path in paths)


def _of_tei(path: str) -> Target:
    return Target("tei", path, partial(tei.serves, call=tei.CALLS[path]))


# Whose answers have the forms of pipelines here.
PIPELINES = Target("huggingface", ROOT_PATH, partial(serves_task, task=None))
_POOLING = ("/v1/embeddings", "/v1/classify", "/v1/pooling")
# By the fields that a body of the form has: the calls that it may be of. The model answers the first that it serves.
FORMS: Mapping[tuple[str, ...], tuple[Target, ...]] = {
    ("inputs",): (PIPELINES, _of_tei("/embed_sparse")),
    ("messages",): _of_openai("/v1/chat/completions", *_POOLING),
    ("prompt",): _of_openai("/v1/completions"),
    ("input",): _of_openai(*_POOLING, "/v1/responses"),
    ("query", "documents"): _of_openai("/v1/rerank"),
    ("query", "texts"): (_of_tei("/rerank"),),
    **{(field,): _of_openai("/v1/score") for field in ("queries", "data_1", "text_1")},
}
_NAMES = dict.fromkeys(name for names in FORMS for name in names)
_PARAMETERS = "parameters"
_decoder = make_fields_decoder(("model", _PARAMETERS, *_NAMES))


@dataclass(frozen=True, slots=True)
class Invocation:
    """What the fields of a body tell.

    Attributes:
        fields: the fields that tell its protocol.
        model: the name of the model; None if the body has none.
        has_parameters: whether it has `parameters`, which are a pipeline's.
    """

    fields: tuple[str, ...]
    model: str | None
    has_parameters: bool


def read_invocation(body: bytes, limits: RequestLimits) -> Invocation:
    """
    Raises:
        LimitExceededError: the body exceeds a limit.
        InputError: it is no JSON object, or has the fields of no form or of several.
    """
    fields = decode_json(body, _decoder, limits)
    found = [names for names in FORMS if all(getattr(fields, name) is not None for name in names)]
    match found:
        case [names]:
            model = fields.model if isinstance(fields.model, str) else None
            return Invocation(names, model, bool(getattr(fields, _PARAMETERS)))
        case []:
            raise InputError(f"the body must have {' or '.join(' and '.join(names) for names in FORMS)}")
    named = list_names([" and ".join(names) for names in found])
    raise InputError(f"the body has the fields of several protocols: {named}")


class Invocations:
    """Answers a body by the endpoint of its protocol."""

    def __init__(self, context: ServerContext) -> None:
        self._models = context.models
        self._limits = context.arguments
        routes = {"openai": openai.routes(context), "tei": tei.routes(context)}
        self._endpoints: dict[Target, Endpoint] = {
            target: find_endpoint(routes[target.protocol], target.path)
            for target in (target for targets in FORMS.values() for target in targets)
            if target is not PIPELINES
        }
        self._endpoints[PIPELINES] = create_endpoint(context, PIPELINE_FORMS)

    async def answer(self, request: Request, body: Body, model: str | None = None) -> Response:
        """
        Args:
            body: its bytes are JSON.
            model: the name of the model; None if the query, or the body of one of OpenAI's calls, names it.

        Raises:
            LimitExceededError, InputError: as `read_invocation`, or parameters are for a call that has none; the
                errors of the body's protocol are its answers.
            ModelNotFoundError, ModelNotReadyError: several calls have such a body, and the model of that name, or the
                only one, is none or not ready.
        """
        invocation = await body.check(lambda data: read_invocation(data, self._limits))
        name = model or query_model(request)
        target = await self._choose(request, invocation, name or invocation.model)
        if target.protocol == "tei" and invocation.has_parameters:
            raise InputError(
                f"{_PARAMETERS} is for pipelines: give the fields of {target.path} beside inputs", _PARAMETERS
            )
        scope = {**request.scope, "path": target.path, "path_params": {}}
        # Each protocol reads the name of the model elsewhere.
        if name is not None:
            match target.protocol:
                case "openai":
                    body.data = change_fields(body.data, {"model": name})
                case "tei":
                    scope["query_string"] = urlencode({"model": name}).encode()
                case _:
                    scope["path_params"] = {"name": name}
        inner = Request(scope, request.receive)
        hand_on(inner, body)
        return await self._endpoints[target](inner)

    async def _choose(self, request: Request, invocation: Invocation, name: str | None) -> Target:
        targets = FORMS[invocation.fields]
        if len(targets) == 1:
            return targets[0]

        def serves(runner: Runner) -> bool:
            return any(target.serves(runner) for target in targets)

        parameter = "?model=" if targets[0] is PIPELINES else "model in the body"
        selection = ModelSelection(self._models, request.scope["path"], serves, parameter)
        runner = selection.select(await find_base_model(self._models, name))
        return next(target for target in targets if target.serves(runner))
