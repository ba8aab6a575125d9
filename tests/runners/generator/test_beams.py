"""Beam search in continuous batches: against `generate(num_beams=...)`, and against vLLM's own beam search."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from runners.core.arguments import Arguments
from runners.core.errors import GenerationFailedError, InputError
from runners.core.generation import BeamSearch, Constraint, Sampling
from runners.generator.beams import BeamRules, Beams
from runners.generator.decoder import Decoder
from runners.generator.generation_defaults import MAX_BEAMS
from runners.generator.row_allocation import MAX_ROWS
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import GeneratorFolder
from tests.generated import PROMPTS, collect, collect_ids, copy_with_defaults, generate, load
from tests.generator_families.models import save_generator
from tests.generator_families.registry import registered_families

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


@contextmanager
def defaults_of(engine: TransformersEngine, **changed: Any) -> Iterator[None]:
    """Other defaults of the model, as `beams=BeamRules(...)`."""
    loaded = engine._model()
    engine._loaded = replace(loaded, defaults=replace(loaded.defaults, **changed))
    try:
        yield
    finally:
        engine._loaded = loaded


async def search(engine: TransformersEngine, prompt: list[int], **sampling: Any) -> list[list[int]]:
    """The token ids of all choices."""
    deltas = await collect(engine, prompt, **sampling)
    assert [delta.choice for delta in deltas] == list(range(len(deltas)))
    assert all(delta.finish_reason == ("stop" if delta.token_ids[-1] in ENDS else "length") for delta in deltas)
    return [list(delta.token_ids) for delta in deltas]


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_beams_are_those_of_generate(
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
    prompt = await engine.tokenize(data.draw(st.sampled_from(PROMPTS), "prompt"))
    expected = generate(
        model_of(family), prompt, max_new_tokens=max_tokens, num_beams=width, num_return_sequences=rules.choices,
        length_penalty=rules.length_penalty, early_stopping=rules.early_stopping, do_sample=False,
    )  # fmt: skip
    with defaults_of(engine, beams=rules):
        assert await search(engine, prompt, max_tokens=max_tokens, temperature=0) == expected


@pytest.mark.parametrize("family", FAMILIES)
async def test_beams_share_a_batch_with_others_that_join_and_leave(
    family: str, make_engine: MakeEngine, model_of: ModelOf
) -> None:
    engine = make_engine(family)

    with defaults_of(engine, beams=BeamRules(4, 2, 1.0, True)):
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


@pytest.mark.parametrize(
    "name", ["mamba-causal", "phi3-causal-longrope", "switch_transformers-seq2seq", "xlnet-causal", "bamba-causal"]
)
async def test_beams_of_models_that_run_alone_or_start_anew(name: str, tmp_path: Path) -> None:
    """A cache of their own, or a sequence that is computed anew at 40 tokens."""
    [family] = [family for family in registered_families() if str(family) == name]
    save_generator(family, tmp_path)
    model = family.auto_class.from_pretrained(tmp_path).eval()
    cases = [(list(range(9, 9 + length)), tokens) for length, tokens in ((6, 14), (33, 12), (38, 8))]
    expected = [
        # Where LongRoPE changes Phi-3's `generate` drops its cache, and loses what was in it.
        generate(
            model, prompt, max_new_tokens=tokens, num_beams=3, num_return_sequences=2, do_sample=False,
            eos_token_id=None, use_cache="longrope" not in name,
        )
        for prompt, tokens in cases
    ]  # fmt: skip
    engine = TransformersEngine(Arguments(model_dir=str(tmp_path)))
    engine.load()

    with defaults_of(engine, beams=BeamRules(3, 2)):
        found = await asyncio.gather(
            *(collect(engine, prompt, max_tokens=tokens, temperature=0, ignore_eos=True) for prompt, tokens in cases)
        )
        assert [[list(delta.token_ids) for delta in deltas] for deltas in found] == expected
    engine.close()


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

        class Search(BeamSearchOnlineMixin):  # type: ignore[misc]
            renderer: Any = SimpleNamespace(get_tokenizer=lambda: tokenizer)
            engine_client: Any = SimpleNamespace(
                input_processor=SimpleNamespace(resolve_watermarking=lambda _: None), generate=generate
            )

        self.tokenizer = tokenizer
        self._search = Search()

    async def run(self, prompt: list[int], **params: Any) -> list[list[int]]:
        from vllm.sampling_params import BeamSearchParams

        given: Any = {"type": "token", "prompt_token_ids": prompt}
        outputs = [output async for output in self._search.beam_search(given, "id", BeamSearchParams(**params))]
        return [list(output.token_ids) for output in outputs[-1].outputs]


@pytest.fixture(scope="module")
def vllm_search(folder_of: GeneratorFolder, model_of: ModelOf) -> VllmBeamSearch:
    pytest.importorskip("vllm")
    return VllmBeamSearch(model_of("llama"), AutoTokenizer.from_pretrained(folder_of("llama")))


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_beams_that_are_asked_for_are_those_of_vllm(
    data: st.DataObject, make_engine: MakeEngine, vllm_search: VllmBeamSearch
) -> None:
    width = data.draw(st.integers(1, 5), "n")
    length_penalty = data.draw(st.sampled_from([-1.0, 0.0, 1.0, 2.0]), "length_penalty")
    ignore_eos = data.draw(st.booleans(), "ignore_eos")
    max_tokens = data.draw(st.integers(1, 16), "max_tokens")
    # vLLM knows one end token, and one that is likely: some beams end.
    end = data.draw(st.sampled_from([2, 1234, 1575, 1260]), "end")
    vllm_search.tokenizer.eos_token_id = end
    engine = make_engine("llama")

    with defaults_of(engine, eos=frozenset({end})):
        prompt = await engine.tokenize(data.draw(st.sampled_from(PROMPTS), "prompt"))
        expected = await vllm_search.run(
            prompt, beam_width=width, length_penalty=length_penalty, ignore_eos=ignore_eos, max_tokens=max_tokens
        )
        deltas = await collect(
            engine, prompt, beam_search=BeamSearch(width, width, length_penalty), ignore_eos=ignore_eos,
            max_tokens=max_tokens,
        )  # fmt: skip
        # vLLM leaves the end token out.
        found = [[token for token in delta.token_ids if ignore_eos or token != end] for delta in deltas]
        assert found == expected


async def test_parameters_hold_for_every_beam(make_engine: MakeEngine, model_of: ModelOf) -> None:
    """Each has its own history; those of `transformers` and the sampler's own."""
    engine = make_engine("llama")

    with defaults_of(engine, beams=BeamRules(3, 3, 1.0, True)):
        prompt = await engine.tokenize(PROMPTS[1])
        expected = generate(
            model_of("llama"), prompt, max_new_tokens=15, min_new_tokens=9, num_beams=3, num_return_sequences=3,
            repetition_penalty=1.4, early_stopping=True, suppress_tokens=[1234], do_sample=False,
        )  # fmt: skip
        settings = {"max_tokens": 15, "repetition_penalty": 1.4, "temperature": 0}
        found = await search(engine, prompt, **settings, min_tokens=9, logit_bias={1234: -1e9})
        assert found == expected
        assert not any(set(ids[:9]) & {1234, *ENDS} for ids in found)
        penalised = await search(engine, prompt, **settings, frequency_penalty=2.0)
        assert all(len(set(ids)) == len(ids) for ids in penalised)
        assert any(len(set(ids)) < len(ids) for ids in await search(engine, prompt, max_tokens=15, temperature=0))


async def test_a_choice_is_one_delta_with_its_text_and_log_probabilities(
    make_engine: MakeEngine, model_of: ModelOf
) -> None:
    engine = make_engine("llama")

    prompt = await engine.tokenize(PROMPTS[0])
    deltas = await collect(engine, prompt, beam_search=BeamSearch(3, 2), max_tokens=8, logprobs=2, prompt_logprobs=1)
    assert [delta.choice for delta in deltas] == [0, 1]
    assert deltas[0].prompt_logprobs is not None
    assert len(deltas[0].prompt_logprobs) == len(prompt)
    assert deltas[1].prompt_logprobs is None
    scores = []
    for delta in deltas:
        assert [entry.chosen.token_id for entry in delta.logprobs] == list(delta.token_ids)
        with torch.inference_mode():
            logits = model_of("llama")(torch.tensor([[*prompt, *delta.token_ids]])).logits[0, len(prompt) - 1 : -1]
        top = logits.log_softmax(-1).topk(2)
        for entry, ids, values in zip(delta.logprobs, top.indices.tolist(), top.values.tolist(), strict=True):
            assert [each.token_id for each in entry.top] == ids
            assert [each.logprob for each in entry.top] == pytest.approx(values, abs=1e-4)
        scores.append(sum(entry.chosen.logprob for entry in delta.logprobs))
    assert scores[0] > scores[1]
    # A stop string cuts the text of a choice.
    stop = deltas[0].text[3:5]
    cut = await collect(engine, prompt, beam_search=BeamSearch(3, 2), max_tokens=8, stop=(stop,))
    assert cut[0].text == deltas[0].text[: deltas[0].text.index(stop)]
    assert (cut[0].finish_reason, cut[0].stop_reason) == ("stop", stop)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"beam_search": BeamSearch(33, 33)}, f"beam search takes n from 1 to {MAX_BEAMS}, not 33"),
        ({"beam_search": BeamSearch(2, 1, 11.0)}, "length_penalty must be from -10 to 10, not 11.0"),
        ({"beam_search": BeamSearch(2, 1, float("nan"))}, "length_penalty must be from -10 to 10, not nan"),
        ({"beam_search": BeamSearch(2), "constraint": Constraint("regex", "a")}, "beam search takes no grammar, JSON schema or other constraint: leave one of them out"),
    ],
)  # fmt: skip
async def test_a_search_that_is_not_possible_is_refused(
    sampling: dict[str, Any], message: str, make_engine: MakeEngine
) -> None:
    with pytest.raises(InputError) as refused:
        await collect(make_engine("llama"), [9, 10], **sampling)
    assert str(refused.value) == message


async def test_beams_take_the_rows_of_a_batch(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never more than there are, and none once the caller has gone."""
    engine = make_engine("gpt2")
    step = Decoder.step
    rows: list[int] = []

    def counted_step(self: Decoder, batch: Any, tokens: list[int]) -> Any:
        rows.append(len(tokens))
        return step(self, batch, tokens)

    monkeypatch.setattr(Decoder, "step", counted_step)
    wide = Sampling(beam_search=BeamSearch(20, 1), max_tokens=12, ignore_eos=True)

    prompt = await engine.tokenize(PROMPTS[0])
    await asyncio.gather(*(collect(engine, prompt, max_tokens=12, beam_search=wide.beam_search) for _ in range(5)))
    assert max(rows) == 60 <= MAX_ROWS
    leaving = asyncio.create_task(anext(engine.generate(prompt, replace(wide, max_tokens=40))))
    async with aclosing(engine.generate(prompt, Sampling(max_tokens=40, ignore_eos=True))) as other:
        while rows[-1] != 21:
            await anext(other)
        leaving.cancel()
        while rows[-1] == 21:
            await anext(other)
    assert rows[-1] == 1


async def test_a_fault_of_one_search_leaves_the_others(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("llama")

    prompt = await engine.tokenize(PROMPTS[0])
    alone = await collect_ids(engine, prompt, max_tokens=9, temperature=0)
    advance = Beams.advance

    def faulty_advance(self: Beams, logits: Any) -> Any:
        if len(self) == 2:
            raise RuntimeError("a fault")
        return advance(self, logits)

    monkeypatch.setattr(Beams, "advance", faulty_advance)
    faulty, other = await asyncio.gather(
        collect(engine, prompt, beam_search=BeamSearch(2), max_tokens=9),
        collect_ids(engine, prompt, max_tokens=9, temperature=0),
        return_exceptions=True,
    )
    assert isinstance(faulty, GenerationFailedError)
    assert other == alone
