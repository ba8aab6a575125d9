"""Models whose files carry code: none of it runs, and a start that cannot do without ends with one line."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models

from runners.core.errors import InputError, ModelLoadError
from runners.generator.languages import Languages
from runners.generator.prompts import Prompts
from runners.generator.vocabulary import Vocabulary
from runners.modeling.load_errors import load_errors
from tests.conftest import GeneratorFolder, ModelFolder
from tests.embedders import change
from tests.encoders import load
from tests.families import roberta_bpe
from tests.runners.conftest import Start

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 438001234\n"
AUTO_MAP = {f"Auto{kind}": "evil.Evil" for kind in ("Config", "Model", "ModelForCausalLM", "Processor")}
Payload = Callable[[Path, Path], None]


class Evil:
    """A pickle that makes a file where it is read."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._marker), "w")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """The file that exists once code has run."""
    return tmp_path / "marker"


@pytest.fixture
def embedder(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """The files of a SentenceTransformer with a Dense module."""
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    modules = [transformer, models.Pooling(32, "mean"), models.Dense(32, 16)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path / "model"))
    return tmp_path / "model"


def write_code(folder: Path, marker: Path, *names: str) -> None:
    for name in names or ("evil.py",):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"import pathlib; pathlib.Path({str(marker)!r}).touch()\n")


def name_code(**config: Any) -> Payload:
    def write(folder: Path, marker: Path) -> None:
        write_code(folder, marker)
        change(folder / "config.json", **config)

    return write


def name_tokenizer(folder: Path, marker: Path) -> None:
    write_code(folder, marker)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})


def name_only_tokenizer(folder: Path, marker: Path) -> None:
    name_tokenizer(folder, marker)
    change(folder / "tokenizer_config.json", tokenizer_class="EvilTokenizer")
    (folder / "tokenizer.json").unlink()


def name_processors(folder: Path, marker: Path) -> None:
    write_code(folder, marker)
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        (folder / name).write_text(json.dumps({"auto_map": AUTO_MAP, "processor_class": "evil.Evil"}))


def generate_customly(folder: Path, marker: Path) -> None:
    write_code(folder, marker, "custom_generate/generate.py")


def lie_beside(folder: Path, marker: Path) -> None:
    write_code(folder, marker, "sitecustomize.py", "setup.py", "conftest.py", "torch.py", "__init__.py")
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "vocab.pkl", "rng_state.pth"):
        (folder / name).write_bytes(pickle.dumps(Evil(marker)))
    np.save(folder / "vectors.npy", np.array([Evil(marker)], dtype=object), allow_pickle=True)


def pickle_weights(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(Evil(marker), folder / "pytorch_model.bin")


def pickle_old_weights(folder: Path, marker: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(marker), protocol=2))


def pickle_beside_weights(folder: Path, marker: Path) -> None:
    torch.save(Evil(marker), folder / "pytorch_model.bin")


def list_weights(index: str, weight_map: Any) -> Payload:
    def write(folder: Path, marker: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        torch.save(Evil(marker), folder / "evil.bin")
        (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return write


def adapt(folder: Path, _: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))


def write_weights(data: bytes) -> Payload:
    def write(folder: Path, _: Path) -> None:
        (folder / "model.safetensors").write_bytes(data)

    return write


def point(*names: str) -> Payload:
    def write(folder: Path, _: Path) -> None:
        for name in names:
            (folder / name).write_text(POINTER)

    return write


def keep_gguf(folder: Path, _: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.gguf")


def nest(name: str) -> Payload:
    def write(folder: Path, _: Path) -> None:
        (folder / name).write_text('{"a":' * 10**5 + "1" + "}" * 10**5)

    return write


def stored(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of safetensors."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


UNTRUSTED = "contains custom code which must be executed"
NO_SAFETENSORS = "has no safetensors weights; if it has .bin weights, --allow_pickle loads them"
CODE = "its .bin weights are no pickle of tensors alone: they call io.open"
IN_HEADER = "cannot be loaded: SafetensorError: Error while deserializing header: "
INDEX = "model.safetensors.index.json"
EMBEDDINGS = "embeddings.word_embeddings.weight"
# What is written into the model's folder, arguments, and the error; None where the model is served all the same.
ENCODERS: list[tuple[Payload, dict[str, Any], str | None]] = [
    (name_code(auto_map=AUTO_MAP), {}, None),
    (name_code(auto_map=AUTO_MAP, model_type="evil"), {}, UNTRUSTED),
    (name_code(auto_map={"AutoConfig": "owner/evil--evil.Evil"}, model_type="evil"), {}, "trust_remote_code"),
    (name_code(attn_implementation="evil/kernel"), {}, "attn_implementation in .* is 'evil/kernel': it is code from"),
    (name_code(_attn_implementation="evil/kernel@main:f"), {}, "is 'evil/kernel@main:f': it is code from the hub"),
    (name_code(text_config={"attn_implementation": "evil/kernel"}), {}, "runs only with --trust_remote_code"),
    (name_tokenizer, {}, None),
    (name_only_tokenizer, {}, "cannot be loaded: ValueError: "),
    (name_processors, {}, None),
    (lie_beside, {}, None),
    (pickle_weights, {}, NO_SAFETENSORS),
    (pickle_weights, {"allow_pickle": True}, CODE),
    (pickle_old_weights, {"allow_pickle": True}, CODE),
    (pickle_beside_weights, {"allow_pickle": True}, None),
    (list_weights(INDEX, {EMBEDDINGS: "evil.bin"}), {}, f"{INDEX} names 'evil.bin', and only .safetensors are loaded"),
    (list_weights(INDEX, {EMBEDDINGS: "evil.bin"}), {"allow_pickle": True}, CODE),
    (list_weights(INDEX, {EMBEDDINGS: "../outside.safetensors"}), {}, "which leads out of the model's folder"),
    (list_weights(INDEX, {EMBEDDINGS: "/outside.safetensors"}), {}, "which leads out of the model's folder"),
    (list_weights(INDEX, ["evil.bin"]), {}, f"{INDEX} has no weight_map from weights to files"),
    (list_weights("pytorch_model.bin.index.json", {EMBEDDINGS: "evil.bin"}), {}, NO_SAFETENSORS),
    (list_weights("pytorch_model.bin.index.json", {EMBEDDINGS: "evil.bin"}), {"allow_pickle": True}, CODE),
    (list_weights("pytorch_model.bin.index.json", {EMBEDDINGS: "../evil.bin"}), {"allow_pickle": True}, "leads out of"),
    (adapt, {}, "it is a PEFT adapter of evil/base, and this server applies none"),
    (write_weights(stored({}, length=2**63)), {}, IN_HEADER + "header too large"),
    (write_weights(stored({}, length=99_000_000)), {}, IN_HEADER + "invalid header length"),
    (write_weights(stored({"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12))), {}, IN_HEADER + "invalid offset"),
    (write_weights(stored({"a": tensor([2**40, 2**20], 0, 2**62)})), {}, IN_HEADER + "overflow"),
    (write_weights(b"GGUF\3\0\0\0" + bytes(100)), {}, IN_HEADER),
    (write_weights(b"\0"), {}, IN_HEADER + "header too small"),
    (keep_gguf, {}, NO_SAFETENSORS),
    (point("model.safetensors", "tokenizer.json"), {}, "there are Git LFS pointers in place of model.safetensors, tokenizer.json; `git lfs pull` fetches"),
    (nest("config.json"), {}, "config.json is no JSON: maximum recursion depth"),
    (nest("tokenizer_config.json"), {}, "cannot be loaded: RecursionError: "),
]  # fmt: skip


@pytest.mark.parametrize(("write", "arguments", "message"), ENCODERS)
def test_an_encoder(
    write: Payload, arguments: dict[str, Any], message: str | None, model_folder: ModelFolder, tmp_path: Path,
    marker: Path,
) -> None:  # fmt: skip
    folder = shutil.copytree(model_folder("bert", "text_embedding"), tmp_path / "model")
    write(folder, marker)
    check_start(folder, message, arguments)
    assert not marker.exists()


def check_start(folder: Path, message: str | None, arguments: dict[str, Any]) -> None:
    if message is None:
        load(model_dir=str(folder), **arguments).close()
        return
    with pytest.raises(ModelLoadError, match=message) as error:
        load(model_dir=str(folder), **arguments)
    assert "\n" not in str(error.value)


def name_module(kind: str, path: str = "9") -> Payload:
    def write(folder: Path, marker: Path) -> None:
        write_code(folder, marker)
        modules = json.loads((folder / "modules.json").read_text())
        modules.append({"idx": 9, "name": "9", "path": path, "type": kind})
        (folder / "modules.json").write_text(json.dumps(modules))

    return write


def name_activation(name: str) -> Payload:
    def write(folder: Path, marker: Path) -> None:
        write_code(folder, marker)
        change(folder / "2_Dense/config.json", activation_function=name)

    return write


def pickle_dense(folder: Path, marker: Path) -> None:
    (folder / "2_Dense/model.safetensors").unlink()
    torch.save(Evil(marker), folder / "2_Dense/pytorch_model.bin")


@pytest.mark.parametrize(
    ("write", "arguments", "message"),
    [
        (name_module("evil.Evil"), {}, "^modules.json has evil.Evil, whose code this server does not run$"),
        (name_module("sentence_transformers.evil.Evil"), {}, "^modules.json has a Evil, which this server does not run$"),
        (name_module("sentence_transformers.models.Dense", "../2_Dense"), {}, "which leads out of the model's folder"),
        (name_activation("evil.Evil"), {}, "of a form that this server does not run"),
        (name_activation("torch.nn.evil.Evil"), {}, "of a form that this server does not run"),
        (pickle_dense, {}, "2_Dense has only .bin weights: --allow_pickle loads them"),
        (pickle_dense, {"allow_pickle": True}, CODE),
        (point("2_Dense/model.safetensors"), {}, "there are Git LFS pointers in place of 2_Dense/model.safetensors;"),
    ],
)  # fmt: skip
def test_modules_of_sentence_transformers(
    write: Payload, arguments: dict[str, Any], message: str, embedder: Path, marker: Path
) -> None:
    write(embedder, marker)
    check_start(embedder, message, arguments)
    assert not marker.exists()


def test_the_score_of_a_cross_encoder(model_folder: ModelFolder, tmp_path: Path, marker: Path) -> None:
    folder = shutil.copytree(model_folder("bert", "text_ranking"), tmp_path / "model")
    name_code(sentence_transformers={"activation_fn": "evil.evil"})(folder, marker)
    check_start(folder, "its scores are made by evil.evil, which this server does not run", {})
    assert not marker.exists()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (name_code(auto_map=AUTO_MAP), None),
        (name_code(auto_map=AUTO_MAP, model_type="evil"), UNTRUSTED),
        (name_code(attn_implementation="evil/kernel"), "it is code from the hub"),
        (name_tokenizer, None),
        (generate_customly, None),
        (name_processors, None),
        (lie_beside, None),
        (pickle_weights, NO_SAFETENSORS),
        (list_weights(INDEX, {"model.embed_tokens.weight": "evil.bin"}), "only .safetensors are loaded"),
        (write_weights(stored({}, length=2**63)), IN_HEADER + "header too large"),
        (point("model.safetensors"), "there are Git LFS pointers in place of model.safetensors;"),
    ],
)
def test_a_generator(
    write: Payload, message: str | None, generator_folder: GeneratorFolder, start: Start, tmp_path: Path, marker: Path
) -> None:
    folder = shutil.copytree(generator_folder("llama"), tmp_path / "model")
    write(folder, marker)
    if message is None:
        start(folder)
    else:
        with pytest.raises(ModelLoadError, match=message) as error, load_errors(str(folder)):
            start(folder)
        assert "\n" not in str(error.value)
    assert not marker.exists()


def test_weights_are_read_whatever_their_shards_are_called(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("bert", "text_embedding"), tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(weights, folder / "part.one.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "part.one.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    load(model_dir=str(folder)).close()


TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ ''['__class__'] }}{{ ''['__class__']['__mro__'] }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARKER') }}",
    "{{ joiner.__init__.__globals__['os'].popen('touch MARKER').read() }}",
    "{{ namespace.__init__.__globals__.__builtins__.open('MARKER', 'w') }}",
    "{{ strftime_now.__globals__.__builtins__.open('MARKER', 'w') }}",
    "{{ self.__init__.__globals__ }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update(role='system') }}",
    "{{ messages | map(attribute='__class__') | map(attribute='__mro__') | list }}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ open('MARKER', 'w') }}",
    "{{ __import__('os').system('touch MARKER') }}",
]


def make_prompts(template: str) -> Prompts:
    vocabulary = Vocabulary(roberta_bpe(), 3010)
    languages = Languages.of(vocabulary.tokenizer)
    return Prompts(vocabulary, languages, 200, 199, add_special_tokens=True, template=template)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_chat_template(template: str, marker: Path) -> None:
    """Jinja's sandbox is all that it has: what reaches out of it is refused, as are methods that change messages."""
    prompts = make_prompts(template.replace("MARKER", str(marker)))
    with pytest.raises(InputError, match=r"^the chat template refuses the messages: ") as error:
        prompts.render([{"role": "user", "content": "x"}], None, {})
    assert "\n" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ messages | attr('__class__') }}",
        "{{ raise_exception.__globals__ }}",
        "{% set f = ''.format %}{{ f.__self__ }}",
    ],
)
def test_private_attributes_are_empty_in_a_chat_template(template: str) -> None:
    assert make_prompts(template).render([{"role": "user", "content": "x"}], None, {}) == ""


def test_what_looks_like_a_template_in_a_request_is_a_text(marker: Path) -> None:
    prompts = make_prompts("{{ messages[0].content }}{{ mood }}")
    text = f"{{{{ cycler.__init__.__globals__.os.system('touch {marker}') }}}}"
    assert prompts.render([{"role": "user", "content": text}], None, {"mood": text}) == text * 2
    assert not marker.exists()
