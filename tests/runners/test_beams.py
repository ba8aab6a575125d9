"""Beam search in continuous batches: against `generate(num_beams=...)`, and against vLLM's own beam search."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runners.arguments import Arguments
from runners.generator.beams import BeamRules
from runners.generator.transformers import TransformersEngine
from tests.conftest import GeneratorFolder
from tests.generated import PROMPTS, collect, collect_ids, copy_with_defaults, generate, load

FAMILIES = ("bart", "t5", "llama", "gpt2", "mbart", "m2m_100", "pegasus_x")
# So many tokens end an output that some of a random model's beams do.
ENDS = [2, *range(40, 2000, 60)]

MakeEngine = Callable[[str], TransformersEngine]
ModelOf = Callable[[str], Any]


@pytest.fixture(scope="module")
def folder_of(generator_folder: GeneratorFolder, tmp_path_factory: pytest.TempPathFactory) -> GeneratorFolder:
    """A model whose outputs end."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            copy = tmp_path_factory.mktemp("ending") / family
            made[family] = copy_with_defaults(generator_folder(family), copy, eos_token_id=ENDS)
        return made[family]

    return make


@pytest.fixture(scope="module")
def make_engine(folder_of: GeneratorFolder) -> Iterator[MakeEngine]:
    made: dict[str, TransformersEngine] = {}

    def make(family: str) -> TransformersEngine:
        if family not in made:
            made[family] = TransformersEngine(Arguments(model_dir=str(folder_of(family))))
            made[family].load()
        return made[family]

    yield make
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="module")
def model_of(folder_of: GeneratorFolder) -> ModelOf:
    made: dict[str, Any] = {}
    return lambda family: made[family] if family in made else made.setdefault(family, load(folder_of(family)))


def with_rules(engine: TransformersEngine, rules: BeamRules) -> None:
    """Let the model search so where a request says nothing."""
    loaded = engine._model()
    engine._loaded = replace(loaded, defaults=replace(loaded.defaults, beams=rules))


async def search(engine: TransformersEngine, prompt: list[int], **sampling: Any) -> list[list[int]]:
    """The token ids of all choices."""
    deltas = await collect(engine, prompt, **sampling)
    assert [delta.choice for delta in deltas] == list(range(len(deltas)))
    assert all(delta.finish_reason == ("stop" if delta.token_ids[-1] in ENDS else "length") for delta in deltas)
    return [list(delta.token_ids) for delta in deltas]


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_beams_are_those_of_generate(
    family: str, data: st.DataObject, make_engine: MakeEngine, model_of: ModelOf
) -> None:
    width = data.draw(st.integers(2, 5), "num_beams")
    rules = BeamRules(
        width,
        data.draw(st.integers(1, width), "num_return_sequences"),
        data.draw(st.sampled_from([-1.0, 0.0, 0.6, 1.0, 2.0]), "length_penalty"),
        data.draw(st.sampled_from([True, False, "never"]), "early_stopping"),
    )
    max_tokens = data.draw(st.integers(1, 24), "max_tokens")
    engine = make_engine(family)
    prompt = asyncio.run(engine.tokenize(data.draw(st.sampled_from(PROMPTS), "prompt")))
    expected = generate(
        model_of(family), prompt, max_new_tokens=max_tokens, num_beams=width, num_return_sequences=rules.choices,
        length_penalty=rules.length_penalty, early_stopping=rules.early_stopping, do_sample=False,
    )  # fmt: skip
    with_rules(engine, rules)
    assert asyncio.run(search(engine, prompt, max_tokens=max_tokens, temperature=0)) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_share_a_batch_with_others_that_join_and_leave(
    family: str, make_engine: MakeEngine, model_of: ModelOf
) -> None:
    engine = make_engine(family)
    with_rules(engine, BeamRules(4, 2, 1.0, True))

    async def scenario() -> None:
        prompts = [await engine.tokenize(prompt) for prompt in PROMPTS]
        settings = {"max_new_tokens": 22, "do_sample": False}
        beams = [
            generate(model_of(family), prompt, **settings, num_beams=4, num_return_sequences=2, early_stopping=True)
            for prompt in prompts
        ]
        greedy = [generate(model_of(family), prompt, **settings, num_beams=1)[0] for prompt in prompts]

        async def ask(prompt: list[int], delay: float, **sampling: Any) -> list[list[int]]:
            await asyncio.sleep(delay)
            return await search(engine, prompt, max_tokens=22, **sampling)

        async def ask_greedy(prompt: list[int], delay: float) -> list[int]:
            await asyncio.sleep(delay)
            # Drawn, so that the model's beams are not asked for, of one token.
            return await collect_ids(engine, prompt, max_tokens=22, temperature=1, top_k=1)

        async def go(prompt: list[int], delay: float) -> None:
            task = asyncio.create_task(ask(prompt, delay))
            await asyncio.sleep(delay + 0.01)
            task.cancel()

        found = await asyncio.gather(
            *(ask(prompt, 0.007 * index) for index, prompt in enumerate(prompts)),
            *(ask_greedy(prompt, 0.005 * index) for index, prompt in enumerate(prompts)),
            *(go(prompt, 0.003 * index) for index, prompt in enumerate(prompts)),
        )
        assert found[:3] == beams
        assert found[3:6] == greedy

    asyncio.run(scenario())


class VllmBeamSearch:
    """vLLM's beam search, of which the engine is a stock model."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        from vllm.entrypoints.generate.beam_search.online import BeamSearchOnlineMixin

        async def generate(prompt: Any, params: Any, *_: Any, **__: Any) -> AsyncGenerator[Any, None]:
            with torch.inference_mode():
                logits = model(torch.tensor([prompt["prompt_token_ids"]])).logits[0, -1]
            top = logits.log_softmax(-1).topk(params.logprobs)
            logprobs = {
                token: SimpleNamespace(logprob=logprob)
                for token, logprob in zip(top.indices.tolist(), top.values.tolist(), strict=True)
            }
            yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason=None, logprobs=[logprobs])])

        class Search(BeamSearchOnlineMixin):
            renderer: Any = SimpleNamespace(get_tokenizer=lambda: tokenizer)
            engine_client: Any = SimpleNamespace(
                input_processor=SimpleNamespace(resolve_watermarking=lambda _: None), generate=generate
            )

        self._search = Search()

    async def run(self, prompt: list[int], **params: Any) -> list[list[int]]:
        from vllm.sampling_params import BeamSearchParams

        given: Any = {"type": "token", "prompt_token_ids": prompt}
        outputs = [output async for output in self._search.beam_search(given, "id", BeamSearchParams(**params))]
        return [list(output.token_ids) for output in outputs[-1].outputs]


@pytest.mark.parametrize("end", [2, 1234])
@pytest.mark.parametrize("ignore_eos", [False, True])
@pytest.mark.parametrize(("width", "length_penalty"), [(1, 1.0), (2, 1.0), (3, 0.0), (4, 2.0), (4, -1.0)])
def test_beams_that_are_asked_for_are_those_of_vllm(
    width: int, length_penalty: float, ignore_eos: bool, end: int, generator_folder: GeneratorFolder
) -> None:
    pytest.importorskip("vllm")
