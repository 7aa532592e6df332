"""One Ray for all tests of this folder: it takes seconds to start. And a place for jobs in every kind of database."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from bll_server.jobs.schema import metadata

CLOCKED = '''
import math, pathlib, time

from torch import nn

from bll.architectures.layers import Architecture, Layer

HERE = pathlib.Path(__file__).parent


class Clocked(nn.Linear):
    """Notes when each training step began here and when its gradient was there; fails once a file `fail` exists."""

    def __init__(self, number, inputs, outputs):
        super().__init__(inputs, outputs)
        self.number, self.began = number, 0
        self.weight.register_post_accumulate_grad_hook(self.note)

    def note(self, _):
        with open(HERE / f"steps-{self.number}", "a") as file:
            file.write(f"{self.began} {time.monotonic_ns()}\\n")

    def forward(self, hidden):
        self.began = time.monotonic_ns()
        if (HERE / "fail").exists():
            raise ArithmeticError("as asked")
        return super().forward(hidden.flatten(1)).relu()


def layers(config, input_shape):
    units = [math.prod(input_shape), *config.widths]
    return [
        Layer(f"clocked {number}", lambda number=number: Clocked(number, units[number], units[number + 1]))
        for number in range(len(config.widths))
    ]


CLOCKED = Architecture(layers, widths=(512, 512))
'''


@pytest.fixture(scope="session")
def clocked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on every worker's path with the architecture `clocked`, one layer for each of `network.widths`."""
    folder = tmp_path_factory.mktemp("clocked")
    (folder / "clocked.py").write_text(CLOCKED)
    (folder / "clocked-1.0.dist-info").mkdir()
    (folder / "clocked-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: clocked\nVersion: 1.0\n")
    (folder / "clocked-1.0.dist-info" / "entry_points.txt").write_text(
        "[bll.architectures]\nclocked = clocked:CLOCKED\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))  # which worker processes take over; actors look at the variable
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        yield folder


@pytest.fixture(scope="session")
def ray_here(clocked: Path) -> Iterator[str]:
    """Ray, started as a user would who then trains in the same process; its address."""
    import ray

    from bll.executors.ray.cluster import Cluster

    cluster = Cluster("", [{"CPU": 8}], 0)
    yield ray.get_runtime_context().gcs_address
    cluster.close()


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def job_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Path | sa.URL]]:
    """Tells where a store can be opened: an empty database of each kind. The store before is closed by then."""
    if request.param == "sqlite":
        yield lambda: tmp_path_factory.mktemp("jobs") / "bll.db"
        return
    url = sa.make_url(request.getfixturevalue("postgres").database(request.module.__name__.rpartition(".")[2]))
    engine = sa.create_engine(url.set(drivername="postgresql+psycopg"))

    def emptied() -> sa.URL:
        with engine.begin() as connection:
            if sa.inspect(connection).has_table("jobs"):
                connection.execute(sa.text(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY"))
        return url

    yield emptied
    engine.dispose()
