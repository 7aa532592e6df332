"""The rivals of the engine's benchmark compute what they say, and its figures are what was measured."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.engine import throughput
from benchmarks.engine.contenders import Contender, Figures, Window, from_json, measure, to_json
from benchmarks.engine.rivals import make_trainer
from benchmarks.engine.rounds import run
from benchmarks.engine.tally import Tally
from benchmarks.method.trials import merged
from bll import checkpoint, data
from bll.intra_op import intra_op_threads
from bll.partition import resolve
from bll.training import Training, _digest

MLP = {
    "data": {"name": "digits", "validation_rows": 64},
    "network": {"architecture": "mlp", "widths": [8, 8]},
    "blocks": {"num_blocks": 2},
    "batch_size": 32,
}
AUGMENTED_CNN = {
    "data": {"name": "digits", "augmentation": "shift_flip", "train_rows": 64, "validation_rows": 32},
    "network": {"widths": [4, 8]},
    "optimizer": {"weight_decay": 0.1, "backward_learning_rate": 1e-2, "schedule": "constant"},
    "rule": "backprop",
    "batch_size": 32,
    "epochs": 1,
}
# Without batch normalisation, whose statistics are those of microbatches and shares: the one thing that may differ.
TRANSFORMER = {
    "data": {"name": "reversal"},
    "network": {"architecture": "transformer", "widths": [8] * 3, "heads": 2},
    "latent": {"units": 4, "readout": "linear"},
    "batch_size": 8,
}
STEPS = 3
PARALLEL = {"ddp": 1, "gpipe": 4, "1f1b": 2}
"""With their microbatches."""

RANK = """
import sys, torch
from pathlib import Path
from benchmarks.engine.contend import process_group
from benchmarks.engine.contenders import from_json
from benchmarks.engine.rivals import make_trainer
from bll import data
from bll.partition import resolve

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
with process_group(rank, 2, f"file://{folder}/store"):
    for text in sys.argv[3:]:
        contender = from_json(text)
        plan = resolve(contender.config())
        dataset = data.load(plan.config.data, plan.config.seed)
        trainer = make_trainer(contender.kind, plan, dataset, contender.cuts, contender.microbatches)
        for number in range(3):
            trainer.step(number)
        gradients = {name: parameter.grad for name, parameter in trainer.module.named_parameters()}
        torch.save(gradients, folder / f"{contender.kind}{rank}.pt")
"""


def plain_loop(contender: Contender, steps: int) -> nn.Module:
    plan = resolve(contender.config())
    trainer = make_trainer("backprop", plan, data.load(plan.config.data, plan.config.seed), (), 1)
    for number in range(steps):
        trainer.step(number)
    return trainer.module


def test_the_plain_loop_trains_what_the_rule_backprop_trains(tmp_path: Path) -> None:
    contender = Contender("backprop", AUGMENTED_CNN, Window(1, 1))
    plan = resolve(contender.config())
    plan = replace(plan, steps_per_epoch=2, config=replace(plan.config, epochs=1))
    for _ in (training := Training(plan, tmp_path)).events():
        pass
    blocks = checkpoint.below("block.", checkpoint.load_block(tmp_path, training.plan.total_steps, 0, _digest(plan)))
    with intra_op_threads(1):  # as the run has: sums in another order are other sums
        own = plain_loop(contender, 2).state_dict()
    exit_name = max(int(name.partition(".")[0]) for name in own)
    for name, weights in own.items():
        stored = name.removeprefix(f"{exit_name}.") if name.startswith(f"{exit_name}.") else f"layers.{name}"
        torch.testing.assert_close(weights, blocks[stored], msg=name)


def test_parallel_rivals_learn_from_the_gradients_of_the_plain_loop(tmp_path: Path) -> None:
    contenders = [
        Contender(kind, TRANSFORMER, Window(1, 1), ranks=2, cuts=(2,), microbatches=microbatches)
        for kind, microbatches in PARALLEL.items()
    ]
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path), *map(to_json, contenders)]) for rank in range(2)]
    assert [process.wait(100) for process in ranks] == [0, 0]
    plain = plain_loop(replace(contenders[0], kind="backprop"), STEPS)
    expected = {name: parameter.grad for name, parameter in plain.named_parameters()}
    for kind in PARALLEL:
        found: list[dict[str, Tensor]] = [torch.load(tmp_path / f"{kind}{rank}.pt") for rank in range(2)]
        assert (found[0].keys() == found[1].keys()) == (kind == "ddp")
        assert found[0].keys() | found[1].keys() == expected.keys()
        for name, gradient in (*found[0].items(), *found[1].items()):
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("kind", "ranks", "executor"), [("bll", 1, "processes"), ("1f1b", 2, "auto")])
def test_a_contender_tells_its_throughput_and_memory(kind: str, ranks: int, executor: str) -> None:
    spec = merged(TRANSFORMER, {"blocks": {"num_blocks": 2}, "executor": {"name": executor}})
    figures = measure(Contender(kind, spec, Window(2, 2), ranks=ranks, cuts=(2,), microbatches=2))
    assert figures["samples_per_s"] > 0
    assert 0 < figures["net_bytes"] < figures["peak_bytes"]


def test_a_contender_survives_its_way_to_another_process() -> None:
    contender = Contender("gpipe", MLP, Window(3, 5), threads=2, ranks=2, cuts=(4,), microbatches=8)
    assert from_json(to_json(contender)) == contender


@pytest.mark.parametrize("repeats", range(1, 9))
def test_the_first_epoch_outlasts_the_window(repeats: int) -> None:
    window = Window(5, repeats)
    assert window.warm_up + window.steps < window.steps_per_epoch


def test_rounds_alternate_are_kept_and_are_measured_again_for_another_window(tmp_path: Path) -> None:
    asked: list[str] = []

    def fake(contender: Contender) -> Figures:
        asked.append(contender.kind)
        return {"samples_per_s": 10.0 * len(asked)}

    contenders = {kind: Contender(kind, MLP, Window(1, 1)) for kind in ("backprop", "bll")}
    rounds = run(contenders, 2, Tally("rounds", tmp_path), "mlp", fake)
    assert asked == ["backprop", "bll", "bll", "backprop"]
    assert rounds.values("backprop") == [10.0, 40.0]
    assert rounds.ratio("bll", "backprop") == pytest.approx((20 / 10 + 30 / 40) / 2)
    assert rounds.fastest(rounds.names) == "backprop"

    run(contenders, 3, Tally("rounds", tmp_path), "mlp", fake)
    assert asked[4:] == ["backprop", "bll"]
    changed = {kind: replace(contender, window=Window(1, 2)) for kind, contender in contenders.items()}
    run(changed, 1, Tally("rounds", tmp_path), "mlp", fake)
    assert asked[6:] == ["backprop", "bll"]


def test_a_race_is_held_against_its_bounds_and_targets(tmp_path: Path) -> None:
    speeds = {"backprop": 100.0, "ddp": 110.0, "gpipe": 80.0, "1f1b": 90.0}

    def fake(contender: Contender) -> Figures:
        if contender.kind == "backprop":
            return {"samples_per_s": 160.0 if contender.threads == 2 else 100.0}
        alone = contender.spec.get("executor", {}).get("name") == "sequential"
        return {"samples_per_s": speeds.get(contender.kind, 95.0 if alone else 180.0)}

    race = replace(throughput.RACES[0], over_backprop=1.3, of_bound=0.9)
    rounds = run(race.contenders(cut=4), 1, Tally("race", tmp_path), "some", fake)
    rows = {row.what: row for row in throughput.rows_of(race, rounds)}
    best = f"BLL, {race.num_blocks[0]} blocks, 2 threads"
    assert rows[f"{best}, over {throughput.BACKPROP}"].value == pytest.approx(180 / 160)
    assert rows[f"{best}, over {throughput.BACKPROP}"].target == 1.3
    assert rows[f"{best}, over the best pipeline, 1F1B, 2 microbatches"].value == pytest.approx(2.0)
    assert rows["bound over backprop at equal work"].value == pytest.approx(2 / 1.6)
    assert rows[f"{best}, of the bound at equal work"].value == pytest.approx((180 / 160) / (2 / 1.6))
    assert rows[f"{best}, of the bound of its own work"].value == pytest.approx(180 / (2 * 95))
