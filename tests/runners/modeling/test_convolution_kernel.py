"""Linear layers as convolutions: how rows become images."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from runners.modeling.convolution_kernel import ConvolutionKernel, cut_rows

ALL = tuple(range(4, 129, 4))
# The widths of a layer of 3072 inputs on a CPU with AVX2.
SOME = (24, 36, 40, 48, 52, 56, 60, 64, 72, 80, 88, 96, 120, 128)


@pytest.mark.parametrize(
    ("count", "widths", "expected"),
    [
        pytest.param(0, ALL, (1, 4), id="no rows need an image too"),
        pytest.param(1, ALL, (1, 4), id="rows are added"),
        pytest.param(40, ALL, (1, 40), id="a width that fits"),
        pytest.param(8, SOME, (1, 24), id="the least width"),
        pytest.param(32, SOME, (1, 36), id="the next width"),
        pytest.param(104, SOME, (2, 52), id="two images with fewer added rows than one"),
        pytest.param(128, SOME, (1, 128), id="the largest width"),
        pytest.param(200, ALL, (2, 100), id="more than the largest width"),
        pytest.param(1384, ALL, (12, 116), id="few added rows rather than the fewest images"),
        pytest.param(1536, SOME, (12, 128), id="a full batch"),
    ],
)
def test_rows_are_cut_into_images_of_one_width(count: int, widths: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert cut_rows(count, widths) == expected


@pytest.mark.parametrize("count", range(0, 3000, 37))
def test_few_rows_are_added(count: int) -> None:
    for widths in (ALL, SOME):
        images, width = cut_rows(count, widths)
        assert width in widths
        assert 0 <= images * width - count < max(widths[0], 25) + count / 12


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 192), (192, 64), (100, 300), (768, 72)])
@torch.inference_mode()
def test_a_row_has_the_same_bits_at_every_number_of_rows(inputs: int, outputs: int) -> None:
    layer = nn.Linear(inputs, outputs)
    try:
        run = ConvolutionKernel(layer.weight.detach(), layer.bias)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this PyTorch has no such kernel on this CPU: {error}")
    rows = torch.randn(500, inputs)
    expected = run(rows)
    torch.testing.assert_close(expected, layer(rows), atol=1e-5, rtol=0)
    for count in (*range(200), 256, 333, 499):
        assert torch.equal(run(rows[:count].contiguous()), expected[:count]), f"{count} rows"
