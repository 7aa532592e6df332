import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bll.choices import LossName, TargetName
from bll.config import BlocksConfig, DataConfig, LossConfig, NetworkConfig, TrainingConfig
from bll_server.errors import InvalidRequest, ShuttingDown
from bll_server.jobs.planner import Planner
from bll_server.jobs.records import plan_from_json, plan_to_json

SMALL = TrainingConfig(
    data=DataConfig(name="digits"),
    network=NetworkConfig(architecture="mlp", widths=(8, 8)),
    blocks=BlocksConfig(num_blocks=2),
)


def test_a_planner_that_died_is_started_again_and_one_that_was_closed_is_not(tmp_path: Path) -> None:
    planner = Planner(tmp_path)
    plan = planner.plan(SMALL)
    assert plan.num_blocks == 2
    assert plan_from_json(plan_to_json(plan)) == plan
    planner._child.kill()
    planner._child.wait()
    assert planner.plan(SMALL) == plan
    planner.close()
    with pytest.raises(ShuttingDown):
        planner.plan(SMALL)


def test_targets_with_positions_are_refused_by_the_name_of_their_data(tmp_path: Path) -> None:
    planner = Planner(tmp_path)
    network = NetworkConfig(architecture="transformer", widths=(8, 8))
    with pytest.raises(
        InvalidRequest, match=r"one class a row: .* got 'reversal' with targets of shape \[16\]"
    ) as caught:
        planner.plan(
            TrainingConfig(data=DataConfig(name="reversal"), network=network, blocks=BlocksConfig(num_blocks=2))
        )
    assert [v.field for v in caught.value.violations] == ["job.spec.data.name"]
    planner.close()


def test_a_plan_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    planner = Planner(tmp_path, timeout_s=0.01)  # torch alone takes longer
    with pytest.raises(InvalidRequest, match=r"job\.spec: must be plannable"):
        planner.plan(SMALL)
    planner.close()


def test_real_valued_targets_are_not_served(tmp_path: Path) -> None:
    planner = Planner(tmp_path)
    data = DataConfig("digits", target=TargetName.INPUTS)
    with pytest.raises(InvalidRequest, match=r"job\.spec\.data\.target: must be 'labels'"):
        planner.plan(replace(SMALL, data=data, loss=LossConfig(LossName.DECODER)))
    planner.close()


def test_a_planner_ends_with_its_input_which_is_the_servers_death(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bll_server.jobs.planner", str(tmp_path)]
    done = subprocess.run(command, input="{}\n", capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.count("\n") == 1


def test_the_serving_process_loads_neither_torch_nor_a_model_runtime() -> None:
    program = (
        "import sys, bll_server.app, bll_server.__main__;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'sklearn', 'structlog', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
