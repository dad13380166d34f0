"""Changing the size of grids: means are kept going down, shapes and simple signals going up."""

import pytest
import torch

from next_scale.resample import default_upsampling, downsample, upsample

UP = [("nearest", 1), ("linear", 1), ("nearest", 2), ("linear", 2), ("cubic", 2)]


SIZES = [((8,), (4,)), ((9,), (6,)), ((75,), (31,)), ((6, 9), (2, 3)), ((16, 16), (13, 10))]


@pytest.mark.parametrize("grid, size", SIZES)
def test_downsampling_averages_areas(grid, size):
    x = torch.randn(2, 3, *grid)
    got = downsample(x, size)
    assert got.shape == (2, 3, *size)
    if len(grid) == 1:  # the definition: cell i covers floor(i n / m) to ceil((i + 1) n / m)
        n, m = grid[0], size[0]
        want = torch.stack([x[..., i * n // m : -(-(i + 1) * n // m)].mean(-1) for i in range(m)], -1)
        torch.testing.assert_close(got, want)
    elif all(n % m == 0 for n, m in zip(grid, size, strict=True)):
        torch.testing.assert_close(got.mean((2, 3)), x.mean((2, 3)))


@pytest.mark.parametrize("grid", [(5,), (4, 3)])
def test_same_size_is_left_alone(grid):
    x = torch.randn(1, 2, *grid)
    assert downsample(x, grid) is x
    for method, dim in UP:
        if dim == len(grid):
            assert upsample(x, grid, method) is x


@pytest.mark.parametrize("method, dim", UP)
@pytest.mark.parametrize("small, large", [(1, 4), (2, 5), (3, 9)])
def test_upsampling_keeps_constants_and_gradients(method, dim, small, large):
    x = torch.full((1, 2, *[small] * dim), 1.5, requires_grad=True)
    y = upsample(x, (large,) * dim, method)
    assert y.shape == (1, 2, *[large] * dim)
    torch.testing.assert_close(y, torch.full_like(y, 1.5))
    y.sum().backward()
    torch.testing.assert_close(x.grad.sum(), torch.tensor(2.0 * large**dim))


def test_nearest_repeats():
    x = torch.randn(1, 2, 3)
    assert torch.equal(upsample(x, (12,), "nearest"), x.repeat_interleave(4, 2))  # as SNAC does


def test_linear_interpolates_between_centres():
    got = upsample(torch.tensor([[[0.0, 1.0]]]), (4,), "linear")
    torch.testing.assert_close(got, torch.tensor([[[0.0, 0.25, 0.75, 1.0]]]))


def test_defaults():
    assert (default_upsampling(1), default_upsampling(2)) == ("linear", "cubic")
