"""vLLM's `vllm bench`, of the build for CPUs too, whose distribution has another name.

python -m tests.clients.vllm_bench serve --backend openai --base-url http://localhost:3000 ...
"""

from __future__ import annotations

import sys

from runners.generator.vllm.installation import name_distribution


def main() -> None:
    name_distribution()
    from vllm.entrypoints.cli.main import main as run_vllm

    sys.argv = ["vllm", "bench", *sys.argv[1:]]
    run_vllm()


if __name__ == "__main__":
    main()
