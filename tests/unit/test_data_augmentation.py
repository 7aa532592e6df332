"""Augmentation against a loop over images, and its determinism."""

import pytest
import torch

from bll.choices import Augmentation
from bll.data import augment
from bll.data.augmentation import MAX_SHIFT

IMAGES_BCHW = torch.rand(64, 3, 7, 5, generator=torch.Generator().manual_seed(0)) + 0.1


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifted(image_CHW: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """Pixel by pixel: what augment's gather must equal."""
    out = torch.zeros_like(image_CHW)
    _, H, W = image_CHW.shape
    for h in range(H):
        for w in range(W):
            if 0 <= h + down < H and 0 <= w + right < W:
                out[:, h, w] = image_CHW[:, h + down, w + right]
    return out


def candidates(image_CHW: torch.Tensor) -> list[torch.Tensor]:
    moves = range(-MAX_SHIFT, MAX_SHIFT + 1)
    return [shifted(image_CHW, down, right) for down in moves for right in moves]


def test_none_returns_the_images_and_draws_nothing() -> None:
    source = generator()
    before = source.get_state()
    assert augment(IMAGES_BCHW, Augmentation.NONE, source) is IMAGES_BCHW
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("augmentation", [Augmentation.SHIFT, Augmentation.SHIFT_FLIP])
def test_the_generators_state_decides_the_result(augmentation: Augmentation) -> None:
    once, again = (augment(IMAGES_BCHW, augmentation, generator()) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, augment(IMAGES_BCHW, augmentation, generator(2)))


def test_each_image_moves_by_at_most_two_pixels_over_zeros() -> None:
    moved = augment(IMAGES_BCHW, Augmentation.SHIFT, generator())
    found = [
        next(i for i, wanted in enumerate(candidates(image)) if torch.equal(out, wanted))
        for image, out in zip(IMAGES_BCHW, moved, strict=True)
    ]
    assert len(set(found)) > 15  # of 25 moves, for 64 images


def test_about_half_of_the_images_are_mirrored() -> None:
    moved = augment(IMAGES_BCHW, Augmentation.SHIFT_FLIP, generator())
    straight = [any(torch.equal(o, c) for c in candidates(i)) for i, o in zip(IMAGES_BCHW, moved, strict=True)]
    mirrored = [any(torch.equal(o.flip(2), c) for c in candidates(i)) for i, o in zip(IMAGES_BCHW, moved, strict=True)]
    assert all(a or b for a, b in zip(straight, mirrored, strict=True))
    assert 16 < sum(mirrored) < 48


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 8, 8)])
def test_shape_and_type_stay(shape: tuple[int, ...]) -> None:
    for images in (torch.ones(shape), torch.ones(shape, dtype=torch.uint8)):
        moved = augment(images, Augmentation.SHIFT_FLIP, generator())
        assert moved.shape == shape
        assert moved.dtype == images.dtype


def test_the_images_given_are_not_changed() -> None:
    before = IMAGES_BCHW.clone()
    augment(IMAGES_BCHW, Augmentation.SHIFT_FLIP, generator())
    assert torch.equal(IMAGES_BCHW, before)
