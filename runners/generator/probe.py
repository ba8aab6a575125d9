"""What a model can do, found out by trying at load: batches of which kind, and packed linear layers."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from runners.encoder.difference import TOLERANCES
from runners.encoder.linear import pack_linears
from runners.errors import ModelLoadError, brief
from runners.generator.decoding import Batching, Decoder, Rows

# How far they may be where nothing shares a batch: caches of some models are a little off, as in `generate`.
_TOLERANCE_ALONE = 1e-1


@torch.inference_mode()
def choose_batching(decoder: Decoder) -> str:
    """Set `decoder.batching` to the first way that gives what the model gives without a cache.

    Returns:
        What was chosen and why, for the log.

    Raises:
        ModelLoadError: the model gives something else even alone, or nothing: it does not take this kind of cache.
    """
    name = type(decoder.model).__name__
    reasons = []
    try:
        probe = _Probe(decoder)
    except Exception as error:
        raise ModelLoadError(f"{name} cannot be generated with: {brief(error)}") from error
    for batching in Batching:
        decoder.batching = batching
        tolerance = _TOLERANCE_ALONE if batching is Batching.ALONE else TOLERANCES[decoder.model.dtype]
        try:
            difference = probe.compare()
            if not difference <= tolerance:
                raise ValueError(f"its logits differ by {difference:.0e} of the largest")
        except Exception as error:
            reasons.append(f"not {batching}: {brief(error)}")
        else:
            return "; ".join([f"{batching}: {name} gives the same as without a cache ({difference:.0e})", *reasons])
    raise ModelLoadError(f"{name} cannot be generated with: {'; '.join(reasons)}")


class _Probe:
    """Sequences of unequal lengths, of which some join one that runs, and what the model says of each alone."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        vocabulary = decoder.model.config.get_text_config(decoder=True).vocab_size
        random = torch.Generator().manual_seed(0)
        # A token that padding masks or embeddings make special would be no test of positions: none is below 8.
        self._prompts, self._outputs = (
            [
                torch.randint(min(8, vocabulary - 1), vocabulary, (length,), generator=random).tolist()
                for length in lengths
            ]
            for lengths in ((5, 23, 2), (7, 7, 7))
        )
        self._expected = list(map(self._without_cache, self._prompts, self._outputs))

    def compare(self) -> float:
        """The largest difference, in parts of the largest logit."""
        match self._decoder.batching:
            case Batching.CONTINUOUS:
                found = self._run_joining()
            case Batching.TOGETHER:
                found = self._run([0, 1, 2])
            case Batching.ALONE:
                found = [logits for row in range(3) for logits in self._run([row])]
        largest = max(float(expected.abs().max()) for expected in self._expected)
        return max(float((logits - self._expected[row][step]).abs().max()) for row, step, logits in found) / largest

    def _run(self, indices: list[int]) -> list[tuple[int, int, Tensor]]:
        """Rows that start together; (row, step, logits) of each."""
        rows, found = self._start(indices)
        for step in range(1, 7):
            if step == 4 and len(indices) > 1:
                del indices[1]
                rows.keep([0, 2])
            found += self._step(rows, indices, [step] * len(indices))
        return found

    def _run_joining(self) -> list[tuple[int, int, Tensor]]:
        """The first row runs, the others join it, it leaves, and then the longest does."""
        rows, found = self._start([0])
        for step in (1, 2):
            found += self._step(rows, [0], [step])
        joining, found_first = self._start([1, 2])
        rows.join(joining)
        found += found_first
        for step in (1, 2):
            found += self._step(rows, [0, 1, 2], [step + 2, step, step])
        rows.keep([1, 2])
        found += self._step(rows, [1, 2], [3, 3])
        rows.keep([1])
        return found + self._step(rows, [2], [4])

    def _start(self, indices: list[int]) -> tuple[Rows, list[tuple[int, int, Tensor]]]:
        prefill = self._decoder.start([self._prompts[index] for index in indices])
        # In two parts, where a model can.
        logits = self._decoder.advance(prefill, prefill.ids.numel() // 2 + 1)
        while logits is None:
            logits = self._decoder.advance(prefill, prefill.ids.numel())
        return prefill.rows, [(index, 0, logits[row]) for row, index in enumerate(indices)]

    def _step(self, rows: Rows, indices: list[int], steps: list[int]) -> list[tuple[int, int, Tensor]]:
        tokens = [self._outputs[index][step - 1] for index, step in zip(indices, steps, strict=True)]
        logits = self._decoder.step(rows, tokens)
        return [(index, step, logits[row]) for row, (index, step) in enumerate(zip(indices, steps, strict=True))]

    def _without_cache(self, prompt: list[int], output: list[int]) -> Tensor:
        """The logits of the first token and of each after those of the output, [steps, vocabulary]."""
        model = self._decoder.model
        if self._decoder.has_encoder:
            start = self._decoder.start_token
            inputs = {"input_ids": [prompt], "decoder_input_ids": [[start, *output]]}
        else:
            inputs = {"input_ids": [prompt + output]}
        tensors = {name: torch.tensor(ids, device=model.device) for name, ids in inputs.items()}
        logits: Tensor = model(**tensors, use_cache=False).logits
        return logits[0, -len(output) - 1 :]


@torch.inference_mode()
def speed_up(model: PreTrainedModel) -> str:
    """Pack linear layers where that is faster and the model runs with them; what was done, for the log."""
    ids = torch.tensor([[0, 1]], device=model.device)
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})}

    def run() -> Tensor:
        logits: Tensor = model(**inputs, use_cache=False).logits
        return logits

    try:
        expected = run()
    except Exception as error:
        return f"stock linear layers: {type(model).__name__} does not run on a trial ({brief(error)})"
    return pack_linears(model, run, expected)
