"""Generation by `transformers`, against `generate` of the same tiny models: alone, together, and interrupted."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from runners.arguments import Arguments
from runners.errors import EngineDeadError, InputError, ModelLoadError, ModelNotReadyError
from runners.generation import Constraint, Delta, Sampling, TokenLogprobs
from runners.generator import scheduler
from runners.generator.decoding import Batching, Decoder
from runners.generator.scheduler import Scheduler
from runners.generator.transformers import TransformersEngine
from tests.conftest import GeneratorFolder
from tests.families import roberta_bpe
from tests.generators import CONFIGS

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

MakeEngine = Callable[..., TransformersEngine]


@pytest.fixture(scope="module")
def make_engine(generator_folder: GeneratorFolder) -> Iterator[MakeEngine]:
    """A loaded engine: `make_engine("llama", max_batch_tokens=4)`; one for all tests that ask for the same."""
    made: dict[str, TransformersEngine] = {}

    def make(family: str, **arguments: Any) -> TransformersEngine:
        key = f"{family}-{arguments}"
        if key not in made:
            made[key] = TransformersEngine(Arguments(model_dir=str(generator_folder(family)), **arguments))
            made[key].load()
        return made[key]

    yield make
    for engine in made.values():
        engine.close()


@pytest.fixture
def own_engine(generator_folder: GeneratorFolder) -> Iterator[TransformersEngine]:
    """An engine that a test may spoil."""
    engine = TransformersEngine(Arguments(model_dir=str(generator_folder("gpt2"))))
    engine.load()
    yield engine
    engine.close()


async def collect(engine: TransformersEngine, prompt: str | list[int], **sampling: Any) -> list[Delta]:
    ids = await engine.tokenize(prompt) if isinstance(prompt, str) else prompt
    return [delta async for delta in engine.generate(ids, Sampling(**sampling))]


async def complete(engine: TransformersEngine, prompt: str | list[int], **sampling: Any) -> str:
    return "".join(delta.text for delta in await collect(engine, prompt, **sampling))


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
def test_greedy_is_that_of_generate(family: str, make_engine: MakeEngine, generator_folder: GeneratorFolder) -> None:
    expected = [reference(generator_folder(family), prompt, tokens) for prompt, tokens in PROMPTS]
    assert len(set(expected)) == len(PROMPTS), "the model must not say the same to all"

    async def scenario(engine: TransformersEngine) -> None:
        async def ask(prompt: str, tokens: int, delay: float) -> str:
            await asyncio.sleep(delay)
            return await complete(engine, prompt, temperature=0, max_tokens=tokens)

        alone = [await ask(prompt, tokens, 0) for prompt, tokens in PROMPTS]
        assert alone == expected
        staggered = await asyncio.gather(
            *(ask(prompt, tokens, 0.004 * index) for index, (prompt, tokens) in enumerate(PROMPTS))
        )
        assert staggered == expected

    asyncio.run(scenario(make_engine(family)))
    # Prompts that go into the cache in parts, or one by one.
    asyncio.run(scenario(make_engine(family, max_batch_tokens=3)))


@pytest.mark.parametrize(
    ("family", "batching"),
    [(family, Batching.CONTINUOUS) for family in FAMILIES[:-1]] + [("pegasus_x", Batching.TOGETHER)],
)
def test_the_probe_finds_out_how_to_batch(family: str, batching: Batching, make_engine: MakeEngine) -> None:
    assert make_engine(family)._model().scheduler._decoder.batching is batching


def test_rows_join_while_others_run(own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    step = Decoder.step

    def counted_step(self: Decoder, rows: Any, tokens: list[int]) -> Any:
        counts.append(len(tokens))
        return step(self, rows, tokens)

    monkeypatch.setattr(Decoder, "step", counted_step)

    async def scenario() -> None:
        prompt = await own_engine.tokenize("one two")
        first = own_engine.generate(prompt, Sampling(max_tokens=40, ignore_eos=True))
        await anext(first)
        await asyncio.gather(*(complete(own_engine, text, max_tokens=3, ignore_eos=True) for text in ("a b", "c")))
        await first.aclose()

    asyncio.run(scenario())
    assert {1, 3} <= set(counts)


def test_a_seed_gives_the_same_whatever_the_batch(make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
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

    asyncio.run(scenario(make_engine("llama")))


def test_finish_reasons_and_counts(make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
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

    asyncio.run(scenario(make_engine("llama")))


def test_an_encoder_decoder_writes_as_much_as_it_has_positions_or_the_default(make_engine: MakeEngine) -> None:
    async def count(family: str) -> int:
        deltas = await collect(make_engine(family), "Return", temperature=0, ignore_eos=True)
        return sum(len(delta.token_ids) for delta in deltas)

    assert asyncio.run(count("bart")) == 64
    assert asyncio.run(count("t5")) == 256


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_stop_string_ends_the_text_before_it(family: str, make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
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

    asyncio.run(scenario(make_engine(family)))


def test_log_probabilities_are_those_of_the_raw_logits(
    make_engine: MakeEngine, generator_folder: GeneratorFolder
) -> None:
    async def scenario(engine: TransformersEngine) -> None:
        prompt = await engine.tokenize("Return the")
        # The bias changes what is chosen, not what is told.
        asked = {"temperature": 0, "max_tokens": 1, "logit_bias": {700: 1e6}}
        plain, told = await asyncio.gather(
            collect(engine, prompt, **asked), collect(engine, prompt, logprobs=2, **asked)
        )
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

    asyncio.run(scenario(make_engine("llama")))


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
def test_what_cannot_be_served_is_refused(
    family: str, prompt: int, sampling: dict[str, Any], message: str, make_engine: MakeEngine
) -> None:
    with pytest.raises(InputError) as refused:
        asyncio.run(collect(make_engine(family), [9] * prompt, **sampling))
    assert str(refused.value) == message


def test_the_operator_lowers_the_limit(make_engine: MakeEngine) -> None:
    engine = make_engine("llama", max_length=20)
    assert engine.max_length == 20
    with pytest.raises(InputError, match="context length is 20 tokens"):
        asyncio.run(collect(engine, [9] * 21))


def test_a_caller_that_goes_frees_its_row(make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
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
        for _ in range(500):
            if engine.count == 0:
                break
            await asyncio.sleep(0.01)
        assert engine.count == 0

    asyncio.run(scenario(make_engine("llama")))


def test_close_fails_what_runs(own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Decoder.step
    running = threading.Event()

    def slow_step(*given: Any) -> Any:
        running.set()
        threading.Event().wait(0.02)
        return step(*given)

    monkeypatch.setattr(Decoder, "step", slow_step)

    async def scenario() -> None:
        asked = [asyncio.create_task(collect(own_engine, "Return", ignore_eos=True)) for _ in range(3)]
        assert await asyncio.to_thread(running.wait, 30)
        await asyncio.to_thread(own_engine.close)
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, ModelNotReadyError)
            assert str(outcome) == "the server is shutting down"
        assert not own_engine.failed
        with pytest.raises(ModelNotReadyError):
            await own_engine.tokenize("Return")

    asyncio.run(scenario())


def test_a_step_that_fails_fails_its_batch_only(
    own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty_step(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    async def scenario() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Decoder, "step", faulty_step)
            with pytest.raises(RuntimeError, match="out of memory"):
                await collect(own_engine, "Return", max_tokens=3, ignore_eos=True)
        assert not own_engine.failed
        assert len(await collect(own_engine, "Return", max_tokens=3, ignore_eos=True)) == 3

    asyncio.run(scenario())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_thread_leaves_nobody_waiting(own_engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty_admit(_: Scheduler) -> None:
        raise RuntimeError("a bug")

    async def scenario() -> None:
        prompt = await own_engine.tokenize("Return")
        monkeypatch.setattr(Scheduler, "_admit", faulty_admit)
        with pytest.raises(EngineDeadError):
            await collect(own_engine, prompt)
        assert own_engine.failed
        with pytest.raises(EngineDeadError):
            await collect(own_engine, prompt)

    asyncio.run(scenario())


def test_a_chat_is_rendered_by_the_template(make_engine: MakeEngine) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "look_up"}}]
    hello = {"role": "user", "content": "hello"}

    async def scenario(engine: TransformersEngine) -> None:
        for given_tools, options, text in (
            (None, {}, "<user>hello<assistant>"),
            (None, {"add_generation_prompt": False}, "<user>hello"),
            (tools, {"mood": "glad"}, "<user>hello[look_up](glad)<assistant>"),
        ):
            ids = await engine.tokenize_chat([hello], given_tools, options)
            assert engine._model().vocabulary.decode(ids) == text
        with pytest.raises(InputError, match="no robots"):
            await engine.tokenize_chat([{"role": "robot", "content": ""}], None)

    asyncio.run(scenario(make_engine("llama")))
    with pytest.raises(InputError, match="this model has no chat template: use completions"):
        asyncio.run(make_engine("gpt2").tokenize_chat([hello], None))


def test_a_model_without_a_head_is_refused(tmp_path: Path, generator_folder: GeneratorFolder) -> None:
    model = AutoModelForCausalLM.from_pretrained(generator_folder("llama"))
    model.model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(generator_folder("llama")).save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"lacks weights of LlamaForCausalLM \(lm_head.weight\)"):
        TransformersEngine(Arguments(model_dir=str(tmp_path))).load()


def test_a_model_whose_cache_is_another_runs_alone(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=3000, hidden_size=32, num_hidden_layers=2, initializer_range=0.6, pad_token_id=1
    )
    auto_class: Any = AutoModelForCausalLM
    auto_class.from_config(config).save_pretrained(tmp_path)
    roberta_bpe().save_pretrained(tmp_path)
    engine = TransformersEngine(Arguments(model_dir=str(tmp_path)))
    engine.load()

    async def ask_all() -> list[str]:
        return await asyncio.gather(
            *(complete(engine, prompt, temperature=0, max_tokens=tokens) for prompt, tokens in PROMPTS)
        )

    assert asyncio.run(ask_all()) == [reference(tmp_path, prompt, tokens) for prompt, tokens in PROMPTS]
    engine.close()


def stop_reason(deltas: list[Delta]) -> tuple[Any, Any]:
    return deltas[-1].finish_reason, deltas[-1].stop_reason


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def ids_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def test_stop_tokens_and_strings_say_why(make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
        free = await collect(engine, "Return the", **asked)
        ids, text = ids_of(free), text_of(free)
        assert stop_reason(free) == ("length", None)
        third = ids[2]
        first = ids.index(third)
        by_token = await collect(engine, "Return the", stop_token_ids=(third,), **asked)
        assert ids_of(by_token) == ids[: first + 1]
        assert text_of(by_token) == text_of(free[:first])
        assert stop_reason(by_token) == ("stop", third)
        shown = await collect(engine, "Return the", stop_token_ids=(third,), include_stop=True, **asked)
        assert text_of(shown) == text_of(free[: first + 1])
        stop = text[8:12]
        for include, end in ((False, text.index(stop)), (True, text.index(stop) + 4)):
            by_text = await collect(engine, "Return the", stop=("never", stop), include_stop=include, **asked)
            assert text_of(by_text) == text[:end]
            assert stop_reason(by_text) == ("stop", stop)
        late = await collect(engine, "Return the", stop=(text[0],), min_tokens=5, **asked)
        assert len(ids_of(late)) > 5
        ended = await collect(engine, "Return the", temperature=0, logit_bias={2: 1e6})
        assert stop_reason(ended) == ("stop", None)
        forced = await collect(engine, "Return the", temperature=0, logit_bias={2: 1e6}, min_tokens=3, max_tokens=9)
        assert len(ids_of(forced)) == 4

    asyncio.run(scenario(make_engine("llama")))


def test_special_tokens_are_left_out_unless_asked_for(make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "allowed_token_ids": (3,)}
        assert text_of(await collect(engine, "Return", **asked)) == ""
        assert text_of(await collect(engine, "Return", skip_special_tokens=False, **asked)) == "<unk><unk>"

    asyncio.run(scenario(make_engine("llama")))


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_bad_words_are_not_generated(family: str, make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
        free = ids_of(await collect(engine, "Return the", **asked))
        vocabulary = engine._model().vocabulary
        word = next(text for token in free if (text := vocabulary.text(token).strip()) and text.isalpha())
        forbidden = await collect(engine, "Return the", bad_words=(word,), **asked)
        assert ids_of(forbidden) != free
        tokens = vocabulary.tokenizer.encode(word, add_special_tokens=False)
        if len(tokens) == 1:
            assert tokens[0] not in ids_of(forbidden)

    asyncio.run(scenario(make_engine(family)))


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"stop_token_ids": (3000,)}, "stop_token_ids has token 3000, but the vocabulary ends at 2999"),
        ({"allowed_token_ids": (1, -1)}, "allowed_token_ids has token -1, but the vocabulary ends at 2999"),
        ({"allowed_token_ids": ()}, "allowed_token_ids is empty: no token could be generated"),
        ({"logprob_token_ids": (3000,)}, "logprob_token_ids has token 3000, but the vocabulary ends at 2999"),
        ({"logprob_token_ids": (1,) * 129}, "logprob_token_ids has 129 tokens, 128 are the most"),
        ({"logprob_token_ids": (1, 2), "logprobs": 3}, "logprobs is 3, but logprob_token_ids has 2 tokens: leave it out"),
        ({"bad_words": ("",)}, "bad_words has an empty text"),
        ({"bad_words": tuple(map(str, range(300)))}, "bad_words has more than 128 words or 1024 tokens, each word counted with and without a space before"),
        ({"min_tokens": -1}, "min_tokens must be at least 0, not -1"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5, but max_tokens is 4"),
        ({"constraint": Constraint("regex", "(")}, "the regex cannot be used: at 1(8): invalid regex"),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit_are_refused(
    sampling: dict[str, Any], message: str, make_engine: MakeEngine
) -> None:
    with pytest.raises(InputError) as refused:
        asyncio.run(collect(make_engine("llama"), [9] * 5, **sampling))
    assert str(refused.value).startswith(message)


def test_max_tokens_of_0_only_computes_the_prompt(make_engine: MakeEngine) -> None:
    for family in ("llama", "t5"):
        [delta] = asyncio.run(collect(make_engine(family), "Return the", max_tokens=0))
        assert delta == Delta("", (), "length")
    # As long as the context.
    [delta] = asyncio.run(collect(make_engine("llama"), [9] * 64, max_tokens=0, prompt_logprobs=0))
    assert delta.prompt_logprobs is not None
    assert len(delta.prompt_logprobs) == 64


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_prompt_log_probabilities_are_the_models(
    family: str, make_engine: MakeEngine, generator_folder: GeneratorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(generator_folder(family))
    # A few tokens at a time.
    monkeypatch.setattr(scheduler, "_MOST_LOGITS", 3000 * 14)

    async def scenario(engine: TransformersEngine) -> None:
        prompts = [await engine.tokenize(prompt) for prompt, _ in PROMPTS]
        plain = await collect(engine, prompts[1], temperature=0, max_tokens=4, logprobs=0)
        together = await asyncio.gather(
            *(collect(engine, prompt, temperature=0, max_tokens=1, prompt_logprobs=2) for prompt in prompts),
            collect(engine, prompts[1], temperature=0, max_tokens=4, logprobs=0),
        )
        assert ids_of(together[-1]) == ids_of(plain)
        assert together[-1][0].prompt_logprobs is None
        for prompt, deltas in zip(prompts, together, strict=False):
            found = deltas[0].prompt_logprobs
            assert found is not None
            assert found[0] is None
            assert [entry.chosen.token_id for entry in found[1:] if entry is not None] == prompt[1:]
            with torch.inference_mode():
                expected = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
            for position, entry in enumerate(found[1:]):
                assert entry is not None
                row = expected[position]
                chosen = float(row[entry.chosen.token_id])
                assert entry.chosen.logprob == pytest.approx(chosen, rel=1e-3, abs=1e-3)
                assert abs(entry.chosen.rank - int((row >= chosen).sum())) <= 1
                assert [top.logprob for top in entry.top] == pytest.approx(
                    row.topk(2).values.tolist(), rel=1e-3, abs=1e-3
                )
            text = engine._model().vocabulary.decode(prompt, skip_special_tokens=True)
            assert all(entry is None or text[entry.offset :].startswith(shown(entry)) for entry in found)

    def shown(entry: TokenLogprobs) -> str:
        return "" if entry.chosen.token_id < 5 else entry.chosen.text

    asyncio.run(scenario(make_engine(family)))


def test_an_encoder_decoder_has_no_log_probabilities_of_its_prompt(make_engine: MakeEngine) -> None:
    with pytest.raises(InputError, match="an encoder-decoder has no log probabilities of its prompt"):
        asyncio.run(collect(make_engine("t5"), "Return", prompt_logprobs=1))


def test_log_probabilities_have_bytes_and_offsets_of_the_text(make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
        rocket = engine._model().vocabulary.tokenizer.encode("\U0001f680", add_special_tokens=False)
        word = engine._model().vocabulary.tokenizer.encode(" the", add_special_tokens=False)
        deltas: list[Delta] = []
        prompt = [0, *word]
        for token in [*word, *rocket, *word, 2]:
            deltas += await collect(
                engine, prompt, temperature=0, max_tokens=1, allowed_token_ids=(token,), logprobs=1, ignore_eos=True
            )
        entries = [entry for delta in deltas for entry in delta.logprobs]
        assert [entry.chosen.data for entry in entries] == [
            b" the",
            b"\xf0",
            b"\x9f",
            b"\x9a",
            b"\x80",
            b" the",
            b"</s>",
        ]
        # In one sequence.
        request = Constraint("regex", " the\U0001f680 the")
        spelled = await collect(engine, prompt, temperature=0, max_tokens=12, logprobs=0, constraint=request)
        assert text_of(spelled) == " the\U0001f680 the"
        offsets = [entry.offset for delta in spelled for entry in delta.logprobs]
        data = [entry.chosen.data for delta in spelled for entry in delta.logprobs]
        assert b"".join(data[:-1]).decode() == " the\U0001f680 the"
        # Those of the rocket's parts are that of the rocket.
        assert offsets[data.index(b"\xf0")] == offsets[data.index(b"\x80")] == 4
        assert offsets[-1] == len(" the\U0001f680 the")

    asyncio.run(scenario(make_engine("llama")))


def test_constraints_hold_beside_others_and_fail_alone(make_engine: MakeEngine) -> None:
    async def scenario(engine: TransformersEngine) -> None:
        asked: dict[str, Any] = {"temperature": 0, "max_tokens": 40}
        free = await complete(engine, "Return the", temperature=0, max_tokens=12)
        schema = '{"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false}'
        found = await asyncio.gather(
            collect(
                engine,
                "Return",
                constraint=Constraint("json", schema),
                logit_bias=dict.fromkeys(range(20), -50.0),
                **asked,
            ),
            collect(
                engine, "Return", constraint=Constraint("choice", ("yes", "no")), ignore_eos=True, min_tokens=9, **asked
            ),
            collect(engine, "Return", constraint=Constraint("regex", "[0-9]{3}"), logprobs=2, **asked),
            collect(engine, "Return", constraint=Constraint("regex", "("), **asked),
            complete(engine, "Return the", temperature=0, max_tokens=12),
            return_exceptions=True,
        )
        schema_deltas, choice, digits, refused, beside = found
        assert beside == free
        assert isinstance(refused, InputError)
        assert not isinstance(schema_deltas, BaseException | str)
        assert not isinstance(choice, BaseException | str)
        assert not isinstance(digits, BaseException | str)
        assert text_of(choice) in ("yes", "no")
        assert stop_reason(choice) == ("stop", None)
        assert len(text_of(digits)) == 3
        assert text_of(digits).isdecimal()
        # Whitespace is the model's choice, and its weights are random.
        if schema_deltas[-1].finish_reason == "stop":
            assert isinstance(json.loads(text_of(schema_deltas))["ok"], bool)
        assert all(top.logprob >= -9999 for delta in digits for entry in delta.logprobs for top in entry.top)

    asyncio.run(scenario(make_engine("llama")))


def test_the_queue_is_counted_as_it_changes(own_engine: TransformersEngine) -> None:
    async def scenario() -> None:
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
        assert scheduler._waiting_count == 0

    asyncio.run(scenario())
