"""Models whose runners load at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

from runners.core.arguments import Arguments
from runners.core.declarations import ModelDeclaration
from runners.core.errors import ModelLoadError
from runners.core.runner import RunnerDetails


class InstantRunner:
    """A runner that loads at once, unless its folder has a file named `broken`.

    Attributes:
        loads: how often it was loaded.
    """

    def __init__(self, declaration: ModelDeclaration) -> None:
        self.name = declaration.name
        self.version = declaration.version
        self.loaded = self.failed = self.busy = False
        self.loads = 0
        self.task = None
        self.details = RunnerDetails()
        self._folder = Path(declaration.arguments.model)

    @property
    def ready(self) -> bool:
        return self.loaded

    async def load(self) -> None:
        await asyncio.sleep(0)
        if (self._folder / "broken").exists():
            raise ModelLoadError(f"{self.name} is broken")
        self.loaded = True
        self.loads += 1

    async def unload(self) -> None:
        self.loaded = False

    def close(self) -> None:
        self.loaded = False


def declare(name: str, version: str = "1", load: bool = True, folder: Path | None = None) -> ModelDeclaration:
    return ModelDeclaration(Arguments(model_name=name, model_dir=str(folder or "/nowhere")), version, load)
