"""The functions of which BentoML makes the methods of the service.

They answer calls in this process. Those over HTTP pass BentoML's routes by (see `routes.py`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from protocol.bentoml_api.arguments import sign
from protocol.bentoml_api.methods import Method
from runners.core.request_limits import RequestLimits

if TYPE_CHECKING:
    from protocol.bentoml_api.calls import Values
    from runners.core.models import Models
    from runners.core.runner import Runner


def create_function(method: Method, get_models: Callable[[], Models], limits: RequestLimits) -> Callable[..., Any]:
    """The function of a method, with the name, the signature and the text that users see.

    Args:
        get_models: returns the models of this process.
    """
    signature = sign(method.arguments, method.output)

    # The parent process, which needs only the signatures, imports no numpy.
    def read(self: object, *given: Any, **named: Any) -> tuple[Runner, Values]:
        from protocol.bentoml_api.calls import read_values, select_from

        arguments = signature.bind(self, *given, **named).arguments
        values = read_values(method, {name: value for name, value in arguments.items() if name != "self"})
        return select_from(get_models(), method).select(values.get("model")), values

    async def answer(*given: Any, **named: Any) -> Any:
        from protocol.bentoml_api.calls import infer, to_python

        predictions, render = await infer(method, *read(*given, **named), limits)
        return to_python(render(predictions))

    async def answer_in_pieces(*given: Any, **named: Any) -> AsyncGenerator[str, None]:
        from protocol.bentoml_api.calls import stream

        async with aclosing(stream(method, *read(*given, **named), limits)) as pieces:
            async for piece in pieces:
                if piece is not None:
                    yield piece

    function: Any = answer_in_pieces if method.is_stream else answer
    function.__name__ = method.name
    function.__doc__ = method.description
    function.__signature__ = signature
    return cast(Callable[..., Any], function)
