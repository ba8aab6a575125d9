"""Drive a started server with mixed traffic, and say whether it keeps memory, threads or file descriptors.

    python -m tests.soak --minutes 15 --workers 1 --seed 0 --out DIR

It exits with 0 if it keeps nothing and answers everything rightly, with 1 if it does not, and with 2 if the run is too
short to tell whether memory grows by 1 % per million requests. The folder gets results.json and soak.svg.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from random import Random

import uvloop

from tests.attack.harness import raise_file_limit
from tests.servers import ServerProcess
from tests.soak.driver import Driver, Reloader
from tests.soak.phases import Phase, Run
from tests.soak.report import judge_run, plot, show_phase, show_used, show_verdict, write_results
from tests.soak.servers import HEAPS, make_models, start_server
from tests.soak.tally import Tally
from tests.soak.traffic import Traffic


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--workers", type=int, default=1, help="processes of the server")
    parser.add_argument("--callers", type=int, default=64, help="requests at once")
    parser.add_argument("--seed", type=int, default=0, help="of the order in which callers ask")
    parser.add_argument("--arg", action="append", default=[], metavar="NAME=VALUE", help="a further one of the server")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/soak"))
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    tally = Tally()
    with tempfile.TemporaryDirectory() as name:
        models = make_models(Path(name))
        server = start_server(models, Path(name), f"workers={given.workers}", *given.arg)
        raise_file_limit()
        try:
            phases = uvloop.run(_drive(server, Path(name), models, tally, given))
        finally:
            code = server.terminate()
        log = server.output
    verdict = judge_run(phases, tally, log, code)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "server.log").write_text(log)
    write_results(given.out, phases, tally, verdict, {**vars(given), "out": str(given.out)})
    plot(phases, verdict, given.out / "soak.svg")
    _print(show_used(phases))
    _print(show_verdict(verdict, tally))
    return verdict.outcome.value


async def _drive(
    server: ServerProcess, folder: Path, models: dict[str, Path], tally: Tally, given: argparse.Namespace
) -> list[Phase]:
    random = Random(given.seed)
    driver = Driver(server.port, server.grpc_port, given.callers, random, tally)
    reloader = Reloader(server.port, models, tally)
    await driver.ask_each_once()
    await driver.fill_pools(reloader)
    traffic = Traffic(driver.weigh_actions(), random)
    run = Run(server.pid, server.port, folder / HEAPS, traffic, tally)
    try:
        await run.go_on(60 * given.minutes, lambda phase: _print(show_phase(phase)), reloader.load_in_turn)
    finally:
        await traffic.close()
        await driver.close()
    return run.phases


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
