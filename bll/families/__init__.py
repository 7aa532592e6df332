"""Families of the latents z_k."""

from __future__ import annotations

from bll.choices import FamilyName
from bll.config import LatentConfig
from bll.families.base import ExponentialFamily, Family
from bll.families.exponential import Bernoulli, Categorical, Gaussian, LaplaceScale, UnitGaussian
from bll.families.laplace import Laplace

__all__ = [
    "Bernoulli",
    "Categorical",
    "ExponentialFamily",
    "Family",
    "Gaussian",
    "Laplace",
    "LaplaceScale",
    "UnitGaussian",
    "make_family",
]


def make_family(config: LatentConfig) -> Family:
    """The family that `config` names."""
    bounds = (config.min_variance, config.max_variance)
    match config.family:
        case FamilyName.BERNOULLI:
            return Bernoulli()
        case FamilyName.CATEGORICAL:
            return Categorical(config.group_size)
        case FamilyName.GAUSSIAN:
            return Gaussian(*bounds)
        case FamilyName.UNIT_GAUSSIAN:
            return UnitGaussian()
        case FamilyName.LAPLACE:
            return Laplace(*bounds)
        case FamilyName.LAPLACE_SCALE:
            return LaplaceScale(*bounds)
