"""The prompts of a sentence-transformers model: texts that are put in front of every text, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runners.core.answer_options import AnswerOptions
from runners.core.errors import InputError, ModelLoadError


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a model.

    Attributes:
        default_name: the prompt of requests that name none.
    """

    by_name: Mapping[str, str] = field(default_factory=dict)
    default_name: str | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any]) -> Prompts:
        """The prompts in a parsed config_sentence_transformers.json.

        Raises:
            ModelLoadError: the default prompt does not exist.
        """
        by_name = {str(name): str(prompt or "") for name, prompt in (settings.get("prompts") or {}).items()}
        default = settings.get("default_prompt_name")
        if default is not None and default not in by_name:
            raise ModelLoadError(f"default_prompt_name is {default!r}, which is none of the model's prompts")
        return cls(by_name, default)

    def check(self, answer_options: AnswerOptions) -> None:
        """
        Raises:
            InputError: the options name a prompt that does not exist.
        """
        name = answer_options.prompt_name
        if name is not None and name not in self.by_name:
            explanation = f"there are {', '.join(self.by_name)}" if self.by_name else "the model has none"
            raise InputError(f"there is no prompt {name!r}: {explanation}", "prompt_name")

    def find(self, answer_options: AnswerOptions) -> str:
        """The text of the prompt that the options name, or of the default one; empty if there is none."""
        name = answer_options.prompt_name or self.default_name
        return "" if name is None else self.by_name[name]

    @property
    def properties(self) -> dict[str, str]:
        """Their names for clients."""
        return {"prompts": ",".join(self.by_name)} if self.by_name else {}
