"""Random change of training images. Imports torch; the rest of `bll.data` does not.

Shapes: B batch, C channels, H height, W width; S = 2 * MAX_SHIFT + 1 positions along an axis.
"""

import torch
from torch.nn.functional import pad

from bll.choices import Augmentation

MAX_SHIFT = 2
"""Pixels that an image moves at most, in each direction."""


def augment(images_BCHW: torch.Tensor, augmentation: Augmentation, generator: torch.Generator) -> torch.Tensor:
    """The images, each moved by up to MAX_SHIFT pixels over zeros and, for SHIFT_FLIP, mirrored with probability 1/2.

    Deterministic given the generator's state, which NONE leaves alone; NONE returns the images themselves.
    """
    if augmentation is Augmentation.NONE:
        return images_BCHW
    B, _, H, W = images_BCHW.shape
    positions = 2 * MAX_SHIFT + 1
    down_B, right_B = torch.randint(positions, (2, B), generator=generator, device=generator.device)
    # A view of every window of the padded images, [B, C, S, S, H, W]; one gather then picks a window for each image.
    windows = pad(images_BCHW, [MAX_SHIFT] * 4).unfold(2, H, 1).unfold(3, W, 1)
    device = images_BCHW.device
    moved_BCHW = windows[torch.arange(B, device=device), :, down_B.to(device), right_B.to(device)]
    if augmentation is Augmentation.SHIFT:
        return moved_BCHW
    mirror_B = torch.randint(2, (B,), generator=generator, device=generator.device).to(device)
    return torch.where(mirror_B.view(B, 1, 1, 1) == 1, moved_BCHW.flip(3), moved_BCHW)
