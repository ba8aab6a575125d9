"""Measures the GPU path, and prints one JSON line a figure:

    python -m benchmarks.gpu [--minutes 10] [--only PART ...] [--device cpu --quick]

It runs in a bare source tree: torch 2.11 or newer and transformers are enough for all parts but `servers`, which needs
this server's packages; programs that are not installed are named. `--device cpu --quick` rehearses it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from benchmarks.gpu.figures import Figures
from benchmarks.gpu.parts import Setting, measure_embeddings, measure_limit, measure_precisions, measure_switches
from benchmarks.gpu.servers import measure_servers

# Each part with its share of the time; the most important figures come first.
_PARTS: dict[str, tuple[Callable[[Setting], None], float]] = {
    "limit": (measure_limit, 0.2),
    "precisions": (measure_precisions, 0.2),
    "embeddings": (measure_embeddings, 0.1),
    "switches": (measure_switches, 0.2),
    "servers": (measure_servers, 0.3),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long it takes at most, about")
    parser.add_argument("--only", choices=_PARTS, nargs="+", help="the parts to measure, which share the minutes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small models for a moment: the figures mean nothing")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: no GPU that torch can use; --device cpu --quick rehearses the benchmark")
    if options.device == "cpu":
        torch.set_num_threads(1)
    device = torch.device(options.device)
    setting = Setting(device, options.quick, Figures(device))
    chosen = {name: part for name, part in _PARTS.items() if not options.only or name in options.only}
    total = sum(share for _, share in chosen.values())
    for measure, share in chosen.values():
        setting.figures.start(60 * options.minutes * share / total)
        measure(setting)


if __name__ == "__main__":
    main()
