"""The servers that the benchmark of a GPU starts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from benchmarks import run
from benchmarks.gpu.figures import Figures
from benchmarks.gpu.parts import Setting
from benchmarks.gpu.servers import measure_servers
from runners.core.argument_sources import read_configuration


class FoundError(Exception):
    """Ends the benchmark with the command of the first server."""


@pytest.mark.parametrize(("gpus", "expected"), [(0, 0), (1, 1), (4, 1)])
def test_a_server_runs_on_the_gpu_although_the_source_tree_asks_for_none(
    gpus: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(words: Sequence[str], *_: object) -> None:
        raise FoundError(*words)

    monkeypatch.setattr(run, "serve", serve)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    setting = Setting(torch.device("cuda" if gpus else "cpu"), True, Figures(torch.device("cpu")))
    with pytest.raises(FoundError) as raised:
        measure_servers(setting)
    options = [word.removeprefix("--arg=").split("=", 1) for word in raised.value.args if word.startswith("--arg=")]
    assert read_configuration({}, {}, dict(options)).arguments.gpu == expected
