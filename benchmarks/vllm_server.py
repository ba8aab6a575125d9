"""vLLM's own server, the reference for generation: `python -m benchmarks.vllm_server --model ... --port ...`."""

from __future__ import annotations

import runpy

from runners.generator.vllm.installation import name_distribution

if __name__ == "__main__":
    # The build for CPUs does not find its own version otherwise.
    name_distribution()
    runpy.run_module("vllm.entrypoints.launchers.api_server.entry", run_name="__main__")
