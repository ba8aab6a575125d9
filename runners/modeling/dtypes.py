"""Names of data types. Importing this module imports no torch."""

from __future__ import annotations


def name_dtype(dtype: object) -> str:
    """The name of a `torch.dtype`, as in `--dtype`: float32 for torch.float32."""
    return str(dtype).removeprefix("torch.")
