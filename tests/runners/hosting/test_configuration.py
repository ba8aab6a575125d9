"""The arguments of the service, as BentoML has them."""

from __future__ import annotations

from types import SimpleNamespace

import bentoml
import pytest
import yaml

from runners.hosting import configuration
from runners.hosting.configuration import read_service_configuration
from runners.hosting.operator_settings import OperatorSettings
from tests.servers import ROOT

BENTOFILE = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["args"]


@pytest.mark.parametrize(
    ("is_serving", "in_bento", "given", "gpu"),
    [
        # A server from the source tree uses the GPUs of its machine; the Bento that is built from it asks for none.
        (True, False, BENTOFILE, None),
        (False, False, BENTOFILE, 0),
        (True, True, BENTOFILE, 0),
        # `bentoml serve --arg` gives text.
        (True, False, BENTOFILE | {"gpu": "0"}, 0),
        (True, False, BENTOFILE | {"gpu": "2"}, 2),
    ],
)
def test_the_gpus_of_the_bentofile_are_those_of_the_bento(
    is_serving: bool, in_bento: bool, given: dict[str, object], gpu: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bentoml, "use_arguments", lambda: SimpleNamespace(**given))
    monkeypatch.setattr(configuration, "is_parent", lambda: is_serving)
    assert read_service_configuration(OperatorSettings({}), in_bento).arguments.gpu == gpu
