"""A linear layer as a convolution of width 1, for which oneDNN has another kernel than for linear layers.

The rows of a batch are the pixels of images with one line. On a CPU with AVX2 this kernel is 10 to 20 % faster than
oneDNN's for linear layers. Its layout of the weight depends on the width of the images, and a weight in another layout
is converted at every call, which takes 20 times as long as the layer. So images have those widths only that share a
layout, and rows are added where no such width fits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from math import prod
from typing import Any, Final

import torch
from torch import Tensor

from runners.modeling.trial_cache import recall_or_try

# The width whose layout the weight gets; of all layouts that oneDNN asks for, most other widths share this one.
_LAYOUT_WIDTH = 48
_WIDTHS = range(4, 129, 4)
# An image takes as long as so many more rows.
_IMAGE_ROWS = 2
# The least width of one of several images.
_LEAST_WIDTH = 48


class ConvolutionKernel:
    """oneDNN's convolution; a row has the same bits in every batch."""

    name: Final = "oneDNN's convolution"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """
        Args:
            weight: [outputs, inputs].
            bias: [outputs].

        Raises:
            AttributeError, RuntimeError: this PyTorch, CPU or dtype does not have the kernel.
        """
        self.outputs = len(weight)
        self._bias = bias
        self._widths = _list_widths(weight)
        self._packed = _pack(weight, _LAYOUT_WIDTH)

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        count = prod(rows.shape[:-1])
        images, width = cut_rows(count, self._widths)
        pixels = rows.reshape(count, rows.shape[-1])
        if images * width > count:
            pixels = _append_rows(pixels, images * width)
        # From [image, line, pixel, channel] to PyTorch's order and back; the memory keeps the first order.
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            pixels.view(images, 1, width, -1).permute(0, 3, 1, 2), self._packed, self._bias,
            [0, 0], [1, 1], [1, 1], 1, "none", [], "",
        )  # fmt: skip
        outputs = result.permute(0, 2, 3, 1).reshape(images * width, self.outputs)
        return outputs[:count].view(*rows.shape[:-1], self.outputs)


def _append_rows(rows: Tensor, total: int) -> Tensor:
    """Add rows of zeros; `functional.pad` also fills the rows that it then overwrites."""
    padded = rows.new_empty(total, rows.shape[1])
    padded[: len(rows)] = rows
    padded[len(rows) :] = 0
    return padded


@functools.lru_cache(maxsize=2**14)
def cut_rows(count: int, widths: Sequence[int]) -> tuple[int, int]:
    """Cut rows into images of one width, in the way that takes least time.

    Args:
        count: of the rows.
        widths: that an image can have, in ascending order.

    Returns:
        The number of images, and their width.
    """
    fewest = max(1, -(-count // widths[-1]))
    numbers = range(fewest, max(fewest, count // _LEAST_WIDTH) + 1)
    forms = [(images, next(width for width in widths if images * width >= count)) for images in numbers]
    return min(forms, key=lambda form: form[0] * (form[1] + _IMAGE_ROWS))


def _list_widths(weight: Tensor) -> tuple[int, ...]:
    """The widths of images that share the layout of a weight, in ascending order."""

    def compare() -> list[int]:
        layout = _describe_layout(weight, _LAYOUT_WIDTH)
        return [width for width in _WIDTHS if torch.equal(_describe_layout(weight, width), layout)]

    key = {
        "trial": "widths of a convolution",
        "shape": list(weight.shape),
        "dtype": str(weight.dtype),
        "threads": torch.get_num_threads(),
    }
    return tuple(recall_or_try(key, compare, _parse_widths))


def _parse_widths(value: Any) -> list[int]:
    """Some of the widths that an image can have, at least one."""
    if not isinstance(value, list) or not value or not all(type(each) is int and each in _WIDTHS for each in value):
        raise ValueError(f"{value!r} are no widths")
    return value


def _describe_layout(weight: Tensor, width: int) -> Tensor:
    description: Tensor = torch.ops.mkldnn._get_mkldnn_serialized_md(_pack(weight, width))
    return description


def _pack(weight: Tensor, width: int) -> Tensor:
    """The weight [outputs, inputs] in the layout for an image of this width."""
    outputs, inputs = weight.shape
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight.view(outputs, inputs, 1, 1), [0, 0], [1, 1], [1, 1], 1, [1, inputs, 1, width]
    )
    return packed
