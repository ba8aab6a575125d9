"""The settings of BentoML's that the operator makes: BENTOML_CONFIG, BENTOML_CONFIG_OVERRIDES, BENTOML_CONFIG_OPTIONS.

Those of the middleware, which requests pass by, become arguments and OpenTelemetry's variables. An argument or a
variable that is set wins. A line at the start says what has no effect.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import click
from bentoml._internal.configuration.containers import BentoMLContainer

from runners.core.argument_values import GivenValue, Origin, validate_arguments
from runners.core.arguments import Arguments
from runners.hosting.bentoml_settings import SETTINGS, Effect

logger = logging.getLogger(__name__)

_SECTIONS = {path.partition(".")[0] for path in SETTINGS}
# A section that has one has an effect only if it is true.
_SWITCHES = ("http.cors.enabled", "ssl.enabled")
_EXPORTER, _SAMPLE_RATE = "tracing.exporter_type", "tracing.sample_rate"
_OTLP = "otlp"
_PROTOCOL = "tracing.otlp.protocol"
# In OpenTelemetry's words.
_PROTOCOLS = {"grpc": "grpc", "http": "http/protobuf"}
# By the name of its value, why an option of `bentoml serve` has no effect, or less than it seems.
_OPTIONS: Mapping[str, str] = {
    "timeout": f"has no effect: {SETTINGS['traffic.timeout'].text}",
    "api_workers": "has no effect: set --arg workers=N",
    "ssl_certfile": "is for HTTP alone: set --arg ssl_certfile=FILE for gRPC too",
    "ssl_keyfile": "is for HTTP alone: set --arg ssl_keyfile=FILE for gRPC too",
    "ssl_ca_certs": "is for HTTP alone: set --arg ssl_ca_certs=FILE for gRPC too",
}


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """The operator's settings of a service.

    Attributes:
        values: by path, as `SETTINGS` has them.
        unknown: paths that BentoML does not have.
    """

    values: Mapping[str, Any]
    unknown: tuple[str, ...] = ()

    def to_arguments(self, workers: int = 1) -> dict[str, GivenValue]:
        """The arguments that follow from the settings.

        Args:
            workers: BentoML divides the requests that run at once among them.
        """
        values = self._select(Effect.ARGUMENT)
        if (most := values.get("traffic.max_concurrency")) is not None:
            values["traffic.max_concurrency"] = math.ceil(most / workers)
        return {SETTINGS[path].text: GivenValue(value, Origin(_describe(path))) for path, value in values.items()}

    def to_cors(self) -> dict[str, Any]:
        """The properties of CORS that no argument sets, by name."""
        cors = {SETTINGS[path].text: value for path, value in self._select(Effect.CORS).items()}
        exposed = cors.get("exposed", ())
        return cors | ({"exposed": [exposed]} if isinstance(exposed, str) else {})

    def to_variables(self) -> dict[str, str]:
        """OpenTelemetry's variables that follow from the settings; none unless BentoML would export traces by OTLP."""
        if str(self.values.get(_EXPORTER)).lower() != _OTLP:
            return {}
        values = self._select(Effect.VARIABLE)
        found = {SETTINGS[path].text: _to_variable(path, value) for path, value in values.items()}
        # As in BentoML, nothing is sampled unless the operator says so.
        sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", SETTINGS[_SAMPLE_RATE].text: "0"}
        return {**sampler, **found}

    def set_variables(self, environment: MutableMapping[str, str]) -> None:
        """Set OpenTelemetry's variables, except those that the operator has set."""
        for name, value in self.to_variables().items():
            environment.setdefault(name, value)

    def list_remarks(self, arguments: Arguments, environment: Mapping[str, str]) -> Iterator[str]:
        """A line for each setting that does not do what it says.

        Args:
            arguments: what this server runs with.
            environment: after `set_variables`.
        """
        for path in self.unknown:
            yield f"{_describe(path)} has no effect: BentoML has no such setting"
        for path in self.values:
            if SETTINGS[path].effect is Effect.NONE:
                yield f"{_describe(path)} has no effect: {SETTINGS[path].text}"
            elif not self._is_switched_on(path):
                yield f"{_describe(path)} has no effect: {_find_switch(path)} is not true"
        arguments_of_settings = self.to_arguments(arguments.workers)
        wanted = validate_arguments(arguments_of_settings)
        for name, value in arguments_of_settings.items():
            if getattr(wanted, name) != getattr(arguments, name):
                yield f"{value.origin.name} has no effect: the argument {name} is set"
        yield from self._list_trace_remarks(environment)

    def _list_trace_remarks(self, environment: Mapping[str, str]) -> Iterator[str]:
        tracing = [path for path in self.values if SETTINGS[path].effect is Effect.VARIABLE]
        variables = self.to_variables()
        if tracing and not variables:
            yield f"{_describe('tracing')} has no effect: traces go by OTLP, and exporter_type is not otlp"
        for name, value in variables.items():
            if environment[name] != value:
                yield f"{_describe('tracing')} does not set {name}, which the environment sets"
        if variables and _SAMPLE_RATE not in self.values:
            yield f"{_describe('tracing')} has no sample_rate, so that only requests of traced callers have traces"

    def _select(self, effect: Effect) -> dict[str, Any]:
        """The settings with an effect, by path, without those of sections that are switched off, and the switches."""
        return {
            path: value
            for path, value in self.values.items()
            if SETTINGS[path].effect is effect and path not in _SWITCHES and self._is_switched_on(path)
        }

    def _is_switched_on(self, path: str) -> bool:
        switch = _find_switch(path)
        return switch in ("", path) or self.values.get(switch) is True


def read_operator_settings(service: str) -> OperatorSettings:
    """The operator's settings of a service and of all services.

    Must be called before BentoML merges its defaults into them, as it does once the service is imported.
    """
    configured = BentoMLContainer.config.get().get("services") or {}
    for_all = {name: value for name, value in configured.items() if name in _SECTIONS}
    found = dict(_flatten(for_all)) | dict(_flatten(configured.get(service) or {}))
    known = {path: value for path, value in found.items() if path in SETTINGS and value is not None}
    return OperatorSettings(known, tuple(path for path in found if path not in SETTINGS))


def warn_of_settings(settings: OperatorSettings, arguments: Arguments, environment: Mapping[str, str]) -> None:
    """In BentoML's parent process: log what has no effect, of the settings and of the options of `bentoml serve`."""
    for remark in settings.list_remarks(arguments, environment):
        logger.warning("%s", remark)
    command = click.get_current_context(silent=True)
    for name, reason in _OPTIONS.items():
        if command is not None and command.params.get(name) is not None:
            logger.warning("--%s of bentoml serve %s", name.replace("_", "-"), reason)


def _flatten(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in SETTINGS:
            yield from _flatten(value, f"{path}.")
        else:
            yield path, value


def _describe(path: str) -> str:
    return f"services.{path} of BentoML's configuration"


def _find_switch(path: str) -> str:
    """The switch of the section of a setting; empty if it has none."""
    return next((switch for switch in _SWITCHES if path.startswith(switch.removesuffix("enabled"))), "")


def _to_variable(path: str, value: Any) -> str:
    """The value of a setting as OpenTelemetry's variables write it."""
    match value:
        case bool():
            return str(value).lower()
        case Mapping():
            return ",".join(f"{name}={quote(str(each))}" for name, each in value.items())
        case list() if path.endswith("headers"):
            return _to_variable(path, dict(value))
        case list():
            return ",".join(value)
    text = str(value)
    return {_EXPORTER: text.lower(), _PROTOCOL: _PROTOCOLS.get(text.lower(), text)}.get(path, text)
