"""The table of BentoML's settings against BentoML's own schemas, so that a new setting fails until it is judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, get_type_hints

import pytest
import schema
from _bentoml_sdk.service.config import ServiceConfig
from bentoml._internal.configuration.v2 import SCHEMA
from typing_extensions import is_typeddict

from protocol.http.middleware.cors import CorsSettings
from runners.core.arguments import Arguments
from runners.hosting.bentoml_settings import SETTINGS, Effect
from tests.docs.pages import read_page


def list_typed(kind: Any, prefix: str = "") -> Iterator[str]:
    """The paths of the values in a typed dictionary, as a class may declare them."""
    for name, each in get_type_hints(kind).items():
        if is_typeddict(each):
            yield from list_typed(each, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def list_validated(section: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    """The paths of the values in a schema of BentoML's configuration file."""
    for key, value in section.items():
        name = key.schema if isinstance(key, schema.Optional) else key
        # Of several kinds, one may be a section.
        kinds = value.args if isinstance(value, schema.Or) else (value,)
        sections = [kind for kind in kinds if isinstance(kind, dict)]
        if name is str:
            continue
        if sections:
            yield from list_validated(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_every_setting_is_judged() -> None:
    services = next(value for key, value in SCHEMA.schema.items() if key == "services")
    known = {*list_validated(services), *list_typed(ServiceConfig)}
    assert len(known) > 80
    assert known == SETTINGS.keys()


def test_what_settings_become_exists() -> None:
    named = {effect: {each.text for each in SETTINGS.values() if each.effect is effect} for effect in Effect}
    assert named[Effect.ARGUMENT] <= {*Arguments.model_fields}
    assert named[Effect.CORS] - {"enabled"} <= {field.name for field in fields(CorsSettings)}
    traces = read_page("docs/how-to/traces.md")
    for name in named[Effect.VARIABLE]:
        assert name in traces or name.replace("_TRACES_", "_") in traces or name == "OTEL_TRACES_SAMPLER_ARG"


@pytest.mark.parametrize("path", [path for path, each in SETTINGS.items() if "--" in each.text])
def test_the_arguments_in_advice_exist(path: str) -> None:
    words = SETTINGS[path].text.replace(",", " ").replace(";", " ").replace("=", " ").split()
    found = {word.removeprefix("--") for word in words if word.startswith("--")}
    assert found
    assert found <= {*Arguments.model_fields}
