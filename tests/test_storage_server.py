"""Black box: a server whose model is in S3, started twice."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.families import MINILM
from tests.objects import ObjectStore
from tests.servers import BENTOML, ServerProcess

pytestmark = pytest.mark.slow


def test_a_model_in_s3_is_downloaded_once(tmp_path: Path) -> None:
    names = [path.relative_to(MINILM) for path in Path(MINILM).rglob("*") if path.is_file()]
    with ObjectStore() as store:
        uri = store.put("minilm/", {str(name): (Path(MINILM) / name).read_bytes() for name in names})
        environment = store.environment | {"HF_HOME": str(tmp_path / "hf"), "STORAGE_CACHE_DIR": ""}
        command = [*BENTOML, "serve", ".", "--port={port}", "--arg", f"model_dir={uri}"]
        for start in ("first", "second"):
            server = ServerProcess(command, tmp_path, environment)
            try:
                server.wait_until("/v2/health/ready", 200)
                answer = httpx.post(f"{server.url}/v1/models/model:predict", json={"instances": ["Hello world"]})
                assert len(answer.json()["predictions"][0]) == 384
            finally:
                assert server.terminate() == 0
            assert server.output.count(f"downloading {uri} to ") == (start == "first")
            assert server.output.count(f"{uri} is downloaded: ") == (start == "first")
            assert f"from {tmp_path / 'hf' / 'storage' / 'minilm-'}" in server.output
            assert "Found S3 object" not in server.output
            assert (set(store.read) == {f"minilm/{name}" for name in names}) is (start == "first")
            store.read.clear()
        assert store.read == []
