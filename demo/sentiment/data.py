"""The human-rated sentences that vaderSentiment's source distribution ships (MIT), and their split.

They are fetched from PyPI when the model is trained or evaluated, and never to serve it.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

VERSION = "3.3.2"
# Not in git. pip downloads it there.
ARCHIVE = Path(__file__).parents[1] / "models" / f"vaderSentiment-{VERSION}.tar.gz"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_INNER = f"vaderSentiment-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = {
    "movies": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "tweets": "tweets",
    "editorials": "nytEditorialSnippets",
}


@dataclass(frozen=True)
class Sentence:
    """A sentence, where it is from, and the mean of its ratings from -4 (negative) to 4 (positive)."""

    source: str
    rating: float
    text: str

    @property
    def part(self) -> str:
        """`held_out` for a tenth, `validation` for a twentieth, else `training`.

        It hangs on the words alone, so that a sentence that occurs twice is in one part.
        """
        words = " ".join(self.text.casefold().split())
        bucket = int.from_bytes(hashlib.sha256(words.encode()).digest()[:8]) % 20
        return "held_out" if bucket < 2 else "validation" if bucket == 2 else "training"


def load_sentences() -> list[Sentence]:
    """All sentences, in the order of the files.

    Raises:
        ValueError: the archive is another one.
        subprocess.CalledProcessError: pip cannot download it.
    """
    content = fetch_archive()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ValueError(f"{ARCHIVE} is not what the model was trained on")
    with tarfile.open(fileobj=io.BytesIO(content)) as outer, tarfile.open(fileobj=_file(outer, _INNER)) as inner:
        return [
            sentence
            for source, name in SOURCES.items()
            for sentence in _parse(source, _file(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read())
        ]


def fetch_archive() -> bytes:
    """The source distribution, by pip unless it is there.

    Raises:
        subprocess.CalledProcessError: pip cannot download it.
    """
    if not ARCHIVE.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=1", "--no-deps", "--no-binary=:all:"]
        subprocess.run([*command, f"--dest={ARCHIVE.parent}", f"vaderSentiment=={VERSION}"], check=True)
    return ARCHIVE.read_bytes()


def _file(archive: tarfile.TarFile, name: str) -> io.BytesIO:
    member = archive.extractfile(name)
    if member is None:
        raise ValueError(f"{name} is no file")
    return io.BytesIO(member.read())


def _parse(source: str, content: bytes) -> list[Sentence]:
    """Lines of number, mean rating and sentence, between tabs."""
    rows = (line.split("\t", 2) for line in content.decode().splitlines() if line.strip())
    return [Sentence(source, float(rating), text.strip()) for _, rating, text in rows]
