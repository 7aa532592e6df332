"""Block-local learning (arXiv 2305.14974) as a library.

    from bll import TrainingConfig, fit

    model = fit(TrainingConfig(epochs=2))
    print(model.evaluate("test").mixture)

Names are loaded when they are first used: `import bll` does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bll.architectures.layers import KeyedDropout as KeyedDropout
    from bll.architectures.modules import Layers as Layers
    from bll.config import BackwardConfig as BackwardConfig
    from bll.config import BlocksConfig as BlocksConfig
    from bll.config import DataConfig as DataConfig
    from bll.config import LatentConfig as LatentConfig
    from bll.config import MixingConfig as MixingConfig
    from bll.config import NetworkConfig as NetworkConfig
    from bll.config import OptimizerConfig as OptimizerConfig
    from bll.config import TrainingConfig as TrainingConfig
    from bll.errors import BllError as BllError
    from bll.execution import ExecutorConfig as ExecutorConfig
    from bll.model import TrainedModel as TrainedModel
    from bll.partition import resolve as resolve
    from bll.plan import Plan as Plan
    from bll.regression.model import RegressionModel as RegressionModel
    from bll.training import Training as Training
    from bll.training import fit as fit
    from bll.training import fit_regression as fit_regression

_HOMES = {
    "BackwardConfig": "bll.config",
    "BlocksConfig": "bll.config",
    "BllError": "bll.errors",
    "DataConfig": "bll.config",
    "ExecutorConfig": "bll.execution",
    "KeyedDropout": "bll.architectures.layers",
    "LatentConfig": "bll.config",
    "Layers": "bll.architectures.modules",
    "MixingConfig": "bll.config",
    "NetworkConfig": "bll.config",
    "OptimizerConfig": "bll.config",
    "Plan": "bll.plan",
    "RegressionModel": "bll.regression.model",
    "TrainedModel": "bll.model",
    "Training": "bll.training",
    "TrainingConfig": "bll.config",
    "fit": "bll.training",
    "fit_regression": "bll.training",
    "resolve": "bll.partition",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bll' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
