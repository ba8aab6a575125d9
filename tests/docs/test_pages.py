"""README.md and docs/: links, lengths, generated parts, and what is not run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.application import PROTOCOLS
from protocol.http.errors import REFUSALS
from runners.core.argument_sources import read_configuration
from runners.core.arguments import GROUPS
from runners.core.declarations import ModelDeclaration
from runners.core.request_limits import RequestLimits
from runners.core.task import Task
from tests.docs.pages import DOCS, all_blocks, find_blocks, find_questions, page_names, read_page
from tests.servers import ROOT
from tools.generated_pages import PAGES, PROTECTS, generate

LONGEST_LINE = 120
# Below these lines a page is measured, or written from the code.
GENERATED = re.compile(r"^<!-- (What follows is written|Written) by ", re.MULTILINE)
# What is not run, by page, and why; whoever adds one adds it here.
NOT_TESTED = {
    "README.md": ["needs your model", "installs 2 GB", "needs Docker, a cluster, BentoCloud"],
    "docs/how-to/api-keys.md": ["needs your file"],
    "docs/how-to/azure.md": ["needs an Azure account"],
    "docs/how-to/bentoml-clients.md": [
        "needs a model that generates",
        *["a module of yours; tests/test_bentoml_clients.py starts one like it"] * 2,
    ],
    "docs/how-to/bento.md": [
        "downloads from the hub",
        "needs Docker, podman or buildah; make test-image builds by buildah",
        "needs Docker and the hub",
        "needs Docker",
        "needs a BentoCloud account",
    ],
    "docs/how-to/bulk.md": [
        "tests/test_predict_ray.py runs such a command",
        "tests/test_predict_ray.py starts such a cluster on one machine",
    ],
    "docs/how-to/check-a-gpu.md": ["needs a GPU; tests/test_gpu_commands.py rehearses it on a CPU"] * 2,
    "docs/how-to/deploy.md": [
        *["needs a cluster"] * 5, "needs GPUs and a cluster", "needs a BentoCloud account", "needs Docker",
    ],
    "docs/how-to/install.md": ["installs 2 GB", "installs 2 GB"],
    "docs/how-to/migrate-from-others.md": ["shows what is replaced", "needs your model"],
    "docs/how-to/operations.md": [
        "needs a cluster", "needs Docker", *["needs a cluster"] * 4, "takes minutes",
    ],
    "docs/how-to/predictor.md": ["needs a Triton, see make test-triton"],
    "docs/how-to/sagemaker.md": ["needs Docker and an AWS account"],
    "docs/how-to/start-anywhere.md": ["tests/test_doctor.py runs both forms"],
    "docs/how-to/storage.md": ["needs a bucket"],
    "docs/how-to/tls.md": ["needs your certificate"],
    "docs/how-to/traces.md": ["needs a collector"],
    "docs/how-to/vertex.md": ["needs a Google Cloud account"],
    "docs/tutorials/first-generation.md": ["installs 2 GB"],
    "docs/tutorials/kserve.md": ["needs Docker and a registry", *["needs a cluster"] * 3],
    "docs/tutorials/own-model.md": ["the same server once more", "downloads from the hub"],
}  # fmt: skip
# Languages whose blocks are no commands.
SHOWN = {"json", "yaml"}


def test_the_page_on_traces_names_each_variable() -> None:
    sources = [ROOT / "runners" / path for path in ("core/trace_settings.py", "hosting/tracing/process.py")]
    source = "".join(path.read_text() for path in sources)
    read = {*re.findall(r'"(OTEL_[A-Z_]+[A-Z])"', source)}
    exporter = re.findall(r'_read_first\(variables, "([A-Z_]+)"\)', source)
    exporter += re.findall(r'"([A-Z_]+)"', re.findall(r"for setting in \((.*?)\)", source)[0])
    assert len(read) > 10
    assert {*exporter} >= {"ENDPOINT", "PROTOCOL", "CLIENT_KEY"}
    named = {*re.findall(r"OTEL_[A-Z_]+[A-Z]", read_page("docs/how-to/traces.md"))}
    assert read | {f"OTEL_EXPORTER_OTLP_{name}" for name in exporter} <= named


def test_the_readme_is_a_front_page() -> None:
    assert len(read_page("README.md").splitlines()) <= 180


@pytest.mark.parametrize("page", page_names())
def test_lines_are_short(page: str) -> None:
    """But for answers, which stay as they are sent, and for what is generated."""
    text = GENERATED.split(read_page(page))[0]
    text = re.sub(r"^```json\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert [line for line in text.splitlines() if len(line) > LONGEST_LINE] == []


@pytest.mark.parametrize("page", page_names())
def test_links(page: str) -> None:
    """Files, and headings in them; `make docs` looks at the site's own."""
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", read_page(page)):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        if anchor:
            assert anchor in headings(path), f"{target}#{anchor}"


def headings(path: Path) -> set[str]:
    """The anchors of a page, as Python-Markdown and GitHub make them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


@pytest.mark.parametrize("page", page_names())
def test_files_that_are_named_exist(page: str) -> None:
    text = "\n".join(line for line in read_page(page).splitlines() if "VERSION" not in line)
    for path in re.findall(r"`((?:benchmarks|demo|deploy|docs|protocol|runners|tests|tools)/[\w./-]*)`", text):
        if not path.startswith(("benchmarks/results", "demo/models")) and "*" not in path:
            assert (ROOT / path).exists(), path


def test_every_page_is_in_the_navigation() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    for path in DOCS.rglob("*.md"):
        assert f": {path.relative_to(DOCS)}\n" in site, path


def test_every_task_has_a_page() -> None:
    pages = {path.stem.replace("-", "_") for path in (DOCS / "reference" / "tasks").glob("*.md")}
    assert pages == {*Task}


def test_the_page_of_clients_names_tests() -> None:
    """Each row names one, which exists; a row of a client in an environment of its own is marked, and its test too."""
    table = re.findall(r"^\|(.*)\|$", read_page("docs/clients.md"), re.MULTILINE)
    rows = [row for row in table if not row.startswith((" client ", "---"))]
    assert len(rows) > 40
    for row in rows:
        client, version, calls, test = (cell.strip() for cell in row.split("|"))
        assert client
        assert calls
        assert re.fullmatch(r"\d+(\.\d+)+", version), row
        path, name = re.fullmatch(r"`(tests/[\w/]+\.py)::(\w+)`", test).groups()  # type: ignore[union-attr]
        source = (ROOT / path).read_text()
        assert re.search(rf"^(?:async )?def {name}\(", source, re.MULTILINE), row
        assert client.endswith(" *") is ("pytest.mark.clients" in source), row


def test_what_is_not_run() -> None:
    found: dict[str, list[str]] = {}
    for block in all_blocks():
        if block.reason is not None:
            found.setdefault(block.page, []).append(block.reason)
    assert found == NOT_TESTED


@pytest.mark.parametrize("page", page_names())
def test_every_block_is_of_a_language_that_is_known(page: str) -> None:
    """A `bash` or `console` block would not be run."""
    assert {block.language for block in find_blocks(page, read_page(page))} <= {"sh", "python"} | SHOWN
    find_questions(page, read_page(page))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_is_generated_is_up_to_date(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert generate(page, PAGES[path]) == page, "run `make arguments-table`"


def test_every_argument_is_on_a_page() -> None:
    text = read_page("docs/reference/arguments.md") + read_page("docs/reference/limits.md")
    for group in GROUPS:
        for name in group.model_fields:
            assert f"\n- `{name}`" in text


def test_every_limit_says_what_it_protects() -> None:
    assert {*PROTECTS} == {*RequestLimits.model_fields}


def test_numbers_that_follow_from_limits() -> None:
    limits = RequestLimits()
    assert f"at most {limits.max_answer_numbers:,} numbers" in read_page("docs/reference/open-inference.md")
    masks = limits.max_answer_numbers // 30522
    assert f"{masks} masks with a\n  vocabulary of 30,522" in read_page("docs/reference/answer-options.md")
    stops = f"Here {limits.max_stop_strings} by default"
    assert stops in read_page("docs/reference/differences-from-vllm.md")


def test_the_models_files_declare_models(tmp_path: Path) -> None:
    page = "docs/how-to/several-models.md"
    path = tmp_path / "models.yaml"
    declared: list[ModelDeclaration] = []
    for block in find_blocks(page, read_page(page)):
        if block.language == "yaml":
            path.write_text(block.text)
            environment = {"API_KEYS": "a", "MODELS": "/models"}
            declared += read_configuration({"models_file": str(path)}, environment, {}).models
    assert [(model.name, model.version) for model in declared] == [
        ("sentiment", "1"), ("ner", "2"), ("embed", "1"), ("chat", "1"), ("ner", "1"),
    ]  # fmt: skip


def test_the_page_of_metrics_names_every_reason_and_protocol() -> None:
    text = read_page("docs/reference/metrics.md")
    for word in (*REFUSALS, *(name for name, _, _ in PROTOCOLS)):
        assert f"`{word}`" in text


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"],
        cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "true"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = [path.read_text(encoding="utf-8") for path in (tmp_path / "site").rglob("*.html")]
    # What a page loads is in the site.
    loaded = re.findall(
        r"<(?:script|img)[^>]*src=\"?([^\"\s>]+)|<link[^>]*rel=\"?stylesheet\"?[^>]*href=\"?([^\"\s>]+)", "".join(pages)
    )
    assert not [each for pair in loaded for each in pair if each.startswith(("http", "//"))]
