"""Errors of vLLM as errors of this server."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pydantic import ValidationError

from runners.core.errors import InputError, one_line


def describe_error(error: Exception) -> str:
    """The message of an error of vLLM in one line."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return one_line(error) or type(error).__name__


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Turn a refusal of vLLM within the block into an InputError.

    Raises:
        InputError: vLLM has refused the request.
    """
    from vllm.exceptions import VLLMClientError

    try:
        yield
    except (VLLMClientError, ValueError) as error:
        raise InputError(describe_error(error)) from error
