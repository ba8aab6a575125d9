"""vLLM's outputs as deltas, with log probabilities as this server's own engine describes them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from runners.core.errors import GenerationFailedError
from runners.core.generation import LEAST_LOGPROB, Delta, FinishReason, Sampling, TokenLogprob, TokenLogprobs

if TYPE_CHECKING:
    from vllm.logprobs import Logprob
    from vllm.outputs import RequestOutput


class DeltaReader:
    """Reads the outputs of one sequence, in order."""

    def __init__(self, sampling: Sampling, special: Collection[int]) -> None:
        """
        Args:
            special: the ids of special tokens; only log probabilities say which tokens are special.
        """
        skips = sampling.skip_special_tokens
        self._logprobs = _LogprobReader(sampling.logprobs or 0, special, skips)
        self._prompt_logprobs = _LogprobReader(sampling.prompt_logprobs or 0, special, skips)

    def read(self, output: RequestOutput) -> Delta:
        """
        Raises:
            GenerationFailedError: vLLM has failed to generate the output.
        """
        [generated] = output.outputs
        reason: FinishReason | None = None
        if generated.finish_reason == "error":
            raise GenerationFailedError("this output has failed in vLLM; the server's log says where")
        if generated.finish_reason is not None:
            reason = "length" if generated.finish_reason == "length" else "stop"
        ids = tuple(generated.token_ids)
        positions = self._logprobs.read(ids, generated.logprobs or ())
        prompt = None
        if output.prompt_logprobs:
            prompt = tuple(self._prompt_logprobs.read(output.prompt_token_ids or (), output.prompt_logprobs))
        logprobs = tuple(each for each in positions if each is not None)
        return Delta(generated.text, ids, reason, logprobs, generated.stop_reason, prompt_logprobs=prompt)


class _LogprobReader:
    def __init__(self, count: int, special: Collection[int], skips_special: bool) -> None:
        """
        Args:
            count: number of the most likely tokens at each position; vLLM has the chosen one beside them.
            skips_special: whether the text leaves out special tokens.
        """
        self._count = count
        self._special = special
        self._skips_special = skips_special
        self._offset = 0

    def read(
        self, token_ids: Sequence[int], positions: Sequence[Mapping[int, Logprob] | None]
    ) -> Iterator[TokenLogprobs | None]:
        """The next positions of a text; None for the first one of a prompt."""
        for token, logprobs in zip(token_ids, positions, strict=False):
            yield None if logprobs is None else self._read_position(token, logprobs)

    def _read_position(self, token: int, logprobs: Mapping[int, Logprob]) -> TokenLogprobs:
        entries = {each: self._describe(each, logprob) for each, logprob in logprobs.items()}
        chosen, offset = entries[token], self._offset
        self._offset += 0 if chosen.special and self._skips_special else len(chosen.text)
        best = sorted((entry for entry in entries.values() if entry.rank <= self._count), key=lambda entry: entry.rank)
        return TokenLogprobs(chosen, tuple(best), offset)

    def _describe(self, token: int, logprob: Logprob) -> TokenLogprob:
        text, value = logprob.decoded_token or "", max(logprob.logprob, LEAST_LOGPROB)
        return TokenLogprob(token, text, text.encode(), value, logprob.rank or 0, token in self._special)
