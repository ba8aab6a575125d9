from __future__ import annotations

import json
import math
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from starlette.testclient import TestClient

from protocol.tensors import DATATYPES, DTYPES, Tensor, tensor_from_binary, tensor_from_json
from runners.core.errors import InputError
from tests.conftest import ModelFolder, Serve
from tests.wire import to_binary

SHAPES = npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4)
NUMBERS = sorted(set(DTYPES) - {"BF16"})


@st.composite
def arrays(draw: st.DrawFn) -> tuple[str, NDArray[Any]]:
    datatype = draw(st.sampled_from(NUMBERS))
    floats: dict[str, Any] = {"allow_nan": False, "allow_infinity": False} if datatype.startswith("FP") else {}
    elements = npst.from_dtype(DTYPES[datatype], **floats)
    return datatype, draw(npst.arrays(DTYPES[datatype], draw(SHAPES), elements=elements))


@given(arrays())
def test_numbers_come_back(drawn: tuple[str, NDArray[Any]]) -> None:
    """Whatever the datatype and the shape: in binary to the bit, and the same from JSON, flat or nested."""
    datatype, array = drawn
    shape = list(array.shape)
    found = tensor_from_binary("x", datatype, shape, memoryview(array.tobytes()))
    assert (found.datatype, found.shape) == (datatype, shape)
    assert bytes(found.to_binary()) == array.tobytes()
    if datatype == "FP16":
        return
    # JSON's nested form of a single number is the number in a list, and of no elements it has no shape to tell.
    nested = array.tolist() if array.ndim and array.size else array.ravel().tolist()
    for data in (array.ravel().tolist(), nested):
        from_json = tensor_from_json("x", datatype, shape, data)
        assert (from_json.datatype, from_json.shape) == (datatype, shape)
        np.testing.assert_array_equal(from_json.flat, array.ravel())


@given(SHAPES.flatmap(lambda shape: st.tuples(st.just(shape), st.lists(st.text(max_size=9), min_size=math.prod(shape), max_size=math.prod(shape)))))  # fmt: skip
@example(((2,), ["", "a\0b"]))
def test_strings_come_back(drawn: tuple[tuple[int, ...], list[str]]) -> None:
    shape, strings = drawn
    strings = [text.encode(errors="ignore").decode() for text in strings]
    binary = to_binary("BYTES", strings)
    found = tensor_from_binary("x", "BYTES", shape, memoryview(binary))
    assert found == tensor_from_json("x", "BYTES", shape, strings) == Tensor("x", "BYTES", list(shape), strings)
    assert found.to_binary() == binary


@given(npst.arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_bfloat16_is_the_nearest_to_float32(array: NDArray[np.float32]) -> None:
    """Eight bits of mantissa: off by one part in 256 at most; what is one comes back to the bit."""
    binary = bytes(Tensor("x", "BF16", [len(array)], array).to_binary())
    found = tensor_from_binary("x", "BF16", [len(array)], memoryview(binary))
    assert isinstance(found.flat, np.ndarray)
    assert bytes(found.to_binary()) == binary
    finite = np.isfinite(found.flat) & (np.abs(array) >= np.finfo(np.float32).smallest_normal)
    np.testing.assert_allclose(found.flat[finite], array[finite], rtol=1 / 256)
    np.testing.assert_array_equal(np.isnan(found.flat), np.isnan(array))


def test_numbers_are_not_copied() -> None:
    buffer = np.arange(5, dtype="<f4").tobytes()
    tensor = tensor_from_binary("x", "FP32", [5], memoryview(buffer))
    assert isinstance(tensor.flat, np.ndarray)
    assert np.shares_memory(tensor.flat, np.frombuffer(buffer, np.uint8))
    assert np.shares_memory(np.frombuffer(tensor.to_binary(), np.uint8), np.frombuffer(buffer, np.uint8))


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "error"),
    [
        ("INT32", [2], b"[1]", "input 'x' has the shape [2], which is 2 elements, but 1 are given"),
        ("INT32", [1], b"[1.5]", "the data of input 'x' is not as expected: Expected `int`, got `float`"),
        ("INT32", [1], b"[1.0]", "the data of input 'x' is not as expected: Expected `int`, got `float`"),
        ("INT32", [1], b"[true]", "the data of input 'x' is not as expected: Expected `int`, got `bool`"),
        ("INT32", [1], b'["1"]', "the data of input 'x' is not as expected: Expected `int`, got `str`"),
        ("INT32", [1], b"[2147483648]", "the data of input 'x' is not as expected: Expected `int` <= 2147483647"),
        ("INT8", [1, 1], b"[[-129]]", "the data of input 'x' is not as expected: Expected `int` >= -128"),
        ("UINT64", [1], b"[-1]", "a number of input 'x' is out of the range of UINT64"),
        ("UINT64", [1], b"[18446744073709551616]", "a number of input 'x' is out of the range of UINT64"),
        ("INT64", [1], b"[9223372036854775808]", "a number of input 'x' is out of the range of INT64"),
        ("FP32", [1], b"[1e39]", "a number of input 'x' is out of the range of FP32"),
        ("FP32", [1], b"[null]", "the data of input 'x' is not as expected: Expected `float`, got `null`"),
        ("BOOL", [1], b"[1]", "the data of input 'x' is not as expected: Expected `bool`, got `int`"),
        ("FP16", [1], b"[1]", "Sending FP16 data via JSON is not supported. Please use the binary data format for input x"),
        ("BF16", [1], b"[1]", "Sending BF16 data via JSON is not supported. Please use the binary data format for input x"),
        ("INT64", [2, 2], b"[[1, 2], [3]]", "the data of input 'x' is nested, but not as the shape [2, 2] says"),
        ("INT64", [2, 2], b"[[1, 2], 3]", "the data of input 'x' is nested, but not as the shape [2, 2] says"),
        ("INT64", [2], b"[[1], [2]]", "the data of input 'x' is nested, but not as the shape [2] says"),
        ("INT64", [], b"[[1]]", "the data of input 'x' is nested, but not as the shape [] says"),
        ("INT64", [1], b"1", "the data of input 'x' is not as expected: Expected `array`, got `int`"),
        ("TENSOR", [1], b"[1]", "input 'x' has the datatype 'TENSOR'; there are BOOL, UINT8, "),
    ],
)  # fmt: skip
def test_wrong_json(datatype: str, shape: list[int], data: bytes, error: str) -> None:
    with pytest.raises(InputError) as caught:
        tensor_from_json("x", datatype, shape, json.loads(data))
    assert str(caught.value).startswith(error)


@given(st.sampled_from(DATATYPES), st.lists(st.integers(-2, 5) | st.just(2**31) | st.just(2**40), max_size=9), st.binary(max_size=40))  # fmt: skip
def test_bytes_are_a_tensor_or_a_clear_error(datatype: str, shape: list[int], data: bytes) -> None:
    try:
        tensor = tensor_from_binary("x", datatype, shape, memoryview(data))
    except InputError as error:
        assert "input 'x'" in str(error)  # noqa: PT017
    else:
        assert math.prod(tensor.shape) == len(tensor.flat)
        assert len(tensor.to_binary()) == len(data)


@pytest.mark.parametrize("datatype", ["BYTES", "FP32", "BF16"])
def test_a_lying_shape_takes_no_memory(datatype: str) -> None:
    tracemalloc.start()
    for shape in ([2**31 - 1], [2**31 - 1] * 8, [2**62]):
        with pytest.raises(InputError):
            tensor_from_binary("x", datatype, shape, memoryview(struct.pack("<I", 2**32 - 1)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


HEAD = {"inputs": [{"name": "x", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": 13}}]}
BODY = json.dumps(HEAD).encode() + to_binary("BYTES", ["Hello", ""])


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification")).client


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    edits=st.lists(st.tuples(st.integers(0, len(BODY)), st.integers(0, 9), st.binary(max_size=9)), max_size=3),
    length=st.sampled_from([len(BODY) - 13, len(BODY), 0, -1, 10**12]) | st.integers(0, len(BODY) + 5),
)
def test_malformed_bodies_are_the_clients_fault(
    client: TestClient, edits: list[tuple[int, int, bytes]], length: int
) -> None:
    """Cut, lengthened, overwritten anywhere, with any header: an answer or a 400, never a 500."""
    body = BODY
    for position, removed, inserted in edits:
        body = body[:position] + inserted + body[position + removed :]
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(length)}
    response = client.post("/v2/models/model/infer", content=body, headers=headers)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert list(response.json()) == ["error"]
        assert len(response.content) < 500
