"""Fetch vLLM's own tests of its OpenAI server, which only its source distribution has, from pip's configured index.

    python -m tests.vllm_suite.fetch vllm==0.32.0 FOLDER

`pip download` would run the build system of vLLM to learn its dependencies, so pip's parts are called instead.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from pip._internal.commands import create_command
from pip._internal.network.download import Downloader
from pip._vendor.packaging.requirements import Requirement

# The fixtures of the tests and the tests; without tests/conftest.py and tests/utils.py, which start vLLM.
MEMBERS = (
    "tests/__init__.py",
    "tests/ci_envs.py",
    "tests/entrypoints/__init__.py",
    "tests/entrypoints/conftest.py",
    "tests/entrypoints/openai/__init__.py",
    "tests/entrypoints/openai/chat_completion/__init__.py",
    "tests/entrypoints/openai/chat_completion/test_chat.py",
    "tests/entrypoints/openai/chat_completion/test_logprob_token_ids.py",
    "tests/entrypoints/openai/completion/__init__.py",
    "tests/entrypoints/openai/completion/test_completion.py",
    "tests/entrypoints/openai/test_return_token_ids.py",
    "tests/entrypoints/pooling/__init__.py",
    "tests/entrypoints/pooling/classify/__init__.py",
    "tests/entrypoints/pooling/classify/test_online.py",
    "tests/entrypoints/pooling/embed/__init__.py",
    "tests/entrypoints/pooling/embed/test_online.py",
    "tests/entrypoints/pooling/scoring/__init__.py",
    "tests/entrypoints/pooling/scoring/test_bi_encoder_online.py",
    "tests/entrypoints/pooling/scoring/test_cross_encoder_online.py",
    "tests/entrypoints/pooling/scoring/util.py",
    "tests/entrypoints/pooling/token_classify/__init__.py",
    "tests/entrypoints/pooling/token_classify/test_online.py",
    "tests/entrypoints/pooling/token_embed/__init__.py",
    "tests/entrypoints/pooling/token_embed/test_online.py",
    "tests/entrypoints/serve/__init__.py",
    "tests/entrypoints/serve/tokenize/__init__.py",
    "tests/entrypoints/serve/tokenize/test_tokenization.py",
    "tests/models/__init__.py",
    "tests/models/language/__init__.py",
    "tests/models/language/pooling/__init__.py",
    "tests/models/language/pooling/embed_utils.py",
    "tests/models/registry.py",
    "tests/models/utils.py",
)


def main(requirement: str, folder: Path) -> None:
    """Write the members of the source distribution to `folder`.

    Raises:
        SystemExit: the index does not have it; the message says so.
    """
    with tempfile.TemporaryDirectory() as scratch:
        archive = download(Requirement(requirement), Path(scratch))
        with tarfile.open(archive) as opened:
            top = archive.name.removesuffix(".tar.gz")
            for name in MEMBERS:
                member = opened.getmember(f"{top}/{name}").replace(name=name)
                opened.extract(member, folder, filter="data")


def download(requirement: Requirement, folder: Path) -> Path:
    """The source distribution of a release, whose hash is checked, as a file in `folder`.

    Raises:
        SystemExit: the index does not have it.
    """
    command: Any = create_command("download")
    options, _ = command.parse_args([f"--no-binary={requirement.name}", "--quiet", str(requirement)])
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options, session)
        found = finder.find_best_candidate(requirement.name, requirement.specifier).best_candidate
        if found is None:
            raise SystemExit(f"error: the package index has no source distribution of {requirement}")
        path, _ = Downloader(session, "off")(found.link, str(folder))
        found.link.as_hashes().check_against_path(path)
    return Path(path)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
