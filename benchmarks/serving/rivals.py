"""The peers: other model servers in Python, each in an environment of its own that is made from the package index."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving import bodies, load, model
from benchmarks.serving.effort import FOLDER
from benchmarks.serving.processes import Serving, end, wait_for

_ADAPTERS = Path(__file__).parent / "peers"
_CONSTRAINT = "torch>=2.9,<2.14"
"""The project's own range, for those that bring torch along; none needs it for an ONNX graph."""
_INSTALL_S = 1200.0


@dataclass(frozen=True)
class Peer:
    """How one peer is installed, started and called."""

    name: str
    requirements: tuple[str, ...]
    command: Callable[[Path, tuple[int, int, int]], list[str]]
    """From the folder of its programs and three free ports."""
    target: Callable[[tuple[int, int, int], int], load.Target]
    """From the ports and the rows of a request."""
    is_grpc: bool = False


PEERS = (
    Peer(
        "mlserver",
        ("mlserver", "onnxruntime"),
        lambda programs, ports: [str(programs / "mlserver"), "start", str(_mlserver_folder(ports))],
        lambda ports, rows: bodies.kserve(f"127.0.0.1:{ports[1]}", rows),
        is_grpc=True,
    ),
    Peer(
        "kserve",
        ("kserve", "onnxruntime"),
        lambda programs, ports: [
            str(programs / "python"),
            str(_ADAPTERS / "kserve_model.py"),
            str(ports[0]),
            str(ports[1]),
        ],
        lambda ports, rows: bodies.kserve(f"127.0.0.1:{ports[1]}", rows),
        is_grpc=True,
    ),
    Peer(
        "litserve",
        ("litserve", "onnxruntime"),
        lambda programs, ports: [str(programs / "python"), str(_ADAPTERS / "litserve_model.py"), str(ports[0])],
        lambda ports, rows: bodies.encoded(f"127.0.0.1:{ports[0]}", "/predict", rows),
    ),
    Peer(
        "bentoml",
        ("bentoml", "onnxruntime"),
        lambda programs, ports: [
            *(str(programs / "bentoml"), "serve", "bentoml_model:Fashion"),
            *("--host", "127.0.0.1", "--port", str(ports[0]), "--working-dir", str(_ADAPTERS)),
        ],
        lambda ports, rows: bodies.encoded(f"127.0.0.1:{ports[0]}", "/predict", rows),
    ),
    Peer(
        "mosec",
        ("mosec", "onnxruntime"),
        lambda programs, ports: [
            *(str(programs / "python"), str(_ADAPTERS / "mosec_model.py")),
            *("--address", "127.0.0.1", "--port", str(ports[0])),
        ],
        lambda ports, rows: bodies.octets(f"127.0.0.1:{ports[0]}", "/inference", rows),
    ),
    Peer(
        "pytriton",
        ("nvidia-pytriton", "onnxruntime"),
        lambda programs, ports: [str(programs / "python"), str(_ADAPTERS / "pytriton_model.py"), *map(str, ports)],
        lambda ports, rows: bodies.kserve(f"127.0.0.1:{ports[1]}", rows),
        is_grpc=True,
    ),
)


class NotInstalled(Exception):
    """A peer that the package index has not for this machine, or that does not start."""


def environment(peer: Peer) -> Path:
    """The folder of the programs of the peer's environment, which is made if it is not there. Raises NotInstalled."""
    folder = FOLDER / "peers" / peer.name
    programs, done = folder / "bin", folder / "installed"
    if done.exists():
        return programs
    constraints = FOLDER / "peers" / "constraints.txt"
    constraints.parent.mkdir(parents=True, exist_ok=True)
    constraints.write_text(_CONSTRAINT + "\n")
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, text=True)
        pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
        subprocess.run([*pip, *peer.requirements], check=True, capture_output=True, text=True, timeout=_INSTALL_S)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no message"]
        raise NotInstalled(f"{peer.name}: {lines[-1][:300]}") from error
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{peer.name}: not installed within {_INSTALL_S:g} s") from error
    done.touch()
    return programs


@contextmanager
def serving(peer: Peer, log: Path, rows: int) -> Iterator[tuple[Serving, load.Target]]:
    """The peer, once it has answered a request of so many rows. Raises NotInstalled."""
    programs = environment(peer)
    ports = _free_ports()
    variables = os.environ | {
        "MODEL": str(model.graph()),
        "PYTHONPATH": str(_ADAPTERS),
        "PATH": f"{programs}:{os.environ['PATH']}",
        "BENTOML_DO_NOT_TRACK": "1",
    }
    with log.open("a") as output:
        process = subprocess.Popen(
            peer.command(programs, ports),
            env=variables,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    target = peer.target(ports, rows)
    try:
        wait_for(lambda: _answers(process, target))
    except (TimeoutError, RuntimeError) as error:
        end(process)
        raise NotInstalled(f"{peer.name}: does not serve: {log.read_text()[-500:]}") from error
    try:
        yield Serving(process, target.address), target
    finally:
        end(process)


def _answers(process: subprocess.Popen[str], target: load.Target) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"the process has ended with {process.returncode}")
    found = load.run(load.Load(target, 0.05, timeout_s=5, warm_up_s=0))
    return bool(found.answered)


def _free_ports() -> tuple[int, int, int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    first, second, third = (found.getsockname()[1] for found in sockets)
    for found in sockets:
        found.close()
    return first, second, third


def _mlserver_folder(ports: tuple[int, int, int]) -> Path:
    """A folder with MLServer's settings: without processes of its own, which cost every call a hop."""
    folder = Path(tempfile.mkdtemp(prefix="bll-bench-"))
    http, grpc, metrics = ports
    settings = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics, "parallel_workers": 0, "debug": False}
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(
        json.dumps({"name": model.NAME, "implementation": "mlserver_model.Fashion"})
    )
    return folder
