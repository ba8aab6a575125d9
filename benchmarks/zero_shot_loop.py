"""Zero-shot classification as most start with it: `transformers`' pipeline, called for one text after another.

    python -m benchmarks.zero_shot_loop FOLDER REQUEST.json

The request is {"texts": [...], "labels": [...]}. Prints a line when the model is loaded, and then for every line that
it reads, a number of seconds, how many texts a second it did in that time. The pipeline runs one pair of text and label
at a time, as it does where it is given no batch_size.
"""

from __future__ import annotations

import json
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

from transformers import pipeline


def main(folder: str, texts: list[str], labels: list[str]) -> None:
    classify: Any = pipeline("zero-shot-classification", folder, device="cpu")
    endless = cycle(texts)
    classify(next(endless), candidate_labels=labels)
    _say("ready")
    for line in sys.stdin:
        start = time.perf_counter()
        done = 0
        while (passed := time.perf_counter() - start) < float(line):
            classify(next(endless), candidate_labels=labels)
            done += 1
        _say(str(done / passed))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(Path(sys.argv[2]).read_text()))
