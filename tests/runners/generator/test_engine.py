"""Generation by `transformers`, against `generate` of the same tiny models: alone, together, and interrupted."""

from __future__ import annotations

import asyncio
import re
import threading
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from runners.core.arguments import Arguments
from runners.core.engine_arguments import EngineArgument
from runners.core.errors import EngineDeadError, GenerationFailedError, InputError, ModelLoadError, ModelNotReadyError
from runners.core.generation import Chat, Sampling
from runners.generator.decoder import Batching, Decoder
from runners.generator.scheduler import Scheduler
from runners.generator.sequence_state import Output
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import GeneratorFolder
from tests.families import roberta_bpe
from tests.generators import CONFIGS, collect, complete
from tests.runners.conftest import MakeEngine
from tests.waiting import eventually

# Prompts of different lengths, which end at different lengths.
PROMPTS = (
    ("Return", 9),
    ("Open the file and return its contents as a string", 14),
    ("A", 5),
    ("An exception is raised where the given key is not in the mapping, unless a default value was given", 12),
    ("", 20),
    ("List the names", 16),
)

FAMILIES = tuple(CONFIGS)
ENCODER_DECODERS = ("t5", "bart", "pegasus_x")


def reference(folder: Path, prompt: str, max_tokens: int) -> str:
    """What `generate` makes of a prompt alone."""
    config = AutoConfig.from_pretrained(folder)
    auto_class: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto_class.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=1, do_sample=False, max_new_tokens=max_tokens
    )[0].tolist()
    before = [] if config.is_encoder_decoder else ids[0].tolist()
    text = tokenizer.decode(output, skip_special_tokens=True)
    assert isinstance(text, str)
    return text[len(tokenizer.decode(before, skip_special_tokens=True)) :]


@pytest.mark.parametrize("family", FAMILIES)
async def test_greedy_is_that_of_generate(
    family: str, make_engine: MakeEngine, generator_folder: GeneratorFolder
) -> None:
    expected = [reference(generator_folder(family), prompt, tokens) for prompt, tokens in PROMPTS]
    assert len(set(expected)) == len(PROMPTS), "the model must not say the same to all"

    async def ask(engine: TransformersEngine, prompt: str, tokens: int, delay: float) -> str:
        await asyncio.sleep(delay)
        return await complete(engine, prompt, temperature=0, max_tokens=tokens)

    # The second engine's prompts go into the cache in parts, or one by one.
    for engine in (make_engine(family), make_engine(family, max_batch_tokens=3)):
        alone = [await ask(engine, prompt, tokens, 0) for prompt, tokens in PROMPTS]
        assert alone == expected
        staggered = await asyncio.gather(
            *(ask(engine, prompt, tokens, 0.004 * index) for index, (prompt, tokens) in enumerate(PROMPTS))
        )
        assert staggered == expected


@pytest.mark.parametrize(
    ("family", "batching"),
    [(family, Batching.CONTINUOUS) for family in FAMILIES[:-1]] + [("pegasus_x", Batching.TOGETHER)],
)
def test_the_probe_finds_out_how_to_batch(family: str, batching: Batching, make_engine: MakeEngine) -> None:
    assert make_engine(family)._model().scheduler._decoder.batching is batching


async def test_rows_join_while_others_run(own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    step = Decoder.step

    def counted_step(self: Decoder, rows: Any, tokens: list[int]) -> Any:
        counts.append(len(tokens))
        return step(self, rows, tokens)

    monkeypatch.setattr(Decoder, "step", counted_step)

    prompt = await own_engine.tokenize("one two")
    first = own_engine.generate(prompt, Sampling(max_tokens=40, ignore_eos=True))
    await anext(first)
    await asyncio.gather(*(complete(own_engine, text, max_tokens=3, ignore_eos=True) for text in ("a b", "c")))
    await first.aclose()
    assert {1, 3} <= set(counts)


async def test_a_seed_gives_the_same_whatever_the_batch(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    settings = {"max_tokens": 12, "temperature": 1.5, "top_p": 0.9, "presence_penalty": 0.5}
    alone = [await complete(engine, "the value", seed=seed, **settings) for seed in range(4)]
    assert len(set(alone)) == 4
    others = [complete(engine, "other " * length, max_tokens=20) for length in range(1, 6)]
    together = await asyncio.gather(
        *(complete(engine, "the value", seed=seed, **settings) for seed in range(4)), *others
    )
    assert together[:4] == alone
    unseeded = [await complete(engine, "the value", **settings) for _ in range(3)]
    assert len(set(unseeded)) == 3


async def test_finish_reasons_and_counts(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    prompt = await engine.tokenize("Return the")
    endless = await collect(engine, prompt, temperature=0, max_tokens=10, ignore_eos=True)
    assert [delta.finish_reason for delta in endless] == [None] * 9 + ["length"]
    assert sum(len(delta.token_ids) for delta in endless) == 10
    # The token that ends a sequence counts, and has no text.
    ended = await collect(engine, prompt, temperature=0, logit_bias={2: 1e6})
    assert [(delta.text, delta.token_ids, delta.finish_reason) for delta in ended] == [("", (2,), "stop")]
    # Without max_tokens there is as much as the context has room for.
    whole = await collect(engine, prompt, temperature=0, ignore_eos=True)
    assert len(prompt) + sum(len(delta.token_ids) for delta in whole) == engine.max_length == 64
    assert whole[-1].finish_reason == "length"


async def test_an_encoder_decoder_writes_as_much_as_it_has_positions_or_the_default(make_engine: MakeEngine) -> None:
    async def count(family: str) -> int:
        deltas = await collect(make_engine(family), "Return", temperature=0, ignore_eos=True)
        return sum(len(delta.token_ids) for delta in deltas)

    assert await count("bart") == 64
    assert await count("t5") == 256


@pytest.mark.parametrize("family", ["llama", "t5"])
async def test_a_stop_string_ends_the_text_before_it(family: str, make_engine: MakeEngine) -> None:
    engine = make_engine(family)
    deltas = await collect(engine, "Return the", temperature=0, max_tokens=12, ignore_eos=True)
    text = "".join(delta.text for delta in deltas)
    # The end of one token and the beginning of the next.
    before = "".join(delta.text for delta in deltas[:6])
    stop = text[len(before) - 2 : len(before) + 2]
    stopped = await collect(
        engine, "Return the", temperature=0, max_tokens=12, ignore_eos=True, stop=("never there", stop)
    )
    assert "".join(delta.text for delta in stopped) == text[: text.index(stop)]
    assert stopped[-1].finish_reason == "stop"
    assert sum(len(delta.token_ids) for delta in stopped) < 12


async def test_log_probabilities_are_those_of_the_raw_logits(
    make_engine: MakeEngine, generator_folder: GeneratorFolder
) -> None:
    engine = make_engine("llama")
    prompt = await engine.tokenize("Return the")
    # The bias changes what is chosen, not what is told.
    asked = {"temperature": 0, "max_tokens": 1, "logit_bias": {700: 1e6}}
    plain, told = await asyncio.gather(collect(engine, prompt, **asked), collect(engine, prompt, logprobs=2, **asked))
    assert plain[0].logprobs == ()
    [entry] = told[0].logprobs
    tokenizer = AutoTokenizer.from_pretrained(generator_folder("llama"))
    model = AutoModelForCausalLM.from_pretrained(generator_folder("llama"))
    with torch.inference_mode():
        expected = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    top = expected.topk(2)
    assert entry.chosen.text == tokenizer.decode([700])
    assert entry.chosen.logprob == pytest.approx(float(expected[700]), rel=1e-4)
    assert [each.text for each in entry.top] == [tokenizer.decode([index]) for index in top.indices.tolist()]
    assert [each.logprob for each in entry.top] == pytest.approx(top.values.tolist(), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("family", "prompt", "sampling", "message"),
    [
        ("llama", 0, {}, "the prompt is empty: it has no tokens"),
        ("llama", 70, {}, "This model's maximum context length is 64 tokens, but the prompt has 70 tokens"),
        ("llama", 64, {}, "This model's maximum context length is 64 tokens, but the prompt has 64 tokens, which leaves no room for an answer"),
        ("llama", 60, {"max_tokens": 10}, "This model's maximum context length is 64 tokens, but 60 of the prompt and 10 of max_tokens were asked for: 70 tokens"),
        ("llama", 5, {"max_tokens": -1}, "max_tokens must be at least 0, not -1"),
        ("llama", 5, {"logit_bias": {3000: 1.0}}, "logit_bias has token 3000, but the vocabulary ends at 2999"),
        ("llama", 5, {"logit_bias": {-1: 1.0}}, "logit_bias has token -1, but the vocabulary ends at 2999"),
        ("bart", 65, {}, "This model's maximum context length is 64 tokens, but the prompt has 65 tokens"),
        ("bart", 5, {"max_tokens": 65}, "This model's maximum output length is 64 tokens, but 65 of max_tokens were asked for"),
    ],
)  # fmt: skip
async def test_what_cannot_be_served_is_refused(
    family: str, prompt: int, sampling: dict[str, Any], message: str, make_engine: MakeEngine
) -> None:
    with pytest.raises(InputError) as refused:
        await collect(make_engine(family), [9] * prompt, **sampling)
    assert str(refused.value) == message


@pytest.mark.parametrize("token", [-1, -(2**31), 3000])
async def test_tokens_that_are_none_are_refused_before_they_run_beside_others(
    token: int, make_engine: MakeEngine
) -> None:
    with pytest.raises(InputError, match=f"the prompt has token {token}, but the vocabulary ends at 2999"):
        await collect(make_engine("llama"), [9, token, 9])


async def test_the_operator_lowers_the_limit(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", max_length=20)
    assert engine.max_length == 20
    with pytest.raises(InputError, match="context length is 20 tokens"):
        await collect(engine, [9] * 21)


async def test_a_caller_that_goes_frees_its_row(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    prompt = await engine.tokenize("Return the")
    async with aclosing(engine.generate(prompt, Sampling(ignore_eos=True))) as deltas:
        await anext(deltas)
        assert engine.count == 1

    async def wait_for_all() -> None:
        await collect(engine, prompt, ignore_eos=True)

    cancelled = asyncio.create_task(wait_for_all())
    await asyncio.sleep(0.01)
    cancelled.cancel()
    # What comes after is served, and by then those before it have left.
    assert len(await collect(engine, prompt, max_tokens=4, ignore_eos=True)) == 4
    await eventually(lambda: engine.count == 0, seconds=5)


async def test_close_fails_what_runs(own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Decoder.step
    running = threading.Event()

    def slow_step(*given: Any) -> Any:
        running.set()
        threading.Event().wait(0.02)
        return step(*given)

    monkeypatch.setattr(Decoder, "step", slow_step)

    asked = [asyncio.create_task(collect(own_engine, "Return", ignore_eos=True)) for _ in range(3)]
    assert await asyncio.to_thread(running.wait, 30)
    await asyncio.to_thread(own_engine.close)
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        assert isinstance(outcome, ModelNotReadyError)
        assert str(outcome) == "the server is shutting down"
    assert not own_engine.failed
    with pytest.raises(ModelNotReadyError):
        await own_engine.tokenize("Return")


async def test_a_step_that_fails_leaves_the_thread_alive(
    own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty_step(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "step", faulty_step)
        with pytest.raises(GenerationFailedError, match="this output has failed: RuntimeError"):
            await collect(own_engine, "Return", max_tokens=3, ignore_eos=True)
    assert not own_engine.failed
    assert len(await collect(own_engine, "Return", max_tokens=3, ignore_eos=True)) == 3


async def test_a_text_that_fails_fails_alone(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a tokenizer that is written in Python raises."""
    engine = make_engine("llama")
    take = Output.take

    def faulty_take(self: Output, *given: Any) -> Any:
        if self._request.stop == ("faulty",):
            raise RuntimeError("a fault")
        return take(self, *given)

    alone = await complete(engine, "Return the", temperature=0, max_tokens=9)
    monkeypatch.setattr(Output, "take", faulty_take)
    faulty, other = await asyncio.gather(
        complete(engine, "Return", temperature=0, max_tokens=9, stop=("faulty",)),
        complete(engine, "Return the", temperature=0, max_tokens=9),
        return_exceptions=True,
    )
    assert re.fullmatch(
        r"this output has failed: RuntimeError; the server's log says where \(reference \w{8}\)", str(faulty)
    )
    assert other == alone


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_dead_thread_leaves_nobody_waiting(
    own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty_admit(_: Scheduler) -> None:
        raise RuntimeError("a bug")

    prompt = await own_engine.tokenize("Return")
    monkeypatch.setattr(Scheduler, "_admit", faulty_admit)
    with pytest.raises(EngineDeadError):
        await collect(own_engine, prompt)
    assert own_engine.failed
    with pytest.raises(EngineDeadError):
        await collect(own_engine, prompt)


async def test_a_chat_is_rendered_by_the_template(make_engine: MakeEngine) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "look_up"}}]
    hello = {"role": "user", "content": "hello"}

    engine = make_engine("llama")
    for given_tools, options, text in (
        (None, {}, "<user>hello<assistant>"),
        (None, {"add_generation_prompt": False}, "<user>hello"),
        (tools, {"mood": "glad"}, "<user>hello[look_up](glad)<assistant>"),
    ):
        ids = await engine.tokenize_chat(Chat([hello], given_tools, options))
        assert engine._model().vocabulary.decode(ids) == text
    with pytest.raises(InputError, match="no robots"):
        await engine.tokenize_chat(Chat([{"role": "robot", "content": ""}]))
    with pytest.raises(InputError, match="this model has no chat template: use completions"):
        await make_engine("gpt2").tokenize_chat(Chat([hello]))


def test_a_model_without_a_head_is_refused(tmp_path: Path, generator_folder: GeneratorFolder) -> None:
    model = AutoModelForCausalLM.from_pretrained(generator_folder("llama"))
    model.model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(generator_folder("llama")).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"lacks weights of LlamaForCausalLM \(lm_head.weight\)"):
        TransformersEngine(Arguments(model_dir=str(tmp_path))).load()


async def test_a_model_whose_cache_is_another_runs_alone(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=3000, hidden_size=32, num_hidden_layers=2, initializer_range=0.6, pad_token_id=1
    )
    auto_class: Any = AutoModelForCausalLM
    auto_class.from_config(config).save_pretrained(tmp_path)
    roberta_bpe().save_pretrained(tmp_path)
    engine = TransformersEngine(Arguments(model_dir=str(tmp_path)))
    engine.load()
    texts = await asyncio.gather(
        *(complete(engine, prompt, temperature=0, max_tokens=tokens) for prompt, tokens in PROMPTS)
    )
    assert texts == [reference(tmp_path, prompt, tokens) for prompt, tokens in PROMPTS]
    engine.close()


async def test_the_queue_is_counted_as_it_changes(own_engine: TransformersEngine) -> None:
    prompt = await own_engine.tokenize("Return")
    scheduler = own_engine._model().scheduler
    tasks = [asyncio.create_task(collect(own_engine, prompt, max_tokens=4, ignore_eos=True)) for _ in range(300)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert scheduler.count > 100
    for task in tasks[::3]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert len(await collect(own_engine, prompt, max_tokens=1, ignore_eos=True)) == 1
    assert len(scheduler._waiting) == 0


async def test_a_chat_template_may_be_given(generator_folder: GeneratorFolder) -> None:
    given = {"chat_template": EngineArgument("{{ messages[0].content }}, said", "the command line")}
    engine = TransformersEngine(Arguments(model_dir=str(generator_folder("gpt2")), engine=given))
    engine.load()
    try:
        ids = await engine.tokenize_chat(Chat([{"role": "user", "content": "hello"}]))
        assert await engine.detokenize(ids) == "hello, said"
        strings, special = await engine.describe_tokens(ids)
        assert "".join(strings) == "hello,\u0120said"
        assert not any(special)
    finally:
        engine.close()
