"""Downloads run in processes of their own, as they do at start, from real servers on this machine."""

from __future__ import annotations

import gzip
import logging
import os
import pty
import re
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import termios
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runners.core.arguments import Arguments
from runners.core.certificates import create_ssl_context
from runners.core.errors import ArgumentsError, RunnerError
from runners.hosting.storage import archives, initializer, progress
from runners.hosting.storage.download import fetch_model
from runners.hosting.storage.localize import localize_model
from runners.hosting.storage.uris import CACHE_VARIABLE, add_revision
from tests.conftest import Certificate, renew
from tests.hub import COMMIT, Hub
from tests.objects import Member, ObjectStore, Web, deflated, encrypted, pack_tar, pack_zip, tar, zipped
from tests.servers import ROOT
from tests.waiting import wait_until

FILES = {"config.json": b"{}", "1_Pooling/config.json": b'{"a": 1}', "tokenizer.json": b"x" * 100}
LARGE = {**FILES, "model.safetensors": bytes(3 * 2**20)}
_FETCH = """
import logging, os, shutil, sys
from collections import namedtuple
from runners.hosting.storage import progress
from runners.hosting.storage import download as storage
from runners.core.errors import RunnerError
logging.basicConfig(format="%(message)s")
logging.getLogger("runners").setLevel("INFO")
progress._LOG_SECONDS = 0.2
if free := os.environ.get("FREE"):
    shutil.disk_usage = lambda _: namedtuple("Usage", "total used free")(0, 0, int(free))
try:
    print(storage.fetch_model(sys.argv[1]))
except RunnerError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


@dataclass
class Fetch:
    """Starts processes that fetch a model into one cache folder."""

    cache: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, uri: str, **options: Any) -> subprocess.Popen[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "HF_"))}
        own = {"STORAGE_CACHE_DIR": str(self.cache), "AWS_EC2_METADATA_DISABLED": "true"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        return subprocess.Popen(
            [sys.executable, "-c", _FETCH, uri],
            cwd=ROOT, env=inherited | own | self.environment, text=True, start_new_session=True, **streams,
        )  # fmt: skip

    def __call__(self, uri: str, **options: Any) -> tuple[Path, str]:
        """The folder and what was logged."""
        process = self.start(uri, **options)
        out, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        return Path(out.strip()), log

    def fail(self, uri: str, **options: Any) -> str:
        """The error, which is the last line."""
        process = self.start(uri, **options)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 1, log
        assert "Traceback" not in log
        return str(log.splitlines()[-1])


@pytest.fixture
def fetch(tmp_path: Path) -> Fetch:
    return Fetch(tmp_path / "cache")


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with ObjectStore() as running:
        yield running


@pytest.fixture
def s3(store: ObjectStore, fetch: Fetch) -> ObjectStore:
    fetch.environment = store.environment
    store.read.clear()
    return store


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as running:
        yield running


@pytest.fixture
def hub(fetch: Fetch) -> Iterator[Hub]:
    with Hub(LARGE) as running:
        fetch.environment = {"HF_ENDPOINT": running.url}
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    """Visible files."""
    names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(name): (folder / name).read_bytes() for name in names if not name.parts[0].startswith(".")}


# Paths and files


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"model_dir": "relative/folder"},
        {"model_dir": "/mnt/pvc/models"},
        {"model_id": "owner/model", "model_dir": "s3://models/ignored/"},
        {"model_id": "s3://models/streamed-by-vllm/", "backend": "vllm"},
        {"model_dir": "/models/bert", "model_revision": "v1"},
    ],
)
def test_what_is_no_uri_in_model_dir_stays(arguments: dict[str, str]) -> None:
    given = Arguments.model_validate(arguments)
    assert localize_model(given) is given


def test_a_file_uri_of_a_folder_is_the_folder(tmp_path: Path) -> None:
    found = localize_model(Arguments.model_validate({"model_dir": f"file://{tmp_path}"}))
    assert found.model_dir == str(tmp_path)


@pytest.mark.parametrize("pack", [tar, zipped])
def test_a_file_uri_of_an_archive(pack: Any, fetch: Fetch, tmp_path: Path) -> None:
    archive = tmp_path / f"model.{'zip' if pack is zipped else 'tar.gz'}"
    archive.write_bytes(pack(FILES))
    folder, _ = fetch(f"file://{archive}")
    assert contents(folder) == FILES
    assert archive.exists()


# Archives


@pytest.mark.parametrize(
    ("name", "kind", "pack"), [("m.tar.gz", "application/gzip", tar), ("m.zip", "application/zip", zipped)]
)
@pytest.mark.parametrize("around", ["", "bert/"])
def test_an_archive(name: str, kind: str, pack: Any, around: str, fetch: Fetch, web: Web) -> None:
    web.files[f"/{name}"] = kind, pack({around + path: data for path, data in FILES.items()})
    folder, log = fetch(f"{web.url}/{name}?X-Amz-Signature=secret")
    assert contents(folder) == FILES
    assert folder.name == "bert" or not around
    assert "is downloaded: 110 B in " in log
    assert "secret" not in log
    assert fetch(f"{web.url}/{name}?X-Amz-Signature=secret") == (folder, "")
    assert web.asked == [f"/{name}"], "downloaded once"


@pytest.mark.parametrize(
    ("name", "kind", "pack"), [("m.tar.gz", "application/gzip", tar), ("m.zip", "application/zip", zipped)]
)
def test_a_transfer_that_breaks_off_is_not_complete(name: str, kind: str, pack: Any, fetch: Fetch, web: Web) -> None:
    web.files[f"/{name}"] = kind, pack(FILES)
    web.broken.add(f"/{name}")
    error = fetch.fail(f"{web.url}/{name}")
    assert error.startswith(f"ModelLoadError: {web.url}/{name} cannot be downloaded: ")
    assert "IncompleteRead" in error
    assert [path.suffix for path in fetch.cache.iterdir()] == [".lock"], "it cannot be gone on with, and is gone"
    web.broken.clear()
    assert contents(fetch(f"{web.url}/{name}")[0]) == FILES


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (["../outside"], "holds '../outside', a path with '..'"),
        (["a/../../outside"], "holds 'a/../../outside', a path with '..'"),
        (["{outside}"], "holds '{outside}', an absolute path"),
        (["a\nb/../c"], r"holds 'a\nb/../c', a path with '..'"),
        (["b/" * 64 + "c"], "which lies in more than 64 folders"),
        (["x" * 300], "OSError: [Errno 36] File name too long"),
        (["a", "a/b"], "FileExistsError: [Errno 17] File exists"),
        ([Member("a", size=2**50)], "holds 'a', which is larger than the 1.0 GiB that the disk has room for"),
        ([Member("link", link="{outside}")], "holds 'link', a link"),
        ([Member("link", link="config.json")], "holds 'link', a link"),
        ([Member("link", link=".."), "link/outside"], "holds 'link', a link"),
        ([Member("fifo", mode=stat.S_IFIFO)], "holds 'fifo', which is neither a file nor a folder"),
        ([Member("device", mode=stat.S_IFCHR)], "holds 'device', which is neither a file nor a folder"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_what_an_archive_must_not_hold(
    members: list[str | Member], message: str, kind: str, fetch: Fetch, web: Web, tmp_path: Path
) -> None:
    """Nothing of it stays, and nothing lies outside of the folder."""
    outside = str(tmp_path / "outside")
    fetch.environment = {"FREE": str(2**30)}
    pack, media_type = (pack_zip, "application/zip") if kind == "zip" else (pack_tar, "application/gzip")
    files = [member if isinstance(member, Member) else Member(member) for member in members]
    web.files[f"/m.{kind}"] = media_type, pack([Member("config.json"), *(each.at(outside) for each in files)])
    error = fetch.fail(f"{web.url}/m.{kind}")
    assert error.startswith(f"ModelLoadError: {web.url}/m.{kind} ")
    assert message.format(outside=outside) in error
    assert [path.suffix for path in tmp_path.rglob("*") if path != fetch.cache] == [".lock"]


def test_modes_of_an_archive_do_not_hold(fetch: Fetch, web: Web) -> None:
    web.files["/m.tar.gz"] = "application/gzip", pack_tar([Member("config.json", mode=stat.S_IFREG | 0o6777)])
    folder, _ = fetch(f"{web.url}/m.tar.gz")
    assert (folder / "config.json").stat().st_mode & 0o7111 == 0


def test_a_local_archive_is_not_written_to(fetch: Fetch, tmp_path: Path) -> None:
    """In the folder is a link to it, which a member's name may be."""
    archive = tmp_path / "m.tar.gz"
    archive.write_bytes(pack_tar([Member("config.json"), Member("m.tar.gz")]))
    before = archive.read_bytes()
    assert "holds 'm.tar.gz', which has the name of the archive" in fetch.fail(f"file://{archive}")
    assert archive.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "kind", "body", "message"),
    [
        # Inflated on the way to the disk.
        ("m.tar.gz", "application/gzip", gzip.compress(bytes(2**25)), "is larger than the 16 MiB that the disk has room for"),
        ("m.tar", "application/x-tar", bytes(2**25), "is larger than the 16 MiB that the disk has room for"),
        ("m.tar.gz", "application/gzip", tar({"a": bytes(2**23), "b": bytes(2**22), "c": bytes(2**22)}), "is larger than the 16 MiB that the disk has room for"),
        ("m.zip", "application/zip", deflated({"a": bytes(2**23), "b": bytes(2**24)}), "holds 'b', which is larger than the 8 MiB that the disk has room for"),
        ("m.zip", "application/zip", encrypted(zipped(FILES)), "holds 'config.json', which is encrypted"),
        ("m.zip", "application/zip", deflated({"a": bytes(2**20)}, zipfile.ZIP_BZIP2), "holds 'a', compressed by method 12"),
        ("m.zip", "application/zip", zipped({"config.json": b"{}", "a_b": b""}).replace(b"a_b", b"a\0b"), "holds 'a\\x00b', whose name has a NUL"),
        ("m.tar.gz", "application/gzip", pack_tar([Member("x" * 2**21)]), "holds 'a member', with or before headers of more than 1 MiB"),
    ],
)  # fmt: skip
def test_an_archive_that_is_a_bomb(
    name: str, kind: str, body: bytes, message: str, fetch: Fetch, web: Web, tmp_path: Path
) -> None:
    fetch.environment = {"FREE": str(2**24)}
    web.files[f"/{name}"] = kind, body
    assert message in fetch.fail(f"{web.url}/{name}")
    assert [path.suffix for path in tmp_path.rglob("*") if path != fetch.cache] == [".lock"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_of_too_many_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    folder = tmp_path / "partial"
    folder.mkdir()
    archive = folder / f"m.{kind}"
    archive.write_bytes((tar if kind == "tar" else zipped)({str(index): b"" for index in range(4)}))
    with pytest.raises(RunnerError, match=r"^shown holds more than 3 files and folders: it is not unpacked$"):
        archives.unpack_archive(archive, archives.TAR if kind == "tar" else archives.ZIP, folder, "shown")
    assert not folder.exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_compressions_of_tar(mode: Any, tmp_path: Path) -> None:
    folder = tmp_path / "partial"
    folder.mkdir()
    (tmp_path / "config.json").write_text("{}")
    with tarfile.open(folder / "m.tar", mode) as archive:
        archive.add(tmp_path / "config.json", "./bert/config.json")
    archives.unpack_archive(folder / "m.tar", archives.TAR, folder, "shown")
    assert contents(folder) == {"bert/config.json": b"{}"}


def test_an_archive_in_s3_that_is_refused_leaves_nothing(fetch: Fetch, s3: ObjectStore) -> None:
    s3.put("", {"bomb.zip": deflated({"a": bytes(2**25)})})
    fetch.environment = s3.environment | {"FREE": str(2**24)}
    assert "holds 'a', which is larger than the 16 MiB" in fetch.fail("s3://models/bomb.zip")
    assert [path.suffix for path in fetch.cache.iterdir()] == [".lock"]


def test_links_out_of_a_download(tmp_path: Path) -> None:
    (tmp_path / "inside").touch()
    (tmp_path / "link").symlink_to("inside")
    archives.refuse_links(tmp_path, "shown")
    (tmp_path / "other").symlink_to("/etc/passwd")
    with pytest.raises(RunnerError, match=r"^shown holds 'other', a link out of its folder$"):
        archives.refuse_links(tmp_path, "shown")


def test_two_servers_share_one_download(fetch: Fetch, web: Web) -> None:
    web.files["/m.zip"] = "application/zip", zipped(FILES)
    web.seconds = 3
    processes = [fetch.start(f"{web.url}/m.zip") for _ in range(2)]
    (one, first), (other, second) = (process.communicate(timeout=60) for process in processes)
    assert one == other != ""
    assert sum("waiting for another process that downloads" in log for log in (first, second)) == 1
    assert web.asked == ["/m.zip"]


# S3


def test_s3(fetch: Fetch, s3: ObjectStore) -> None:
    uri = s3.put("bert/", LARGE)
    folder, log = fetch(uri)
    assert contents(folder) == LARGE
    assert re.fullmatch(
        rf"downloading {uri} to {folder}\n({uri}: downloaded .*\n)*{uri} is downloaded: 3 MiB in \d+ s\n", log
    )
    s3.read.clear()
    assert fetch(uri) == (folder, "")
    assert s3.read == []


@pytest.mark.parametrize("pack", [tar, zipped])
def test_an_archive_in_s3(pack: Any, fetch: Fetch, s3: ObjectStore) -> None:
    name = "m.zip" if pack is zipped else "m.tar.gz"
    s3.put("", {name: pack({f"bert/{path}": data for path, data in FILES.items()})})
    folder, log = fetch(f"s3://models/{name}")
    assert contents(folder) == FILES
    assert f"unpacking s3://models/{name}" in log


@pytest.mark.parametrize("ignored", ["", "*.txt"])
def test_what_does_not_fit_is_not_downloaded(ignored: str, fetch: Fetch, s3: ObjectStore) -> None:
    """Files that are left out do not count."""
    uri = s3.put(f"large{ignored[1:]}/", LARGE | {"z.txt": bytes(2**20)})
    s3.read.clear()
    fetch.environment = s3.environment | {"FREE": str(2**21), "STORAGE_IGNORE_PATTERNS": ignored}
    assert re.fullmatch(
        rf"ModelLoadError: {uri} has [34] MiB, which is more than the 2 MiB that the disk has room for", fetch.fail(uri)
    )
    assert s3.read == []
    fetch.environment |= {"FREE": str(2**22 - 2**19)}
    assert fetch(uri)[0] if ignored else fetch.fail(uri)


def test_s3_goes_on_file_by_file(fetch: Fetch, s3: ObjectStore) -> None:
    """What is complete is not read again, but for the smallest; what is not is."""
    uri = s3.put("resumed/", {name: data for name, data in LARGE.items() if name != "config.json"})
    assert "holds a config.json not for all its files but in 1_Pooling: " in fetch.fail(uri)
    [partial] = fetch.cache.glob("*.partial")
    (partial / "model.safetensors").rename(partial / "model.safetensors.0aF5b3D7")
    s3.put("resumed/", FILES)
    s3.read.clear()
    folder, _ = fetch(uri)
    assert contents(folder) == LARGE
    assert set(s3.read) == {
        "resumed/config.json", "resumed/1_Pooling/config.json", "resumed/model.safetensors",
    }  # fmt: skip


def test_s3_goes_on_where_all_is_there(fetch: Fetch, s3: ObjectStore) -> None:
    uri = s3.put("whole/", LARGE)
    folder, _ = fetch(uri)
    folder.rename(f"{folder}.partial")
    s3.read.clear()
    assert contents(fetch(uri)[0]) == LARGE
    assert s3.read == ["whole/config.json"]


def test_patterns_of_kserve_s_environment(fetch: Fetch, s3: ObjectStore) -> None:
    uri = s3.put("filtered/", LARGE)
    whole, _ = fetch(uri)
    fetch.environment = s3.environment | {"STORAGE_IGNORE_PATTERNS": "*.safetensors"}
    folder, _ = fetch(uri)
    assert contents(folder) == FILES
    assert folder != whole
    folder.rename(f"{folder}.partial")
    s3.read.clear()
    assert contents(fetch(uri)[0]) == FILES, "also where a download goes on"
    assert s3.read == ["filtered/config.json"]


def test_sigterm_ends_a_download(fetch: Fetch, web: Web) -> None:
    web.seconds = 30
    process = fetch.start(f"{web.url}/m.zip")
    wait_until(lambda: web.asked != [])
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == 128 + signal.SIGTERM


# The hub


@pytest.mark.parametrize(
    ("uri", "revision"), [("hf://owner/model", None), ("hf://owner/model:v1", None), ("hf://owner/model", "v1")]
)
def test_hf(uri: str, revision: str | None, fetch: Fetch, hub: Hub) -> None:
    fetch.environment |= {"HF_TOKEN": "hf_secret"}
    folder, log = fetch(uri if revision is None else add_revision(uri, revision))
    assert contents(folder) == LARGE
    assert "Bearer hf_secret" in hub.tokens
    assert "secret" not in log
    assert {name for name, _ in hub.asked} == set(LARGE)
    hub.asked.clear()
    assert fetch(uri if revision is None else f"{uri}:{revision}") == (folder, "")
    assert hub.asked == []


def size_of(path: Path) -> int:
    """0 where it is no longer there: another file's is renamed meanwhile."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_model_of_the_hub_that_does_not_fit(fetch: Fetch, hub: Hub) -> None:
    fetch.environment |= {"FREE": str(2**20)}
    assert fetch.fail("hf://owner/model") == (
        "ModelLoadError: hf://owner/model has 3 MiB, which is more than the 1 MiB that the disk has room for"
    )
    assert hub.asked == []


def test_hf_goes_on_file_by_file(fetch: Fetch, hub: Hub) -> None:
    # huggingface_hub writes 10 MiB at a time.
    hub.files = FILES | {"model.safetensors": os.urandom(24 * 2**20)}
    hub.hold.set()
    process = fetch.start("hf://owner/model")
    wait_until(lambda: any(size_of(path) >= 2**20 for path in fetch.cache.rglob("*.incomplete")))
    wait_until(lambda: len(list(fetch.cache.rglob("*.metadata"))) >= len(FILES))
    process.kill()
    process.communicate()
    hub.hold.clear()
    hub.asked.clear()
    folder, _ = fetch("hf://owner/model")
    assert contents(folder) == hub.files
    assert {name for name, _ in hub.asked} == {"model.safetensors"}
    assert list(folder.rglob("*.incomplete")) == []


def test_a_hub_that_is_away_completes_nothing(fetch: Fetch, hub: Hub) -> None:
    """huggingface_hub returns the folder as it is."""
    hub.files = dict(FILES)
    folder, _ = fetch("hf://owner/model")
    folder.rename(f"{folder}.partial")
    fetch.environment = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    assert "Connection refused" in fetch.fail("hf://owner/model")
    assert not folder.exists()


def test_a_hub_with_a_private_authority(fetch: Fetch, certificate: Certificate, tmp_path: Path) -> None:
    context = create_ssl_context(str(certificate.certificate), str(certificate.key), None)
    with Hub({"config.json": b"{}"}, context) as hub:
        other = renew(Certificate(*(tmp_path / name for name in ("a.pem", "b.pem", "c.pem"))), tmp_path)
        fetch.environment = {"HF_ENDPOINT": hub.url, "SSL_CERT_FILE": str(other)}
        assert "CERTIFICATE_VERIFY_FAILED" in fetch.fail("hf://owner/model")
        fetch.environment = {"HF_ENDPOINT": hub.url, "SSL_CERT_FILE": str(certificate.authority)}
        assert contents(fetch("hf://owner/model")[0]) == {"config.json": b"{}"}


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_web_with_a_private_authority(fetch: Fetch, certificate: Certificate, variable: str) -> None:
    context = create_ssl_context(str(certificate.certificate), str(certificate.key), None)
    with Web({"/m.zip": ("application/zip", zipped(FILES))}, context=context) as web:
        fetch.environment = {"REQUESTS_CA_BUNDLE": "", "CURL_CA_BUNDLE": "", variable: str(certificate.authority)}
        assert contents(fetch(f"{web.url}/m.zip")[0]) == FILES


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_s3_with_a_private_authority(fetch: Fetch, s3: ObjectStore, certificate: Certificate, variable: str) -> None:
    """The store knows no call of S3; that it answers so shows that its certificate is trusted."""
    context = create_ssl_context(str(certificate.certificate), str(certificate.key), None)
    with Web(context=context) as web:
        fetch.environment = s3.environment | {"AWS_ENDPOINT_URL": web.url, variable: str(certificate.authority)}
        assert "cannot be downloaded: S3 error [501]" in fetch.fail("s3://models/bert/")


def test_a_hub_behind_a_proxy(fetch: Fetch) -> None:
    """The proxy gets the request for the hub, unless NO_PROXY names the hub."""
    with Hub({"config.json": b"{}"}) as hub:
        nowhere = {"HF_ENDPOINT": hub.url, "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
        fetch.environment = {**nowhere, **{name.lower(): value for name, value in nowhere.items()}}
        assert "Connection refused" in fetch.fail("hf://owner/model")
        fetch.environment |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        assert contents(fetch("hf://owner/model")[0]) == {"config.json": b"{}"}


def test_hf_of_kserve_gets_one_commit(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo
    from kserve_storage import Storage

    asked: list[str] = []
    info = ModelInfo(id="owner/model", sha=COMMIT, siblings=[{"rfilename": "config.json", "size": 2}])  # type: ignore[no-untyped-call]
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: info)
    monkeypatch.setattr(Storage, "download", lambda uri, *_: asked.append(uri))
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(RunnerError, match=r"owner/model is not complete: the hub did not send config\.json"):
        fetch_model("hf://owner/model:refs/pr/1")
    assert asked == [f"hf://owner/model:{COMMIT}"]


# Progress


def test_a_line_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.2)
    caplog.set_level(logging.INFO, "runners.hosting.storage.progress")
    (tmp_path / "before").write_bytes(bytes(2**20))
    with progress.Progress("s3://models/bert/", tmp_path, complete=2**20) as running:
        wait_until(lambda: len(caplog.messages) == 1)
        running.expect("weights", 2**31)
        (tmp_path / "weights.1234abcd").write_bytes(bytes(10 * 2**20))
        wait_until(lambda: len(caplog.messages) >= 3)
    lines = caplog.messages
    assert lines[0] == "s3://models/bert/: downloaded 1 MiB, 0 B/s"
    assert "s3://models/bert/: downloaded 11 MiB of 2.0 GiB, 50 MiB/s" in lines
    assert lines[-1] == "s3://models/bert/: downloaded 11 MiB of 2.0 GiB, 0 B/s"


def test_a_bar_on_a_terminal(fetch: Fetch, s3: ObjectStore) -> None:
    uri = s3.put("bar/", LARGE)
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 120))
    process = fetch.start(uri, stderr=end)
    os.close(end)
    drawn = b""
    while True:
        try:
            drawn += os.read(terminal, 4096)
        except OSError:
            break
    assert process.wait(60) == 0
    os.close(terminal)
    assert re.search(rf"{uri}: 100%\|█+\| 3\.00M/3\.00M \[", drawn.decode())


def test_storage_s_own_log_has_no_credentials(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG, "runners.hosting.storage.initializer")
    storage_logger = logging.getLogger("storage.initializer")
    with initializer.follow_log(progress.Progress("shown", tmp_path)):
        storage_logger.info("Copying contents of %s to local", "https://me:pass@host/m.zip?sig=secret")
        storage_logger.warning("anonymous access")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("DEBUG", "Copying contents of https://host/m.zip?... to local"),
        ("WARNING", "anonymous access"),
    ]
    assert storage_logger.handlers == []


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_dir": "ftp://host/bert"}, "ftp://host/bert has an unknown scheme: model_dir is a path or a URI of bentoml, file, gs, hdfs, hf, http, https, modelscope, oci, s3, webhdfs"),
        ({"model_dir": "pvc://claim/bert"}, "pvc://claim/bert is a volume of Kubernetes: mount it, as KServe does, and give its path"),
        ({"model_dir": "file:///nowhere"}, "file:///nowhere does not exist; a file URI has an absolute path, as in file:///models/bert"),
        ({"model_id": "hf://owner/model"}, "model_id is 'hf://owner/model', but it must be a hub id or a folder; --model_dir takes URIs"),
        ({"model_dir": "s3://models/bert/", "model_revision": "v1"}, "model_revision is 'v1', but s3://models/bert/ has no revisions: only hub ids and URIs of hf and modelscope have"),
        ({"model_dir": "hf://owner/model:v2", "model_revision": "v1"}, "model_revision is 'v1', but hf://owner/model:v2 names another"),
        ({"model_dir": "hf://owner/model", "tokenizer_revision": "v1"}, "tokenizer_revision cannot be set for hf://owner/model, which has one revision: set --model_id to a hub id"),
        ({"model_dir": "hf://model"}, "hf://model should be hf://owner/model or hf://owner/model:revision"),
        ({"model_dir": "hdfs://a/b"}, "hdfs URIs need the package krbcontext, which is not installed"),
    ],
)  # fmt: skip
def test_wrong_arguments(
    arguments: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    with pytest.raises(ArgumentsError) as raised:
        localize_model(Arguments.model_validate(arguments))
    assert str(raised.value) == message


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setitem(sys.modules, "kserve_storage", None)
    with pytest.raises(
        ArgumentsError, match=r"^s3://models/bert/ needs the storage extra: pip install '.\[storage\]' "
    ):
        fetch_model("s3://models/bert/")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/none.zip", "cannot be downloaded: HTTP resource not found at '{uri}'."),
        ("/forbidden.zip", "cannot be downloaded: HTTP access denied for '{uri}'. Verify permissions."),
        ("/page.zip", "cannot be downloaded: URI: {uri} did not respond with any of following 'Content-Type': "),
        ("/nonsense.tar.gz", "cannot be downloaded: BadGzipFile: Not a gzipped file (b'no')"),
        ("/nonsense.zip", "cannot be downloaded: BadZipFile: File is not a zip file"),
        ("/other.zip", "holds no config.json, so it is not a Hugging Face model; it holds a/model.onnx"),
        ("/two.zip", "holds a config.json not for all its files but in a, b: name a model"),
    ],
)  # fmt: skip
def test_wrong_archives(path: str, message: str, fetch: Fetch, web: Web) -> None:
    web.files = {
        "/page.zip": ("text/html", b"<html>"),
        "/nonsense.tar.gz": ("application/gzip", b"nonsense"),
        "/nonsense.zip": ("application/zip", b"nonsense"),
        "/other.zip": ("application/zip", zipped({"a/model.onnx": b"x"})),
        "/two.zip": ("application/zip", zipped({"a/config.json": b"{}", "b/config.json": b"{}"})),
    }
    shown = f"{web.url}{path}?..."
    error = fetch.fail(f"{web.url}{path}?sig=secret")
    assert error.startswith(f"ModelLoadError: {shown} {message.format(uri=shown)}")
    assert "secret" not in error


@pytest.mark.parametrize(
    ("uri", "environment", "message"),
    [
        ("s3://models/none/", {}, "Failed to fetch model. No model found in none/."),
        ("s3://none/bert/", {}, "S3 resource 'none' not found."),
        ("s3://models/bert/", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "S3 authentication failed. Set AWS_ACCESS_KEY_ID/AWS_SECRET_ACCESS_KEY or use awsAnonymousCredential=true."),
        ("s3://models/bert/", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "S3_MAX_ATTEMPTS": "1"}, "EndpointConnectionError: Could not connect to the endpoint URL: \"http://127.0.0.1:9/models\""),
    ],
)  # fmt: skip
def test_wrong_objects(uri: str, environment: dict[str, str], message: str, fetch: Fetch, s3: ObjectStore) -> None:
    fetch.environment = s3.environment | environment
    assert fetch.fail(uri) == f"ModelLoadError: {uri} cannot be downloaded: {message}"


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("hf://owner/none", "there is no model owner/none on the hub ({hub}/owner/none), or it is private and HF_TOKEN is not set to a token that has access to it"),
        ("hf://owner/model:none", "owner/model has no revision 'none': set --model_revision to one that {hub}/owner/model lists"),
        ("hf://owner/gated", "owner/gated is gated: accept its terms at {hub}/owner/gated, and set HF_TOKEN to the token of an account with access"),
    ],
)  # fmt: skip
def test_wrong_hub_ids(uri: str, message: str, fetch: Fetch, hub: Hub) -> None:
    assert fetch.fail(uri) == f"ModelLoadError: {message.replace('{hub}', hub.url)}"


def test_a_cache_that_cannot_be_written(tmp_path: Path, fetch: Fetch) -> None:
    (tmp_path / "file").touch()
    fetch.cache = tmp_path / "file" / "cache"
    assert fetch.fail("s3://models/bert/") == (
        f"ModelLoadError: s3://models/bert/ cannot be kept in {fetch.cache}: Not a directory; STORAGE_CACHE_DIR names "
        "another folder"
    )


def test_a_disk_that_is_full(fetch: Fetch, web: Web) -> None:
    """Here a limit of the process, whose error is the disk's in all but its number."""
    web.files["/m.zip"] = "application/zip", zipped(LARGE)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # noqa: E731
    error = fetch.fail(f"{web.url}/m.zip", preexec_fn=limit)
    assert error == f"ModelLoadError: {web.url}/m.zip cannot be downloaded: OSError: [Errno 27] File too large"
