"""What a request may ask of a generator on `transformers`: where it stops, what it may not say, what it is told."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from runners.core.errors import InputError
from runners.core.generation import Constraint, Delta, TokenLogprobs
from runners.generator import scheduler
from tests.conftest import GeneratorFolder
from tests.generators import collect, complete, ids_of, stop_reason, text_of
from tests.runners.conftest import MakeEngine

PROMPTS = (
    "Return",
    "Open the file and return its contents as a string",
    "A",
    "An exception is raised where the key is not",
    "",
)


async def test_stop_tokens_and_strings_say_why(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
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


async def test_special_tokens_are_left_out_unless_asked_for(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 2, "allowed_token_ids": (3,)}
    assert text_of(await collect(engine, "Return", **asked)) == ""
    assert text_of(await collect(engine, "Return", skip_special_tokens=False, **asked)) == "<unk><unk>"


@pytest.mark.parametrize("family", ["llama", "t5"])
async def test_bad_words_are_not_generated(family: str, make_engine: MakeEngine) -> None:
    engine = make_engine(family)
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    free = ids_of(await collect(engine, "Return the", **asked))
    vocabulary = engine._model().vocabulary
    word = next(text for token in free if (text := vocabulary.text(token).strip()) and text.isalpha())
    forbidden = await collect(engine, "Return the", bad_words=(word,), **asked)
    assert ids_of(forbidden) != free
    tokens = vocabulary.tokenizer.encode(word, add_special_tokens=False)
    if len(tokens) == 1:
        assert tokens[0] not in ids_of(forbidden)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"stop_token_ids": (3000,)}, "stop_token_ids has token 3000, but the vocabulary ends at 2999"),
        ({"allowed_token_ids": (1, -1)}, "allowed_token_ids has token -1, but the vocabulary ends at 2999"),
        ({"allowed_token_ids": ()}, "allowed_token_ids is empty: no token could be generated"),
        ({"logprob_token_ids": (3000,)}, "logprob_token_ids has token 3000, but the vocabulary ends at 2999"),
        ({"logprob_token_ids": (1,) * 129}, "logprob_token_ids has 129 tokens, 128 are the most"),
        ({"bad_words": ("",)}, "bad_words has an empty text"),
        ({"bad_words": tuple(map(str, range(300)))}, "bad_words has more than 128 words or 1024 tokens, each word counted with and without a space before"),
        ({"min_tokens": -1}, "min_tokens must be at least 0, not -1"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens is 5, but max_tokens is 4"),
        ({"constraint": Constraint("regex", "(")}, "the regex cannot be used: at 1(8): invalid regex"),
    ],
)  # fmt: skip
async def test_parameters_that_do_not_fit_are_refused(
    sampling: dict[str, Any], message: str, make_engine: MakeEngine
) -> None:
    with pytest.raises(InputError) as refused:
        await collect(make_engine("llama"), [9] * 5, **sampling)
    assert str(refused.value).startswith(message)


async def test_max_tokens_of_0_only_computes_the_prompt(make_engine: MakeEngine) -> None:
    for family in ("llama", "t5"):
        [delta] = await collect(make_engine(family), "Return the", max_tokens=0)
        assert delta == Delta("", (), "length")
    # As long as the context.
    [delta] = await collect(make_engine("llama"), [9] * 64, max_tokens=0, prompt_logprobs=0)
    assert delta.prompt_logprobs is not None
    assert len(delta.prompt_logprobs) == 64


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
async def test_prompt_log_probabilities_are_the_models(
    family: str, make_engine: MakeEngine, generator_folder: GeneratorFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(generator_folder(family))
    # A few tokens at a time.
    monkeypatch.setattr(scheduler, "_MOST_LOGITS", 3000 * 14)

    def shown(entry: TokenLogprobs) -> str:
        return "" if entry.chosen.token_id < 5 else entry.chosen.text

    engine = make_engine(family)
    prompts = [await engine.tokenize(prompt) for prompt in PROMPTS]
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
            assert [top.logprob for top in entry.top] == pytest.approx(row.topk(2).values.tolist(), rel=1e-3, abs=1e-3)
        text = engine._model().vocabulary.decode(prompt, skip_special_tokens=True)
        assert all(entry is None or text[entry.offset :].startswith(shown(entry)) for entry in found)


async def test_an_encoder_decoder_has_no_log_probabilities_of_its_prompt(make_engine: MakeEngine) -> None:
    with pytest.raises(InputError, match="an encoder-decoder has no log probabilities of its prompt"):
        await collect(make_engine("t5"), "Return", prompt_logprobs=1)


async def test_log_probabilities_have_bytes_and_offsets_of_the_text(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
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


async def test_constraints_hold_beside_others_and_fail_alone(make_engine: MakeEngine) -> None:
    engine = make_engine("llama")
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
