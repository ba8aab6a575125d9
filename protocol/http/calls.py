"""What every protocol does with a model: find it, check that it is ready, read the options, render off the loop."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.body import json_response
from protocol.http.errors import InvalidRequestError, MethodNotAllowedError, ModelNotFoundError, NotFoundError
from protocol.http.offload import offload
from protocol.openai.sampling_parameters import read_sampling
from protocol.versions import MODEL_VERSION
from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.errors import ModelNotReadyError
from runners.core.models import Models
from runners.core.predictions import Options, Output, Prediction, Records, Text, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner, TextGenerator
from runners.core.task import Task

T = TypeVar("T")
TextOptions = TypeVar("TextOptions", AnswerOptions, OverflowOptions)

# What clients of OpenAI's API ask for below /v1; which of them a model answers depends on its engine.
OPENAI_PATHS = (
    "completions", "chat/completions", "responses", "messages", "embeddings", "rerank", "score", "classify", "pooling",
)  # fmt: skip

# vLLM's calls of its tokenizer, which have no version.
TOKENIZER_PATHS = ("/tokenize", "/detokenize")
# The same calls without a version, and Cohere's version 2: vLLM has them beside /v1.
RANKING_PATHS = ("/rerank", "/v2/rerank", "/score")
_RANKING = frozenset({"/v1/rerank", "/v1/score", *RANKING_PATHS})
# What this server's own engine answers.
_OPENAI_PATHS_BY_TASK = {Task.TEXT_EMBEDDING: _RANKING | {"/v1/embeddings"}, Task.TEXT_RANKING: _RANKING}
# vLLM's way to say that texts are truncated to what the model takes.
_MODEL_LENGTH = -1

# Rendering takes 0.1 to 0.5 us a number; what takes longer than a few ms must not hold up the event loop.
_RENDER_INLINE = 10_000
# A record's values take as long as so many numbers.
_NUMBERS_A_NAME = 4
CHARACTERS_A_NUMBER = 64


def post_route(
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    render_error: Callable[[Exception], Response] | None = None,
) -> Route:
    """A route for POST that answers other methods with 405 even where a later route has a path like its own.

    Args:
        render_error: the form of that answer; the application's own if None.
    """
    return _guarded_route(path, endpoint, ("POST",), render_error)


def get_route(
    path: str, endpoint: Callable[[Request], Awaitable[Response]], render_error: Callable[[Exception], Response]
) -> Route:
    """The same for GET."""
    return _guarded_route(path, endpoint, ("GET", "HEAD"), render_error)


def _guarded_route(
    path: str,
    endpoint: Callable[[Request], Awaitable[Response]],
    methods: Sequence[str],
    render_error: Callable[[Exception], Response] | None,
) -> Route:
    async def guarded(request: Request) -> Response:
        if request.method in methods:
            return await endpoint(request)
        allowed = ", ".join(methods)
        error = MethodNotAllowedError(
            f"{request.method} is not allowed on {request.url.path}; allowed: {allowed}", allowed=allowed
        )
        if render_error is None:
            raise error
        return render_error(error)

    return any_route(path, guarded)


def any_route(path: str, endpoint: Callable[[Request], Awaitable[Response]]) -> Route:
    """A route for all methods, so that the router does not answer for some of them itself."""
    route = Route(path, endpoint)
    route.methods = None
    # What is no name of a model is to be answered as one that is unknown, also where it has line breaks.
    route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)
    return route


def served_name(request: Request) -> str:
    """The model's name in the path, once the version in it, if any, is the one that is served."""
    name: str = request.path_params["name"]
    check_version(name, request.path_params.get("version", ""))
    return name


def check_version(name: str, version: str) -> None:
    """
    Raises:
        NotFoundError: a version is asked for that is not served.
    """
    if version not in ("", MODEL_VERSION):
        raise NotFoundError(f"Model {name} has no version {version}; it has version {MODEL_VERSION}.")


def find_model(models: Models, name: str) -> Runner:
    """The model of that name.

    Raises:
        ModelNotFoundError: there is none.
    """
    runner = models.find(name)
    if runner is None:
        raise ModelNotFoundError(name)
    return runner


def find_ready_model(models: Models, name: str) -> Runner:
    """The model of that name, once it is loaded: called before a request's body is read.

    Raises:
        ModelNotFoundError: there is none.
        ModelNotReadyError: it is still loading; with KServe's text.
    """
    runner = find_model(models, name)
    check_ready(runner)
    return runner


def check_ready(runner: Runner) -> None:
    """
    Raises:
        ModelNotReadyError: it is still loading; with KServe's text.
    """
    if not runner.ready:
        raise ModelNotReadyError(f"Model with name {runner.name} is not ready.")


def find_generator(models: Models, name: str, what: str) -> TextGenerator:
    """The model of that name, once it is loaded, if it generates text.

    Args:
        what: what the request asks for.

    Raises:
        InvalidRequestError: it does something else; the message says what.
    """
    runner = find_ready_model(models, name)
    if (generator := runner.generator) is None or not generator.generates:
        raise InvalidRequestError(f"{runner.name} does not serve {what}: {describe_service(runner)}")
    return generator


def describe_service(runner: Runner) -> str:
    """What a model does, and where, for whoever asked it for something else."""
    name = runner.name
    routes = [f"/v1/models/{name}:predict", f"/v2/models/{name}/infer"]
    if runner.generator is not None:
        routes = [*routes, f"/v2/models/{name}/generate"] if runner.generator.generates else []
    routes += [path for path in map("/v1/{}".format, OPENAI_PATHS) if serves_openai(runner, path)]
    return f"it serves {runner.task} at {', '.join(routes) or 'the paths that /openapi.json lists'}"


def serves_openai(runner: Runner, path: str) -> bool:
    """Whether a model answers at a path of OpenAI's API, such as `/v1/completions`."""
    if runner.generator is not None:
        return runner.generator.serves_openai(path)
    return runner.task is not None and path in _OPENAI_PATHS_BY_TASK.get(runner.task, ())


def refuse_truncation(tokens: int | None) -> None:
    """
    Raises:
        InvalidRequestError: vLLM's `truncate_prompt_tokens` asks for another length than the model's.
    """
    if tokens not in (None, _MODEL_LENGTH):
        raise InvalidRequestError(
            "truncate_prompt_tokens can only be -1: texts are truncated to the model's length", "truncate_prompt_tokens"
        )


def resolve_options(runner: Runner, parameters: Mapping[str, Any] | None, limits: RequestLimits) -> Options:
    """The operator's options, changed by what the request's parameters say.

    An encoder's may be accompanied by any others; a generator's may not, since a misspelt one would change the text.

    Raises:
        LimitExceededError: a parameter asks for more than the operator allows.
        InvalidRequestError: a parameter is no boolean, or they exclude each other.
    """
    options = runner.default_options
    if (generator := runner.generator) is not None:
        if not generator.generates:
            raise InvalidRequestError(f"{runner.name} does not generate text: {describe_service(runner)}")
        sampling, prompt = read_sampling(parameters, generator.limits)
        return replace(options, sampling=sampling, prompt=prompt)
    if not parameters:
        return options
    options = replace(
        options,
        answer=_change_options(runner, options.answer, _StrictAnswerOptions, parameters, limits),
        overflow=_change_options(runner, options.overflow, _StrictOverflowOptions, parameters, limits),
    )
    for one, other in _EXCLUDE_EACH_OTHER:
        if parameters.get(one) and other in parameters:
            raise InvalidRequestError(f"the parameters {one} and {other} exclude each other", other)
    flags = {name: read_boolean(parameters, name, False) for name in OPTION_PARAMETERS if name in parameters}
    asked = [output for name, output in _OUTPUT_BY_PARAMETER.items() if flags.get(name)]
    if len(asked) > 1:
        raise InvalidRequestError(f"the parameters {' and '.join(_OUTPUT_BY_PARAMETER)} exclude each other")
    # A vector and a span are no classes: they are the same whatever is asked for of those.
    if asked and runner.task not in (Task.TEXT_EMBEDDING, Task.QUESTION_ANSWERING):
        if named := [name for name in AnswerOptions.model_fields if name in parameters]:
            raise InvalidRequestError(f"the parameters {named[0]} and return_{asked[0]} exclude each other")
        options = replace(options, output=asked[0], answer=AnswerOptions())
    elif any(flags.get(name) is False and options.output is output for name, output in _OUTPUT_BY_PARAMETER.items()):
        options = replace(options, output=Output.LABELS)
    return replace(options, offsets=flags.get("return_offsets_mapping", options.offsets))


class _StrictAnswerOptions(AnswerOptions):
    """As a request has them: "true" is no boolean, though it is one on a command line."""

    model_config = ConfigDict(strict=True)


class _StrictOverflowOptions(OverflowOptions):
    """The same."""

    model_config = ConfigDict(strict=True)


def _change_options(
    runner: Runner,
    usual: TextOptions,
    strict: type[TextOptions],
    parameters: Mapping[str, Any],
    limits: RequestLimits,
) -> TextOptions:
    """The operator's, changed by what the request's parameters say.

    Args:
        strict: what checks the parameters.

    Raises:
        LimitExceededError: an option asks for more than the operator allows.
        InvalidRequestError: an option is not of this task, or is not what it must be.
    """
    given = {name: parameters[name] for name in strict.model_fields if name in parameters}
    if not given:
        return usual
    if others := [name for name in given if name not in runner.answer_options]:
        own = ", ".join(sorted(runner.answer_options)) or "none"
        raise InvalidRequestError(
            f"the parameter {others[0]} is not of {runner.task}, whose options are: {own}", others[0]
        )
    _check_amounts(given, limits)
    try:
        checked = strict.model_validate(given)
    except ValidationError as error:
        problem = error.errors()[0]
        name, message = problem["loc"][0], problem["msg"].removeprefix("Value error, ")
        if problem["type"] in _MESSAGES:
            message = _MESSAGES[problem["type"]].format(**problem.get("ctx", {}))
        raise InvalidRequestError(f"the parameter {name} is wrong: {message}", str(name)) from error
    return usual.model_copy(update={name: getattr(checked, name) for name in given})


def _check_amounts(given: Mapping[str, Any], limits: RequestLimits) -> None:
    """Check how much options ask for, before anything is made of them.

    Raises:
        LimitExceededError: it is more than the operator allows.
    """
    for name, argument, what in _NUMBERS:
        if isinstance(value := given.get(name), int):
            limits.check(argument, value, what, name)
    for name in _NAMES:
        names = given.get(name)
        if isinstance(names, str):
            limits.check("max_labels", names.count(",") + 1, f"names in {name}", name)
            names = names.split(",")
        if isinstance(names, list):
            limits.check("max_labels", len(names), f"names in {name}", name)
            longest = max((len(each) for each in names if isinstance(each, str)), default=0)
            limits.check("max_label_characters", longest, f"characters of a name in {name}", name)


_NUMBERS = (
    ("top_k", "max_top_k", "answers (top_k)"),
    ("max_answer_len", "max_answer_tokens", "tokens (max_answer_len)"),
)
_NAMES = ("candidate_labels", "targets", "ignore_labels")

# Where pydantic speaks of Python's types.
_MESSAGES = {
    "tuple_type": "Input should be a list, or a string with commas",
    "string_too_short": "a name must not be empty",
}


def read_boolean(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    """
    Raises:
        InvalidRequestError: the parameter is no boolean.
    """
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise InvalidRequestError(f"the parameter {name} must be true or false")
    return value


# The labels of a request are no classes of the model; what the operator says of those does not count then.
_EXCLUDE_EACH_OTHER = (("candidate_labels", "function_to_apply"), ("candidate_labels", "stride"))
_OUTPUT_BY_PARAMETER = {"return_probabilities": Output.PROBABILITIES, "return_raw_logits": Output.RAW_LOGITS}
OPTION_PARAMETERS = (*_OUTPUT_BY_PARAMETER, "return_offsets_mapping")


async def infer(
    request: Request, runner: Runner, texts: Sequence[TextInput | TokenInput], options: Options
) -> Sequence[Prediction]:
    """Ask the model, and stop if the client goes away meanwhile.

    Raises:
        ClientDisconnect: the client has gone; its texts will not run.
    """
    return await until_disconnect(request, runner.infer(texts, options))


async def until_disconnect(request: Request, coroutine: Coroutine[Any, Any, T]) -> T:
    """Await the coroutine, or cancel it when the client goes away.

    Raises:
        ClientDisconnect: the client has gone.
    """
    work = asyncio.ensure_future(coroutine)
    watch = asyncio.ensure_future(_wait_for_disconnect(request))
    watch.add_done_callback(lambda _: work.cancel())
    try:
        return await work
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled():
            raise ClientDisconnect from None
        raise
    finally:
        watch.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def render(
    renderer: Callable[[Sequence[Prediction]], Any], predictions: Sequence[Prediction], more: int = 0
) -> Response:
    """Answer with the JSON of what a renderer makes of predictions, in a thread where there is much of it.

    Args:
        more: how much there is beside the numbers and names of the predictions, in as many numbers.
    """
    values = more + sum(map(count_numbers, predictions))
    return await render_off_loop(lambda: json_response(renderer(predictions), values), values)


def count_numbers(prediction: Prediction) -> int:
    """How much there is to print of a prediction."""
    match prediction.output:
        case Text(value):
            beside = 1 + len(value) // CHARACTERS_A_NUMBER
        case Records():
            beside = _NUMBERS_A_NAME * prediction.output.size
        case output:
            beside = output.values.size
    if prediction.tensors or prediction.offsets is not None:
        offsets = 0 if prediction.offsets is None else prediction.offsets.size
        return beside + offsets + sum(tensor.size for tensor in prediction.tensors.values())
    return beside


async def render_off_loop(renderer: Callable[[], T], numbers: int) -> T:
    """Call a renderer, in a thread where it has so many numbers to print that the event loop would be held up."""
    return renderer() if numbers <= _RENDER_INLINE else await offload(renderer)
