"""All groups, in the order of the table in issue 3, which is their priority."""

from benchmarks.method.groups.cnn import BLOCKS, CNN_RULES, GAP
from benchmarks.method.groups.mlp import MLP_RULES
from benchmarks.method.groups.tasks import AUTOENCODER, REVERSAL, SEGMENTATION
from benchmarks.method.groups.uncertainty import HELD_OUT, UNCERTAINTY
from benchmarks.method.groups.variants import (
    DEPTH,
    IDENTITY_CHAIN,
    LARGE,
    MISSPECIFIED,
    MIXING,
    MNIST_FORMAT,
    RESNET18,
)

GROUPS = (
    MLP_RULES,
    CNN_RULES,
    GAP,
    IDENTITY_CHAIN,
    RESNET18,
    BLOCKS,
    MIXING,
    DEPTH,
    LARGE,
    MNIST_FORMAT,
    REVERSAL,
    AUTOENCODER,
    SEGMENTATION,
    UNCERTAINTY,
    HELD_OUT,
    MISSPECIFIED,
)

__all__ = ["GROUPS"]
