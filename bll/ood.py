"""How unlike its training rows a sample is to a network: the evidence of features at every boundary, as one score.

The features of boundary k are block k's output, images averaged to a grid. Training rows give each class a Gaussian,
all with one covariance; a sample's distance is Mahalanobis', squared, to the nearest class (Lee et al. 2018). What
quantile of the training rows' distances that is, is told as a normal score; the largest of all boundaries, which is
the smallest tail probability, is calibrated in the same way once more, for the boundaries are not independent.

Measured on validation rows of an MLP and a CNN trained without two classes (unknown: these two, noise, inverted and
shuffled images, digits), mean AUROC 0.98: the latent's mean parameters as features gave 0.95, the exits' own evidence
0.88, the largest probability 0.75. The distance relative to that of one Gaussian for all rows (Ren et al. 2021) gave
the same under a strong shrinkage and failed under a weak one; the mean over boundaries gave the same as the largest.

Shapes: B batch, C classes, F features, S segments of a lookup. Everything is products with
constants, so that a graph holds it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bll.readouts import GridPool
from bll.seeding import derive

MAX_ROWS = 10_000
"""Training rows that are looked at; half of them make the Gaussians, the others the quantiles."""

_GRID = 3
_MAX_FEATURES = 512
"""More are projected on as many random directions."""
_NORMAL_SCORES = np.arange(-3.0, 3.25, 0.5)
"""Where quantiles of the training rows are kept; between them a lookup is linear, and beyond them too."""
_RESOLUTION = 1e-3
"""Standard deviation of a feature, in root mean squares of all, below which its direction is not made longer."""
_DISTINCT = 0.01
"""Least difference of two squared distances, a feature, and of two normal scores, that is not taken for rounding; of
distances that features tell anything by, a sixth of a standard deviation at most."""
_LARGEST = 1e15
"""Of a feature, whitened or not: products and squares of such have room in float32, so that no score is NaN."""


class Features(nn.Module):
    """The features of one boundary, shape (B, F), from a block's output."""

    directions: Tensor

    def __init__(self, output_shape: tuple[int, ...], seed: int) -> None:
        super().__init__()
        self.pool: nn.Module = nn.Identity()
        if len(output_shape) == 3:
            channels, height, width = output_shape
            grid = (min(_GRID, height), min(_GRID, width))
            self.pool = GridPool((height, width), grid)
            output_shape = (channels, *grid)
        pooled = math.prod(output_shape)
        self.is_projected = pooled > _MAX_FEATURES
        if self.is_projected:
            draws = np.random.default_rng(seed).normal(size=(pooled, _MAX_FEATURES)) / math.sqrt(pooled)
            self.register_buffer("directions", torch.from_numpy(draws).float())

    def forward(self, output: Tensor) -> Tensor:
        pooled: Tensor = self.pool(output)
        features_BF = pooled.flatten(1).clamp(-_LARGEST, _LARGEST)
        return features_BF @ self.directions if self.is_projected else features_BF


class ClassDistance(nn.Module):
    """Squared Mahalanobis distance to the nearest class mean, shape (B,)."""

    centre_F: Tensor
    whitening_FF: Tensor
    means_CF: Tensor

    def __init__(self, features_BF: NDArray[np.float64], targets_B: NDArray[np.integer]) -> None:
        """Fitted to training rows; classes that have none are left out."""
        super().__init__()
        centre_F = features_BF.mean(0)
        centred_BF = features_BF - centre_F
        classes, index_B = np.unique(targets_B, return_inverse=True)
        means_CF = np.stack([centred_BF[index_B == c].mean(0) for c in range(len(classes))])
        covariance_FF = shrunk_covariance(centred_BF - means_CF[index_B])
        # Directions in which the features vary less than float32 and another kernel's rounding can tell from nothing
        # would count for more than all others.
        resolved = (_RESOLUTION**2) * np.square(features_BF).mean()
        covariance_FF += resolved * np.eye(len(centre_F))
        whitening_FF = np.linalg.inv(np.linalg.cholesky(covariance_FF)).T
        for name, values in (
            ("centre_F", centre_F),
            ("whitening_FF", whitening_FF),
            ("means_CF", means_CF @ whitening_FF),
        ):
            self.register_buffer(name, torch.from_numpy(values).float())

    def forward(self, features_BF: Tensor) -> Tensor:
        white_BF = ((features_BF - self.centre_F) @ self.whitening_FF).clamp(-_LARGEST, _LARGEST)
        # Less |u|^2, which is the same for all classes: a matrix product, and no tensor of shape (B, C, F). It finds
        # the class, not the distance, which would be a small difference of large numbers where classes lie far apart.
        nearest_B = (self.means_CF.square().sum(1) - 2 * white_BF @ self.means_CF.T).argmin(1)
        return (white_BF - self.means_CF[nearest_B]).square().sum(1)


class NormalScore(nn.Module):
    """The normal score of a value's quantile among training values: piecewise linear, strictly rising, no bounds."""

    start_S: Tensor
    slope_S: Tensor
    least_S: Tensor
    most_S: Tensor

    def __init__(self, values_B: NDArray[np.floating], resolution: float) -> None:
        """Fitted to training values, of which two that differ by less than `resolution` are as good as equal."""
        super().__init__()
        levels = [(1 + math.erf(z / math.sqrt(2))) / 2 for z in _NORMAL_SCORES]
        knots = np.quantile(values_B.astype(np.float64), levels)
        # Equal values leave no width: the floor keeps rounding from deciding between two quantiles.
        widths_S = np.maximum(np.diff(knots), resolution)
        steps = np.diff(_NORMAL_SCORES)
        self.register_buffer("start_S", torch.from_numpy(knots[:-1]).float())
        self.register_buffer("slope_S", torch.from_numpy(steps / widths_S).float())
        # Each segment adds its part of the rise; the first goes on downwards, the last upwards.
        self.register_buffer("least_S", torch.tensor([-math.inf, *[0.0] * (len(steps) - 1)]))
        self.register_buffer("most_S", torch.tensor([*steps[:-1].tolist(), math.inf]))

    def forward(self, values_B: Tensor) -> Tensor:
        rises_BS = (values_B.unsqueeze(1) - self.start_S) * self.slope_S
        bounded_BS = torch.minimum(torch.maximum(rises_BS, self.least_S), self.most_S)
        return bounded_BS.sum(1) + float(_NORMAL_SCORES[0])


class OodScore(nn.Module):
    """1 less the fraction of training rows at least as unlike the others as a sample is: 0 to 1, shape (B,)."""

    def __init__(
        self,
        features: Sequence[Features],
        distances: Sequence[ClassDistance],
        scores: Sequence[NormalScore],
        combined: Sequence[NormalScore],
    ) -> None:
        """`combined`: for each boundary, the score of the largest of those up to it."""
        super().__init__()
        self.boundaries = nn.ModuleList(
            nn.Sequential(*parts) for parts in zip(features, distances, scores, strict=True)
        )
        self.combined = nn.ModuleList(combined)

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """Of the outputs of all blocks."""
        scores = [boundary(output) for boundary, output in zip(self.boundaries, outputs, strict=True)]
        return probability_below(self.combined[-1](torch.stack(scores).amax(0)))


def probability_below(score_B: Tensor) -> Tensor:
    """The probability below each normal score."""
    return (1 + torch.erf(score_B / math.sqrt(2))) / 2


@torch.no_grad()
def fit_ood_score(
    blocks: Callable[[Tensor], Sequence[Tensor]],
    batches: Iterable[Tensor],
    targets_B: NDArray[np.integer],
    seed: int,
) -> OodScore:
    """The score fitted to training rows, two or more in random order; `blocks` gives the output of every block."""
    features: list[Features] = []
    gathered: list[list[Tensor]] = []
    for inputs in batches:
        outputs = blocks(inputs)
        features = features or [
            Features(tuple(output.shape[1:]), derive(seed, "ood", index)) for index, output in enumerate(outputs)
        ]
        gathered.append([own(output) for own, output in zip(features, outputs, strict=True)])
    distances, scores, combined, largest_B = [], [], [], None
    for index in range(len(features)):
        rows_BF = torch.cat([parts[index] for parts in gathered])
        # Other rows make the quantiles than made the Gaussians, to which their own rows are nearer than new ones.
        distance = ClassDistance(rows_BF[::2].double().numpy(), targets_B[::2])
        distances_B = distance(rows_BF[1::2])
        scores.append(NormalScore(distances_B.numpy(), _DISTINCT * rows_BF.shape[1]))
        own_B = scores[-1](distances_B)
        largest_B = own_B if largest_B is None else torch.maximum(largest_B, own_B)
        combined.append(NormalScore(largest_B.numpy(), _DISTINCT))
        distances.append(distance)
    assert combined, "there is no training row"
    return OodScore(features, distances, scores, combined)


def shrunk_covariance(residuals_BF: NDArray[np.float64]) -> NDArray[np.float64]:
    """Covariance of centred rows, drawn towards a multiple of the identity by as much as their number asks for
    (Ledoit and Wolf 2004); never singular."""
    rows, width = residuals_BF.shape
    covariance_FF = residuals_BF.T @ residuals_BF / rows
    scale = np.trace(covariance_FF) / width
    square = (covariance_FF**2).sum()
    distance = square / width - scale**2
    noise = (((residuals_BF**2).sum(1) ** 2).mean() - square) / (width * rows)
    shrinkage = min(noise, distance) / distance if distance > 0 else 0.0
    # A millionth of the scale where the formula asks for no shrinkage, and a bit where no feature varies at all.
    ridge = shrinkage * scale + 1e-6 * scale + 1e-12
    result: NDArray[np.float64] = (1 - shrinkage) * covariance_FF + ridge * np.eye(width)
    return result
