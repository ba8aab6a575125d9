"""Private names of libraries that this project uses: each is listed here with its reason, and must exist.

After an update of a library a failure here says what is gone, and where the project uses it.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from protocol.http.body import decode_json
from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits
from runners.hosting.storage import initializer
from tests.servers import ROOT


class Private(NamedTuple):
    """A private name.

    Attributes:
        name: where the library has it, as `module.Class.attribute`.
        room: the package of this project that uses it.
        reason: why no public name does.
    """

    name: str
    room: str
    reason: str


NAMES = [
    Private("argparse.ArgumentParser._actions", "runners/generator", "vLLM's parser is the only list of vLLM's arguments, and argparse lists them nowhere else"),
    Private("bentoml._internal.configuration.containers.BentoMLContainer", "runners/hosting", "no public function returns BentoML's configuration, in which BENTOML_CONFIG_OPTIONS may set the workers"),
    Private("_bentoml_sdk.service.config.GpuLiteralType", "runners/hosting", "BentoML accepts any gpu_type; this type lists those that BentoCloud knows"),
    Private("grpc._cython.cygrpc", "protocol/open_inference/grpc", "the name of gRPC's logger, which logs a traceback for each client that leaves"),
    Private("kserve_storage.Storage._unpack_archive_file", "runners/hosting/storage", "KServe unpacks archives without a limit"),
    Private("kserve_storage.kserve_storage._parse_patterns_from_env", "runners/hosting/storage", "the patterns of files must mean what they mean to KServe"),
    Private("pip._vendor.packaging.requirements.Requirement", "tools", "a new virtual environment has no packaging of its own"),
    Private("sys._current_frames", "runners/core", "the traceback of one thread, without the values in it, has no public function"),
    Private("torch._C", "runners/encoder", "PyTorch has the next names nowhere else"),
    Private("torch._C._cuda_clearCublasWorkspaces", "runners/encoder", "cuBLAS's workspace keeps the memory of CUDA graphs, and no public function frees it"),
    Private("torch._C._cuda_endAllocateToPool", "runners/encoder", "a CUDA graph that is invalid leaves the allocator recording"),
    Private("torch._C._cuda_releasePool", "runners/encoder", "as above"),
    Private("torch.nn.Module._compiled_call_impl", "runners/encoder", "no public function undoes `Module.compile`"),
    Private("torch.ops.aten._efficient_attention_forward", "runners/encoder", "attention within each sequence has no public function in float32"),
    Private("torch.ops.aten._flash_attention_forward", "runners/encoder", "`varlen_attn`, the public function, gets new arguments from release to release"),
    Private("torch.ops.mkl._mkl_linear", "runners/modeling", "PyTorch offers MKL's packed weights only to its compiler"),
    Private("torch.ops.mkl._mkl_reorder_linear_weight", "runners/modeling", "PyTorch offers MKL's packed weights only to its compiler"),
    Private("torch.ops.mkldnn._convolution_pointwise", "runners/modeling", "PyTorch offers oneDNN's packed convolutions only to its compiler"),
    Private("torch.ops.mkldnn._get_mkldnn_serialized_md", "runners/modeling", "no public function tells whether two packed weights have the same layout"),
    Private("torch.ops.mkldnn._linear_pointwise", "runners/modeling", "PyTorch offers oneDNN's packed weights only to its compiler"),
    Private("torch.ops.mkldnn._reorder_convolution_weight", "runners/modeling", "PyTorch offers oneDNN's packed convolutions only to its compiler"),
    Private("torch.ops.mkldnn._reorder_linear_weight", "runners/modeling", "PyTorch offers oneDNN's packed weights only to its compiler"),
    Private("torch._dynamo", "runners/modeling", "`transformers` imports PyTorch's compiler at once, and no setting turns that off"),
    Private("transformers.GenerationMixin._get_logits_processor", "runners/generator", "`generate` makes its processors nowhere else"),
    Private("transformers.GenerationMixin._update_model_kwargs_for_generation", "runners/generator", "models override how the cache goes from one step to the next"),
    Private("transformers.MBartTokenizer._build_translation_inputs", "runners/generator", "it tells tokenizers with languages from others"),
    Private("transformers.PretrainedConfig._attn_implementation", "runners/encoder", "the model's attention has no public name once it is loaded"),
    Private("transformers.PretrainedConfig._attn_implementation_internal", "runners/encoder", "the public setter does not restore what it replaced"),
    Private("transformers.generation.utils._eos_token_tensor", "runners/generator", "the processors of `generate` read the ends of a text from it"),
    Private("transformers.models.xlnet.modeling_xlnet.XLNetLMHeadModel._reorder_cache", "runners/generator", "models with a cache of their own reorder it for beams"),
    Private("transformers.utils.chat_template_utils._compile_jinja_template", "runners/generator", "a chat template must compile as `transformers` compiles it"),
    Private("uvicorn._types.ASGI3Application", "protocol/http/connections", "uvicorn's protocol is a base class here, and types its arguments so"),
    Private("uvicorn._types.ASGIReceiveCallable", "protocol/http/connections", "as above"),
    Private("uvicorn._types.ASGISendCallable", "protocol/http/connections", "as above"),
    Private("uvicorn._types.ASGISendEvent", "protocol/http/connections", "as above"),
    Private("uvicorn._types.HTTPResponseBodyEvent", "protocol/http/connections", "as above"),
    Private("uvicorn._types.HTTPResponseStartEvent", "protocol/http/connections", "as above"),
    Private("uvicorn._types.Scope", "protocol/http/connections", "as above"),
    Private("uvicorn.config.HTTP_PROTOCOLS", "protocol/http/connections", "BentoML configures uvicorn, and takes no protocol class"),
    Private("uvicorn.protocols.http.flow_control.FlowControl", "protocol/http/connections", "uvicorn's protocol has no hook for limits, so that ours is a subclass"),
    Private("uvicorn.protocols.http.flow_control.FlowControl._transport", "protocol/http/connections", "as above"),
    Private("uvicorn.protocols.http.flow_control.HIGH_WATER_LIMIT", "protocol/http/connections", "as above"),
    Private("uvicorn.protocols.http.httptools_impl.HttpToolsProtocol", "protocol/http/connections", "as above"),
    Private("uvicorn.protocols.http.httptools_impl.RequestResponseCycle", "protocol/http/connections", "as above"),
    Private("uvicorn.protocols.http.httptools_impl.STATUS_LINE", "protocol/http/connections", "as above"),
    Private("uvicorn.server.ServerState", "protocol/http/connections", "as above"),
]  # fmt: skip

SOURCES = ("service.py", "launch.py", "doctor.py", "predict.py", "protocol", "runners", "deploy", "tools")
# Modules without an underscore that the library does not document.
_UNDOCUMENTED = re.compile(r"uvicorn\.(protocols|server)\b")
# Documented, in spite of the underscore.
_PUBLIC = frozenset({"_exit", "_asdict", "_replace", "_fields"})
_OWN = ("deploy", "launch", "protocol", "runners", "service", "tools")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.\w+)+")


@pytest.mark.parametrize("private", NAMES, ids=lambda private: private.name)
def test_a_private_name_exists(private: Private) -> None:
    assert exists(private.name), f"{private.name} is gone; {private.room} uses it because {private.reason}"


def exists(name: str) -> bool:
    """Whether a module has the name, or a class sets it, or a module sets it as an attribute of others' objects."""
    module, rest = import_module(name)
    found: Any = module
    for part in rest:
        if not hasattr(found, part):
            return re.search(rf"\.{part}\b\s*(:[^=]+)?=[^=]|^def {part}\(", read_source(found), re.M) is not None
        found = getattr(found, part)
    return True


def read_source(found: Any) -> str:
    """The source of a module or class; of a module in C++ its types, which name what other builds of it have."""
    path = Path(getattr(found, "__file__", ""))
    if path.suffix == ".so":
        return (path.parent / path.name.partition(".")[0] / "__init__.pyi").read_text()
    return inspect.getsource(found)


def import_module(name: str) -> tuple[Any, list[str]]:
    """The longest part of a name that is a module, and the other parts."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            return importlib.import_module(".".join(parts[:count])), parts[count:]
        except ModuleNotFoundError:
            continue
    raise AssertionError(f"there is no module of {name}")


def uses() -> Iterator[tuple[str, str]]:
    """(file, private name) of all uses in the source; the name of an attribute stands alone."""
    for source in SOURCES:
        path = ROOT / source
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            if "_pb2" not in file.name:
                for name in find_uses(file):
                    yield str(file.relative_to(ROOT)), name


def find_uses(file: Path) -> Iterator[str]:
    tree = ast.parse(file.read_text())
    own = defined_names(tree)
    for module in imported_modules(tree):
        if (imported := ROOT / f"{module.replace('.', '/')}.py").is_file():
            own |= defined_names(ast.parse(imported.read_text()))
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names if is_private(alias.name))
            case ast.ImportFrom(module=str(module), names=names) if module.partition(".")[0] not in _OWN:
                full = [f"{module}.{alias.name}" for alias in names]
                yield from (name for name in full if is_private(name) or _UNDOCUMENTED.match(name))
            case ast.Attribute(attr=name) if is_private(name) and name not in own | _PUBLIC:
                yield name
            case ast.Attribute(value=value, attr=name) if _UNDOCUMENTED.match(ast.unparse(value)):
                yield f"{ast.unparse(value)}.{name}"
            case ast.Attribute(attr="HTTP_PROTOCOLS"):
                yield ast.unparse(node)
            case ast.Constant(value=str(text)) if _DOTTED.fullmatch(text) and is_private(text):
                if importlib.util.find_spec(text.partition(".")[0]) is not None:
                    yield text
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr" | "setattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                if is_private(name) and name not in own:
                    yield name


def defined_names(tree: ast.AST) -> set[str]:
    """The names that a module defines: functions, classes, variables, arguments, and attributes of `self`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                names.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                names.add(name)
    return names


def imported_modules(tree: ast.AST) -> list[str]:
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    names = [name for node in froms for name in (node.module, *(f"{node.module}.{each.name}" for each in node.names))]
    return [name for name in names if name is not None and name.partition(".")[0] in _OWN]


def is_private(name: str) -> bool:
    return any(re.match(r"_(?!_)\w", part) for part in name.split("."))


def test_every_use_is_listed() -> None:
    unlisted = [
        f"{file} uses {name}"
        for file, name in uses()
        if not any(name in (each.name, each.name.rpartition(".")[2]) and file.startswith(each.room) for each in NAMES)
    ]
    assert unlisted == [], "use a public name, or list the private one in NAMES with the reason"


def test_every_listed_name_is_used() -> None:
    used = {name for _, name in uses()}
    assert [each.name for each in NAMES if not {each.name, each.name.rpartition(".")[2]} & used] == []


# Texts of libraries: they are matched only where nothing else says the same.


@pytest.mark.parametrize("template", [initializer.S3_SIZE, initializer.GCS_SIZE, initializer.SKIPPED])
def test_templates_of_kserve_s_log(template: str) -> None:
    """The sizes of files are nowhere else before they are downloaded; without them a disk is filled to its end."""
    from kserve_storage import kserve_storage

    assert f'"{template}"' in inspect.getsource(kserve_storage), "runners/hosting/storage/initializer.py reads this"
    assert kserve_storage.logger.name == initializer.LOGGER_NAME


def test_text_of_pytorch_s_refusal_of_pickles() -> None:
    """The only place of the name that a pickle calls; runners/core/errors.py shows it without PyTorch's advice."""
    from torch import _weights_only_unpickler

    assert "Unsupported global: GLOBAL {full_path} was not" in inspect.getsource(_weights_only_unpickler)


def test_text_of_transformers_without_safetensors() -> None:
    """It raises an OSError for all that is missing; runners/modeling/loading.py names the argument that helps."""
    from transformers import modeling_utils

    assert "Error no file named {_add_variant(SAFE_WEIGHTS_NAME, variant)}" in inspect.getsource(modeling_utils)


def test_text_of_msgspec_s_errors() -> None:
    """msgspec's errors have the field only in their text; protocol/http/body.py names it to clients."""

    class Body(msgspec.Struct):
        field: int

    for body in (b"{}", b'{"field": "a"}'):
        with pytest.raises(InputError) as error:
            decode_json(body, msgspec.json.Decoder(Body), RequestLimits(), "the body")
        assert error.value.param == "field"
