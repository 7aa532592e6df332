"""Readouts against the operators that they stand for."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bll.readouts import GridPool


@pytest.mark.parametrize(("size", "grid"), [((14, 14), (3, 3)), ((7, 5), (3, 2)), ((4, 4), (4, 4)), ((1, 1), (1, 1))])
def test_grid_pool_is_adaptive_average_pooling(size: tuple[int, int], grid: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pool = GridPool(size, grid).double()
    expected = F.adaptive_avg_pool2d(images, grid)
    torch.testing.assert_close(pool(images), expected, rtol=1e-6, atol=1e-6)  # the cells' weights are float32
