"""The networks that the engine is measured with."""

from __future__ import annotations

from benchmarks.method.groups.specs import BACKPROP, CNN, FASHION
from benchmarks.method.trials import Spec, merged

RESNET18: Spec = {"data": FASHION, "network": {"architecture": "resnet18"}, "blocks": {"num_blocks": 2}}
"""On images of 28x28, with the stem of small images."""
HALVED_RESNET18 = merged(RESNET18, {"network": {"stem_stride": 2}})
"""With a stem that halves the image: a quarter of the work, in the same blocks."""

TRANSFORMER: Spec = {"data": {"name": "reversal"}, "network": {"architecture": "transformer"}}
"""Of 20 layers, on sequences to be reversed."""

UNEXAMINED: Spec = {"diagnostics": {"per_epoch": 0}}
"""Without diagnostics, whose cost is measured by itself: a benchmark's short epochs would have too many of them."""

__all__ = ["BACKPROP", "CNN", "HALVED_RESNET18", "RESNET18", "TRANSFORMER", "UNEXAMINED"]
