"""The model that answers a call: the one that it names, or the only one that serves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import Request

from protocol.service_paths import describe_service
from runners.core.errors import InputError, list_names
from runners.core.models import Models
from runners.core.runner import Runner, TextGenerator
from runners.core.served_model import ServedModel
from runners.core.task import Task

# Finds the model that a request names; given None, the only model that serves the call. The runner serves the call.
SelectModel = Callable[[str | None], Runner]

# Text Generation Inference and Text Embeddings Inference have one model and ignore names. Their clients send these:
# huggingface_hub `dummy`, the others those of the two servers' documentation; the last is that of Infinity's client.
PLACEHOLDERS = frozenset({"dummy", "tgi", "tei", "text-embeddings-inference", "default/not-specified"})


def name_in_answer(runner: Runner, name: str | None) -> str:
    """The name of the model in an answer: the one of the request, if it is one of the model's."""
    return name if name is not None and name in runner.names else runner.name


class NotServedError(InputError):
    """The task of the model, or of all models, is not one that the call is for."""


@dataclass(frozen=True, slots=True)
class ModelSelection:
    """Selects the model that answers a call.

    Attributes:
        path: the call's path, for messages.
        serves: whether a model answers the call.
        parameter: where a request names its model, for messages.
    """

    models: Models
    path: str
    serves: Callable[[Runner], bool]
    parameter: str

    def select(self, name: str | None = None) -> Runner:
        """The runner of the model of that name or, without a name, of the only model that serves the call.

        A placeholder is no name, unless a model has it.

        The runner stays loaded until the request has been answered.

        Raises:
            ModelNotFoundError: there is no model of that name.
            ModelNotReadyError: the model is not loaded; without a name, no loaded model serves the call.
            NotServedError: the model does not serve the call; without a name, no model does.
            InputError: without a name, several models serve the call.
        """
        if name in PLACEHOLDERS and name not in self.models.names:
            name = None
        model = self.models.find(name) if name else self._choose()
        runner = model.hold(name or model.name)
        if not self.serves(runner):
            others = [each.name for each in self._list_serving()]
            listed = f"; models that serve it: {list_names(others)}" if others else ""
            raise NotServedError(
                f"{runner.name} does not serve {self.path}: {describe_service(runner)}{listed}",
                "model" if name else None,
            )
        return runner

    def _choose(self) -> ServedModel:
        candidates = self.models.choose_versions()
        if len(candidates) == 1:
            return candidates[0]
        match self._list_serving():
            case [model]:
                return model
            case []:
                if (waiting := next(filter(self._may_serve, candidates), None)) is not None:
                    return waiting
                described = list_names([_describe(model) for model in candidates]) or "no models"
                raise NotServedError(f"no model of this server serves {self.path}; it has {described}")
            case several:
                names = list_names([model.name for model in several])
                raise InputError(f"several models serve {self.path}; name one with {self.parameter}: {names}", "model")

    def _list_serving(self) -> list[ServedModel]:
        """The models that are ready and serve the call."""
        return [
            model
            for model in self.models.choose_versions()
            if model.ready and model.runner is not None and self.serves(model.runner)
        ]

    def _may_serve(self, model: ServedModel) -> bool:
        """Whether a model that is to be loaded, but is not ready, may serve the call then."""
        if model.ready or not model.is_wanted:
            return False
        runner = model.runner
        # The task of an encoder is unknown until it is loaded.
        return runner is None or (runner.generator is None and runner.task is None) or self.serves(runner)


def _describe(model: ServedModel) -> str:
    runner = model.runner
    return f"{model.name} ({runner.task})" if model.ready and runner is not None else f"{model.name} (not loaded)"


def select_generator(select: SelectModel, name: str | None) -> TextGenerator:
    """The runner for a call that only models with an engine for generation serve."""
    generator = select(name).generator
    assert generator is not None, "no other model serves the call"
    return generator


def runs_on_encoder(runner: Runner, task: Task) -> bool:
    """Whether a model does a task on this project's engine for encoders, or at a remote predictor."""
    return runner.task is task and runner.generator is None


def query_model(request: Request) -> str | None:
    """The model that a request names in its query."""
    return request.query_params.get("model") if request.scope["query_string"] else None
