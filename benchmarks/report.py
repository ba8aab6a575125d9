"""Tables and the plot of what `benchmarks.run` measured."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.machine import describe
from benchmarks.pairs import Ratio

# FastAPI with each of these is a reference.
_REFERENCES = ("pipeline", "onnxruntime", "openvino", "infinity")
_NAMES = {
    "pipeline": "FastAPI + pipeline", "onnxruntime": "FastAPI + ONNX Runtime", "openvino": "FastAPI + OpenVINO",
    "infinity": "Infinity",
}  # fmt: skip


def make_table(results: dict[str, Any]) -> str:
    """Markdown: for each task the ratios, and below them what they are ratios of."""
    lines = [describe(results), ""]
    for task, loads in results["tasks"].items():
        lines += [f"### {task}", "", *_ratio_rows(loads), "", *_speed_rows(loads), ""]
    return "\n".join(lines)


# What is compared with what, where both were measured.
_COMPARED = (
    *(("server", name, f"/ {_NAMES[name]}") for name in _REFERENCES),
    ("server", "model alone", "/ model alone"),
    ("server bf16", "server", "bf16 / float32"),
    ("server bf16", "model alone bf16", "bf16 / model alone bf16"),
)


def _ratio_rows(loads: list[dict[str, Any]]) -> list[str]:
    """Texts a second of the server to those of each other side: the median of the rounds (the range)."""
    names = {name for load in loads for name in load["sides"]}
    compared = [one for one in _COMPARED if {one[0], one[1]} <= names]
    if not compared:
        return []
    several = len(names & {*_REFERENCES}) > 1
    limits = "model alone" in names
    titles = [title for _, _, title in compared]
    titles += ["/ the best reference"] * several + ["model alone / matrix limit"] * limits
    rows = [f"| server, callers x texts a request | {' | '.join(titles)} |", "|---|" + len(titles) * "--:|"]
    for load in loads:
        sides = load["sides"]
        cells = [str(ratio(sides, above, below)) for above, below, _ in compared]
        if several:
            cells.append(str(ratio_to_best(sides)))
        if limits:
            # Not measured of one text at a time.
            shares = tuple(round_["of_limit"] for round_ in sides["model alone"] if "of_limit" in round_)
            cells.append(str(Ratio(shares)) if shares else "")
        rows.append(f"| {load['callers']} x {load['texts_a_request']} | {' | '.join(cells)} |")
    return rows


def _speed_rows(loads: list[dict[str, Any]]) -> list[str]:
    titles = ("texts/s", "p50 ms", "p95 ms", "p99 ms", "errors", "CPU ms a text")
    rows = [f"| | callers x texts a request | {' | '.join(titles)} |", "|---|--:|" + len(titles) * "--:|"]
    for load in loads:
        for name, rounds in load["sides"].items():
            cells = [f"{_median(rounds, 'texts_a_second'):.1f}"]
            if "p50" in rounds[0]:
                cells += [f"{_median(rounds, key):.0f}" for key in ("p50", "p95", "p99")]
                cells.append(str(sum(round_["errors"] for round_ in rounds)))
            if "cpu" in rounds[0]:
                cells.append(f"{_median(rounds, 'cpu'):.1f}")
            cells += [""] * (len(titles) - len(cells))
            load_name = f"{load['callers']} x {load['texts_a_request']}"
            rows.append(f"| {_NAMES.get(name, name)} | {load_name} | {' | '.join(cells)} |")
    return rows


def ratio(sides: dict[str, list[dict[str, Any]]], above: str, below: str) -> Ratio:
    """Of one side's texts a second to another's."""
    return Ratio.of(*([round_["texts_a_second"] for round_ in sides[name]] for name in (above, below)))


def ratio_to_best(sides: dict[str, list[dict[str, Any]]]) -> Ratio:
    """Of the server to the reference that is the fastest, by its median."""
    found = [ratio(sides, "server", name) for name in _REFERENCES if name in sides]
    return min(found, key=lambda one: one.median)


def _median(rounds: list[dict[str, Any]], key: str) -> float:
    found: float = median(round_[key] for round_ in rounds)
    return found


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of texts a second by load, with the range of the rounds; one picture for each task."""
    import matplotlib

    matplotlib.use("Agg")
    # Texts stay text: the file is small, and its hash the same for the same figures.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 9})
    from matplotlib import pyplot

    tasks = results["tasks"]
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.4), squeeze=False)
    for axis, (task, loads) in zip(axes[0], tasks.items(), strict=True):
        names = list(dict.fromkeys(name for load in loads for name in load["sides"]))
        width = 0.8 / len(names)
        for place, name in enumerate(names):
            speeds = [[round_["texts_a_second"] for round_ in load["sides"].get(name, [])] for load in loads]
            middles = [median(speed) if speed else 0 for speed in speeds]
            spread = [
                [middle - min(speed, default=0) for middle, speed in zip(middles, speeds, strict=True)],
                [max(speed, default=0) - middle for middle, speed in zip(middles, speeds, strict=True)],
            ]
            positions = [number + width * (place - (len(names) - 1) / 2) for number in range(len(loads))]
            axis.bar(positions, middles, width, yerr=spread, label=_NAMES.get(name, name), error_kw={"linewidth": 0.8})
        ticks = [f"{load['callers']} x {load['texts_a_request']}" for load in loads]
        axis.set_xticks(range(len(loads)), ticks)
        axis.set(title=task.replace("_", " "), xlabel="callers x texts a request", ylabel="texts/s")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
