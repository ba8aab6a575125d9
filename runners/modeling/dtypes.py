"""Names of data types. Importing this module imports no torch."""

from __future__ import annotations

# The data types with larger numbers.
_WIDER = {"float16": "bfloat16 or float32", "bfloat16": "float32"}


def name_dtype(dtype: object) -> str:
    """The name of a `torch.dtype`, as in `--dtype`: float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")


def advise_wider(dtype: object) -> str:
    """The end of an error about numbers that are too large for a `torch.dtype`; empty if there is no wider one."""
    wider = _WIDER.get(name_dtype(dtype))
    return f": set --dtype to {wider}" if wider else ""
