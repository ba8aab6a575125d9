"""What a run leaves in its folder: results.json, and plots of memory, threads, descriptors and latency."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.soak.phases import Phase, count_changes
from tests.soak.tally import Tally
from tests.soak.verdict import SERIES, Verdict, find_measured, fit_growth, judge

MIB = 2**20


def judge_run(phases: Sequence[Phase], tally: Tally, log: str = "", code: int = 0) -> Verdict:
    """
    Args:
        log: what the server has said.
        code: how it ended when it was told to.
    """
    counts = {
        "threads": [phase.held.threads for phase in phases],
        "file descriptors": [phase.held.descriptors for phase in phases],
        SERIES: [phase.series for phase in phases],
    }
    faults = {
        "requests without an answer": tally.unanswered,
        "wrong answers": tally.wrong,
        "rests in which requests were not over": sum(bool(phase.unfinished) for phase in phases),
        "changes of the server's processes": count_changes(phases),
        "as the exit code of the server": code,
        "tracebacks in the log": log.count("Traceback (most recent call last)"),
    }
    requests = [phase.requests for phase in phases]
    return judge(requests, [phase.held.memory for phase in phases], counts, faults)


def show_phase(phase: Phase) -> str:
    """A line."""
    p50, p99 = phase.latencies.get("all", (0, 0))
    return (
        f"{phase.seconds:5.0f} s {phase.requests:10,} requests  {phase.held.memory / MIB:7.1f} MiB "
        f"({phase.untrimmed / MIB:.1f} before heaps are trimmed, {phase.loaded / MIB:.1f} under load, heaps use {phase.used.heap_bytes / MIB:.1f})  {phase.held.threads} threads  {phase.held.descriptors} descriptors  "
        f"p50 {1e3 * p50:.0f} ms  p99 {1e3 * p99:.0f} ms  cores: server {phase.server_cores:.2f}, "
        f"callers {phase.client_cores:.2f}{''.join(f'  UNFINISHED {each}' for each in phase.unfinished)}"
    )


def show_verdict(verdict: Verdict, tally: Tally) -> str:
    """Lines: what was sent, and what came of it."""
    lines = [
        f"{tally.requests:,} requests: {tally.answered:,} answered, {tally.left:,} whose clients left, "
        f"{tally.unanswered:,} without an answer, {tally.wrong:,} answered wrongly",
        f"memory without load: {verdict.growth}",
        *(f"FAILED: {problem}" for problem in verdict.problems),
        *(f"INCONCLUSIVE: {doubt}" for doubt in verdict.doubts),
        *(f"  {example}" for example in tally.examples),
    ]
    return "\n".join([*lines, verdict.outcome.name.lower()])


def show_used(phases: Sequence[Phase]) -> str:
    """Whether what heaps use grows too: else memory grows by fragmentation."""
    requests = [phase.requests for phase in phases]
    heaps = fit_growth(requests, [phase.used.heap_bytes for phase in phases])
    blocks = fit_growth(requests, [phase.used.python_blocks for phase in phases])
    return f"of it, what glibc's heaps use: {heaps}\n       what Python uses: {blocks}"


def write_results(folder: Path, phases: Sequence[Phase], tally: Tally, verdict: Verdict, run: dict[str, Any]) -> None:
    """
    Args:
        run: the options of the run.
    """
    growth = verdict.growth
    results = {
        "run": run,
        "outcome": verdict.outcome.name.lower(),
        "problems": verdict.problems,
        "doubts": verdict.doubts,
        "percent_per_million_requests": {
            "slope": growth.slope, "low": growth.low, "high": growth.high, "detection_limit": growth.detection_limit,
        },
        "requests": {name: getattr(tally, name) for name in ("answered", "left", "unanswered", "wrong")},
        "examples": tally.examples,
        "statuses": dict(sorted(tally.statuses.items())),
        "latency_seconds": {
            kind: {"p50": p50, "p99": p99, "requests": len(tally.latencies.get(kind, ())) or tally.answered}
            for kind, (p50, p99) in tally.quantiles().items()
        },
        "phases": [
            {**dataclasses.asdict(phase), "held": {**vars(phase.held), "processes": sorted(phase.held.processes)}}
            for phase in phases
        ],
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")


def plot(phases: Sequence[Phase], verdict: Verdict, path: Path) -> None:
    """Draw memory, threads, descriptors and latency over requests; the warm-up is grey."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "soak", "font.size": 9})
    from matplotlib import pyplot

    requests = [phase.requests for phase in phases]
    figure, axes = pyplot.subplots(2, 2, figsize=(11, 6.5))
    panels: dict[str, dict[str, list[float]]] = {
        f"memory, MiB\n{verdict.growth}": {
            "without load": [phase.held.memory / MIB for phase in phases],
            "without load, heaps not trimmed": [phase.untrimmed / MIB for phase in phases],
            "under load": [phase.loaded / MIB for phase in phases],
        },
        "latency, ms": {
            name: [1e3 * phase.latencies.get("all", (0, 0))[place] for phase in phases]
            for place, name in enumerate(("p50", "p99"))
        },
        "threads": {"threads": [phase.held.threads for phase in phases]},
        "file descriptors": {"file descriptors": [phase.held.descriptors for phase in phases]},
    }
    for axis, (title, lines) in zip(axes.flat, panels.items(), strict=True):
        for name, values in lines.items():
            axis.plot(requests, values, marker=".", label=name)
        axis.axvspan(0, requests[find_measured(requests)], color="0.93")
        axis.set_title(title, fontsize=8)
        axis.set_xlabel("requests")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
