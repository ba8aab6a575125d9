"""The pictures of docs/how-to/playground.md: `python -m tests.playground.screenshots` takes them and writes them.

Names of pictures are arguments, if only some are to be taken.
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from playwright.sync_api import Browser

from tests.browser import Visit, find_browser, open_browser
from tests.demo_models import make_demo_models
from tests.playground.conftest import MODELS
from tests.playground.workbench import Workbench
from tests.servers import ROOT, serve_models

FOLDER = ROOT / "docs/how-to/playground"
# A PNG with a palette has at most so many, and needs a third of the bytes.
_COLOURS = 256
# That of `make serve`, since the pictures show it.
_PORT = 3000


@dataclass(frozen=True)
class Picture:
    """What a picture shows: a view with an answer, or what `prepare` makes of it instead of sending."""

    model: str
    view: str = ""
    texts: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Workbench], None] = Workbench.send
    width: int = 1280
    height: int = 800
    scheme: Literal["light", "dark"] = "light"


def _chat(bench: Workbench) -> None:
    bench.send()
    bench.field("Message").fill("What is the capital of Germany?")
    bench.send()


def _show_python(bench: Workbench) -> None:
    bench.send()
    bench.show_code("Python")
    bench.page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")


PICTURES = {
    "classification": Picture("sentiment"),
    "entities": Picture("ner"),
    "fill-mask": Picture("bert"),
    "question-answering": Picture("qa"),
    "zero-shot": Picture("nli", "zero-shot"),
    "similarity": Picture("embed", "similarity"),
    "rerank": Picture("rerank", "rerank"),
    "sparse": Picture("splade"),
    "text-to-text": Picture("translator"),
    "chat": Picture("chat", "chat", prepare=_chat),
    "completion": Picture("chat", "completion"),
    "code": Picture("embed", "similarity", prepare=_show_python),
    "error": Picture("chat", "completion", texts={"Text": "Once more. " * 1000}),
    "dark": Picture("embed", "similarity", scheme="dark"),
    "narrow": Picture("ner", width=360, height=920),
}


def take(browser: Browser, server: str, picture: Picture) -> bytes:
    """A picture as a PNG."""
    viewport = {"width": picture.width, "height": picture.height}
    with Visit(browser, server, viewport=viewport, color_scheme=picture.scheme) as visit:
        bench = Workbench(visit)
        bench.open(picture.model, picture.view)
        for label, text in picture.texts.items():
            bench.field(label).fill(text)
        picture.prepare(bench)
        visit.page.mouse.move(0, 0)
        visit.page.wait_for_load_state("networkidle")
        shot = visit.page.screenshot(animations="disabled", caret="hide")
    written = io.BytesIO()
    _reduce_colours(Image.open(io.BytesIO(shot)).convert("RGB")).save(written, "PNG", optimize=True)
    return written.getvalue()


def _reduce_colours(image: Image.Image) -> Image.Image:
    """The image with its most frequent colours; others, which are those of the edges of letters, become similar ones.

    Pillow's own choices of a palette mix colours that are rare but matter, such as that of an error's title.
    """
    colours, indices, counts = np.unique(
        np.asarray(image, dtype=np.int32).reshape(-1, 3), axis=0, return_inverse=True, return_counts=True
    )
    palette = colours[np.argsort(-counts, kind="stable")[:_COLOURS]]
    nearest = np.square(colours[:, np.newaxis] - palette).sum(axis=2).argmin(axis=1)
    pixels = nearest[indices].reshape(image.height, image.width)
    reduced = Image.fromarray(pixels.astype(np.uint8), "P")
    reduced.putpalette(palette.ravel().tolist())
    return reduced


def main(names: list[str]) -> None:
    if find_browser() is None:
        raise SystemExit("chromium is not here: `make debian-programs` unpacks it from Debian's package")
    make_demo_models(model["model_dir"].name for model in MODELS.values())
    FOLDER.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as home,
        serve_models(Path(home), MODELS, port=_PORT) as server,
        open_browser(Path(home)) as browser,
    ):
        for name in names or PICTURES:
            (FOLDER / f"{name}.png").write_bytes(take(browser, server.url, PICTURES[name]))
            sys.stdout.write(f"{FOLDER / name}.png\n")


if __name__ == "__main__":
    main(sys.argv[1:])
