"""An actor a worker on Ray, on this machine or a cluster. Nothing outside this package imports Ray."""

from bll.executors.ray.executor import RayExecutor

__all__ = ["RayExecutor"]
