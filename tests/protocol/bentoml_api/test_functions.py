"""The functions of BentoML's methods, called in this process."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from protocol.bentoml_api.functions import create_function
from protocol.bentoml_api.methods import METHODS
from runners.core.errors import InputError, ModelNotReadyError
from tests.protocol.bentoml_api.conftest import ServeMethod


async def test_an_encoder(serve_method: ServeMethod) -> None:
    served = serve_method("classify")
    classify = create_function(METHODS["classify"], lambda: served.models, served.arguments)
    expected = served.client.post("/bentoml/classify", json={"texts": ["a", "b"], "top_k": 2}).json()
    assert await classify(None, ["a", "b"], top_k=2) == expected
    with pytest.raises(TypeError, match="unexpected keyword argument 'topk'"):
        await classify(None, ["a"], topk=1)
    with pytest.raises(InputError, match=r"at `\$.texts`"):
        await classify(None, "a")


async def test_a_generator(serve_method: ServeMethod) -> None:
    served = serve_method("generate")
    generate: Any = create_function(METHODS["generate"], lambda: served.models, served.arguments)
    assert inspect.isasyncgenfunction(generate)
    call = {"prompt": "Hello my dog", "max_tokens": 5, "temperature": 0}
    pieces = [piece async for piece in generate(None, **call)]
    assert "".join(pieces) == served.client.post("/bentoml/generate", json=call).text


async def test_a_model_that_is_not_loaded(serve_method: ServeMethod) -> None:
    served = serve_method("classify", model_name="gone")
    [model] = served.models
    await model.unload()
    classify = create_function(METHODS["classify"], lambda: served.models, served.arguments)
    with pytest.raises(ModelNotReadyError):
        await classify(None, ["a"])
