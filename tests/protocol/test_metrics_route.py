from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from protocol.application import create_application
from runners.core.arguments import Arguments
from runners.core.generation_metrics import GenerationMetrics
from runners.core.metric_families import counting
from runners.core.metrics_lock import lock_files
from runners.encoder.runner import EncoderRunner
from tests.served import models_of

OPENMETRICS = "application/openmetrics-text"


def test_a_scrape_waits_while_counts_move(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would see them twice or not at all."""
    client = TestClient(create_application(models_of(EncoderRunner(Arguments())), Arguments()))
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    with ThreadPoolExecutor(1) as pool:
        with lock_files(tmp_path, moves=True):
            scrape = pool.submit(client.get, "/metrics")
            assert wait([scrape], timeout=0.3).not_done
        assert scrape.result().status_code == 200


# As a browser asks, Prometheus 2.42, 3.0 and clients that want names without UTF-8.
@pytest.mark.parametrize(
    "accept",
    [
        "*/*",
        f"{OPENMETRICS};version=1.0.0,{OPENMETRICS};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        f"{OPENMETRICS};version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4",
        f"{OPENMETRICS};version=1.0.0;escaping=underscores",
        "text/plain;version=1.0.0;escaping=underscores",
        OPENMETRICS,
    ],
)
def test_names_keep_their_colons(accept: str) -> None:
    metrics = GenerationMetrics("colons")
    with counting:
        metrics.generation_tokens.value += 1
    client = TestClient(create_application(models_of(EncoderRunner(Arguments())), Arguments()))
    answer = client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(OPENMETRICS if accept.startswith(OPENMETRICS) else "text/plain")
    assert 'vllm:generation_tokens_total{model_name="colons"}' in answer.text
    # OpenMetrics leaves the suffix of counters out of a family's name.
    family = "vllm:generation_tokens" if accept.startswith(OPENMETRICS) else "vllm:generation_tokens_total"
    assert f"\n# TYPE {family} counter\n" in answer.text
