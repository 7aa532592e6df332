"""Ray as a run uses it: started on this machine, a cluster at an address, or the one that its user is connected to."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from bll.cores import usable_cores
from bll.errors import ClusterError

Bundle = dict[str, float]
"""What one worker needs: CPUs, and perhaps a GPU."""

CONNECT_S = 5.0
"""How long a cluster's head may take to accept a connection."""
ANSWER_S = 60.0
"""How long it may then take to take in a new driver."""
ROOM_S = {"here": 30.0, "cluster": 300.0}
"""How long there may be no room for a run: on a cluster, an autoscaler needs minutes for new nodes."""

_PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, configure_logging=False)"
_FOLDER = "bll-ray-"
_LEAST_STORE_BYTES = 128 * 2**20


class Cluster:
    """A connection to Ray, and the room in it that was reserved."""

    def __init__(self, address: str, bundles: Sequence[Bundle], store_bytes: int) -> None:
        """Connect to `address`; if empty, start Ray here with room for `bundles` and `store_bytes` of objects, unless
        this process is connected already. Raises ClusterError."""
        self._kind = "cluster" if address else "here"
        self._is_ours = not ray.is_initialized()
        self._folder = ""
        self._groups: list[PlacementGroup] = []
        if self._is_ours and address:
            _check_answers(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        elif self._is_ours:
            self._start(bundles, store_bytes)
        elif address:
            raise ClusterError(
                f"executor.address must be empty in a process that is connected to Ray already, got '{address}'"
            )

    def reserve(self, bundles: Sequence[Bundle]) -> PlacementGroup:
        """Room for each of `bundles`, on as few nodes as can be: neighbours pass on megabytes at every step.

        Raises ClusterError if there is none in time.
        """
        group: PlacementGroup = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
        self._groups.append(group)
        if not group.wait(ROOM_S[self._kind]):
            there = ray.cluster_resources()  # type: ignore[no-untyped-call]
            have = {kind: there.get(kind, 0.0) for kind in ("CPU", "GPU")}
            raise ClusterError(
                f"no room within {ROOM_S[self._kind]:g} s for {len(bundles)} workers that need {_shown(_sum(bundles))} "
                f"in all; Ray has {_shown(have)}, used by others or on nodes that are too small"
            )
        return group

    def close(self) -> None:
        """Give back what was reserved, and end Ray if it was started here. Repeatable."""
        while self._groups:
            with suppress(RayError):
                remove_placement_group(self._groups.pop())
        if self._is_ours:
            ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()

    def _start(self, bundles: Sequence[Bundle], store_bytes: int) -> None:
        # The default, /tmp/ray, would keep the logs of every run. Sockets inside allow only a short path.
        _remove_left_folders()
        self._folder = tempfile.mkdtemp(prefix=_FOLDER)
        self._lock = (Path(self._folder) / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # As with processes, it is the user who says how many workers share the cores.
        cpus = max(usable_cores(), _sum(bundles)["CPU"])
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            num_cpus=int(cpus),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=max(_LEAST_STORE_BYTES, store_bytes),
            _temp_dir=self._folder,
        )


def _remove_left_folders() -> None:
    """Remove the folders of runs that were killed: their locks are free."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*/lock"):
        with suppress(OSError), lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent, ignore_errors=True)


def _check_answers(address: str) -> None:
    """Raises ClusterError unless a driver can connect to `address`.

    Ray itself tries for minutes and may then end the process: so another one tries first.
    """
    host, _, port = address.partition(":")
    command = [sys.executable, "-c", _PROBE, address]
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()
        tried = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = f"no answer within {ANSWER_S:g} s" if isinstance(error, subprocess.TimeoutExpired) else str(error)
        raise ClusterError(f"executor.address: no Ray cluster answers at '{address}': {reason}") from error
    if tried.returncode:
        lines = tried.stderr.strip().splitlines() or [f"its driver ended with exit code {tried.returncode}"]
        raise ClusterError(f"executor.address: the Ray cluster at '{address}' takes in no driver: {lines[-1]}")


def _sum(bundles: Sequence[Bundle]) -> Bundle:
    return {kind: sum(bundle.get(kind, 0.0) for bundle in bundles) for kind in ("CPU", "GPU")}


def _shown(bundle: Bundle) -> str:
    return f"{bundle['CPU']:g} CPUs and {bundle['GPU']:g} GPUs"
