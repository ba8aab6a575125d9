"""Faults: a tokenizer that makes more than its model reads, weights that are not finite, an encoder that fails."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from runners.encoder.runner import EncoderRunner


def add_tokens(folder: Path, copy: Path, *tokens: str, special: Mapping[str, str] | None = None) -> Path:
    """A copy of a model whose tokenizer has more tokens, which the model has no embeddings for.

    Args:
        special: what special tokens are to be, such as {"mask_token": "<mask>"}.
    """
    shutil.copytree(folder, copy)
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.add_tokens(list(tokens))
    tokenizer.add_special_tokens(dict(special or {}))
    tokenizer.save_pretrained(copy)
    return copy


# The largest weights of a tiny BERT whose hidden states overflow in float16, and in no wider dtype.
LARGE_SCORES = {"layer.0.intermediate.dense.weight": 100.0, "layer.0.output.dense.weight": 60_000.0}


def change_weights(
    folder: Path, copy: Path, largest: Mapping[str, float] | None = None, last: Mapping[str, float] | None = None
) -> Path:
    """A copy of a model with other weights, which are named by the ends of their names.

    Args:
        largest: weights are scaled to have this largest number.
        last: the last number of weights becomes this.
    """
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    for name, weight in weights.items():
        for end, number in (largest or {}).items():
            if name.endswith(end):
                weight.mul_(number / weight.abs().max())
        for end, number in (last or {}).items():
            if name.endswith(end):
                weight.view(-1)[-1] = number
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


def break_token(runner: EncoderRunner, token: str) -> None:
    """Make the scores of every text with a token NaN, and of no others, once the model is loaded.

    A model whose output layer has the same weights must keep them apart (`tie_word_embeddings=False`).
    """
    loaded = runner._loaded
    assert loaded is not None
    index = loaded.encoder_task.tokenizer.convert_tokens_to_ids(token)
    assert isinstance(index, int)
    assert index != loaded.encoder_task.tokenizer.unk_token_id, f"{token!r} is no token"
    table = loaded.model.get_input_embeddings()
    assert isinstance(table, torch.nn.Embedding)
    with torch.inference_mode():
        table.weight[index] = math.nan


# The word that makes an encoder fail, see `break_encoder`.
FAULT = "qxzfault"
# Patches a module when a process imports it.
_BREAK = """
import importlib.abc, importlib.util, sys

class Breaker(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name != "{module}":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        self.loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module):
        self.loader.exec_module(module)
        patch(module)

sys.meta_path.insert(0, Breaker())

def patch(module):
{patch}
"""
_FAIL_AT_WORD = f"""
    infer = module.EncoderRunner.infer

    async def fail(runner, texts, options):
        if "{FAULT}" in str(texts):
            raise RuntimeError(str(texts))
        return await infer(runner, texts, options)

    module.EncoderRunner.infer = fail
"""
_FAIL_AS_DEVICE = """
    from pathlib import Path
    import torch
    run = module.{method}

    def fail(self, *given):
        if Path({mark!r}).exists():
            raise torch.AcceleratorError({message!r})
        return run(self, *given)

    module.{method} = fail
"""
DEVICE_FAULT = "CUDA error: device-side assert triggered"


def break_encoder(folder: Path) -> dict[str, str]:
    """The variables of a started server whose encoders fail by a fault of the server at texts with the word FAULT.

    Args:
        folder: where Python's customization is written.
    """
    return _customize(folder, "runners.encoder.runner", _FAIL_AT_WORD)


def break_device(folder: Path, mark: Path, generates: bool) -> dict[str, str]:
    """The variables of a started server whose device fails as a GPU does, in each batch or step, once a file exists.

    Args:
        folder: where Python's customization is written.
        mark: the file.
        generates: whether steps of a generator fail, or batches of an encoder.
    """
    module, method = (
        ("runners.generator.decoder", "Decoder.advance")
        if generates
        else ("runners.encoder.packing", "PackedForward.run")
    )
    patch = _FAIL_AS_DEVICE.format(method=method, mark=str(mark), message=DEVICE_FAULT)
    return _customize(folder, module, patch)


def _customize(folder: Path, module: str, patch: str) -> dict[str, str]:
    (folder / "sitecustomize.py").write_text(_BREAK.format(module=module, patch=patch))
    return {"PYTHONPATH": str(folder)}
