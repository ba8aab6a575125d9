"""The arguments of the server: one pydantic model of all groups.

runners/core/command_line.py parses a command line, runners/core/argument_sources.py merges all sources. vLLM's
arguments stay text (`Arguments.engine`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from runners.core.argument_conversion import check_model_name
from runners.core.argument_groups import (
    AnswerArguments,
    ArgumentGroup,
    CrossOriginArguments,
    LaunchArguments,
    LifeCycleArguments,
    LimitArguments,
    LogArguments,
    ModelArguments,
    PredictorArguments,
    ProxyArguments,
    ResourceArguments,
    ServerArguments,
    SeveralModelsArguments,
)
from runners.core.engine_arguments import EngineArgument, split_words

logger = logging.getLogger(__name__)

# The arguments that hold API keys, or name a file of them.
KEY_ARGUMENTS = ("api_key", "api_key_file", "admin_api_key", "admin_api_key_file")
# Reasons in the warnings about single arguments of vLLM, which say more than that vLLM does not run the model.
_SPECIFIC_REASONS = {"max_log_len": "prompts are logged only with --log_inputs"}


class Arguments(
    ServerArguments,
    LifeCycleArguments,
    CrossOriginArguments,
    ProxyArguments,
    LogArguments,
    SeveralModelsArguments,
    LimitArguments,
    ModelArguments,
    AnswerArguments,
    PredictorArguments,
    ResourceArguments,
):
    """All arguments of the service, under the names of KServe's Hugging Face runtime."""

    engine: Mapping[str, EngineArgument] = Field({}, exclude=True, repr=False)

    def without_keys(self) -> Self:
        """These arguments, for a server that asks for no key."""
        return self.model_copy(update=dict.fromkeys(KEY_ARGUMENTS))

    @model_validator(mode="before")
    @classmethod
    def _name_as_vllm(cls, values: Any) -> Any:
        """Take the first name of vLLM's `served_model_name` where `model_name` is not set."""
        names = _served_names(values.get("engine") or {}) if isinstance(values, Mapping) else []
        for name in names:
            try:
                check_model_name(name)
            except ValueError as error:
                raise ValueError(f"served_model_name has {name!r}: {error}") from error
        if names and values.get("model_name") is None:
            return {**values, "model_name": names[0]}
        return values

    @model_validator(mode="after")
    def _check_combinations(self) -> Arguments:
        if self.return_probabilities and self.return_raw_logits:
            raise ValueError("return_probabilities and return_raw_logits exclude each other: set one of them")
        if (self.ssl_certfile is None) is not (self.ssl_keyfile is None):
            raise ValueError("ssl_certfile and ssl_keyfile go together: set both or none")
        if self.ssl_ca_certs is not None and self.ssl_certfile is None:
            raise ValueError("ssl_ca_certs is for clients over TLS: set ssl_certfile and ssl_keyfile too")
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ValueError(
                "allow_credentials with allowed_origins * would let every web page act as the user of the browser: "
                "name the origins"
            )
        if self.gpu_type and self.gpu == 0:
            raise ValueError("gpu_type says which GPU, but gpu is 0: leave gpu_type out, or set gpu to 1 or more")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the model: `model_name` and those of vLLM's `served_model_name`."""
        return tuple(dict.fromkeys([self.model_name, *_served_names(self.engine)]))

    @property
    def model(self) -> str:
        """The folder or hub id to load."""
        return self.model_id or self.model_dir

    @property
    def parallel_size(self) -> int:
        """The GPUs that vLLM uses on this machine: tensor x pipeline x data parallel size.

        Raises:
            ArgumentsError: one of the sizes is not a positive integer.
        """
        data_parallel = (
            "data_parallel_size_local" if "data_parallel_size_local" in self.engine else "data_parallel_size"
        )
        names = ("tensor_parallel_size", "pipeline_parallel_size", data_parallel)
        return math.prod(self.engine[name].parse_size(name) for name in names if name in self.engine)

    def warn_of_engine_arguments(self, reason: str, honoured: Collection[str] = ()) -> None:
        """Log a warning for each argument of vLLM that has no effect, because vLLM does not run the model.

        It is no error, because KServe's manifests pass vLLM's arguments whichever model they serve.

        Args:
            reason: why the arguments have no effect.
            honoured: names of the arguments that have an effect nevertheless.
        """
        for name, argument in self.engine.items():
            if name not in honoured:
                explanation = _SPECIFIC_REASONS.get(name, reason)
                logger.warning("%s in %s has no effect: %s", name, argument.origin, explanation)


def _served_names(engine: Mapping[str, EngineArgument]) -> list[str]:
    argument = engine.get("served_model_name")
    return [] if argument is None else split_words(argument.value)


_SERVICE_GROUPS = tuple(base for base in Arguments.__bases__ if issubclass(base, ArgumentGroup))
GROUPS: tuple[type[ArgumentGroup], ...] = (LaunchArguments, *_SERVICE_GROUPS)
ARGUMENT_NAMES = tuple(name for group in _SERVICE_GROUPS for name in group.model_fields)
# The arguments that are the same for all models of a server.
SERVER_NAMES = frozenset(
    name
    for group in _SERVICE_GROUPS
    if group not in (ModelArguments, PredictorArguments, AnswerArguments)
    for name in group.model_fields
) - {"max_batch_tokens"}
