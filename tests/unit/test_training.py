"""What block-local learning means for a run: locality, its backprop twin, and `fit` as a library."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bll import DataConfig, TrainingConfig, fit
from bll import data as datasets
from bll.blocks import build_block
from bll.checkpoint import below, load_block
from bll.errors import DataError
from bll.events import BlockProgress, Evaluation
from bll.losses import Objective
from bll.optimizers import learning_rate_scale
from bll.partition import resolve
from bll.plain import from_dict
from bll.training import Training, _digest


def config(**values: Any) -> TrainingConfig:
    mlp = {"architecture": "mlp", "widths": [16, 16]}
    base = {"data": {"name": "digits"}, "network": mlp, "blocks": {"num_blocks": 2}, "epochs": 2, "batch_size": 128}
    return from_dict(TrainingConfig, {**base, "executor": {"name": "sequential"}, **values})


def block_state(run_config: TrainingConfig, index: int, run_dir: Path) -> dict[str, torch.Tensor]:
    plan = resolve(run_config)
    list(Training(plan, run_dir).events())
    return below("block.", load_block(run_dir, plan.total_steps, index, _digest(plan)))


def test_what_a_block_learns_does_not_depend_on_the_blocks_after_it(tmp_path: Path) -> None:
    small = block_state(config(blocks={"num_blocks": 2, "cuts": [1]}), 0, tmp_path / "small")
    wide = {"architecture": "mlp", "widths": [16, 64, 64]}
    large = block_state(config(network=wide, blocks={"num_blocks": 2, "cuts": [1]}), 0, tmp_path / "large")
    assert small.keys() == large.keys()
    for name, tensor in small.items():
        torch.testing.assert_close(tensor, large[name], rtol=0, atol=0)


def test_with_a_chain_twin_only_class_tables_reach_a_block_from_its_right(tmp_path: Path) -> None:
    """The right neighbour's readout and layers differ, its tables do not: learning rate 1e-8 freezes its twin."""
    sgd = {"name": "sgd", "learning_rate": 0.1, "backward_learning_rate": 1e-8}
    frozen = {"optimizer": sgd, "backward": {"twin": "chain"}}
    cuts = {"num_blocks": 2, "cuts": [1]}
    small = block_state(config(**frozen, blocks=cuts), 0, tmp_path / "small")
    wide = {"architecture": "mlp", "widths": [16, 64]}
    large = block_state(config(**frozen, blocks=cuts, network=wide), 0, tmp_path / "large")
    for name, tensor in small.items():
        torch.testing.assert_close(tensor, large[name], rtol=1e-4, atol=1e-6)


def test_backprop_twin_is_the_plain_training_loop(tmp_path: Path) -> None:
    # Plain SGD: Adam would blow up the last bits wherever a gradient is nearly zero.
    sgd = {"name": "sgd", "learning_rate": 0.1, "backward_learning_rate": 0.05, "momentum": 0.5}
    run_config = config(rule="backprop", optimizer={**sgd, "schedule": "constant", "weight_decay": 0.01})
    found = block_state(run_config, 0, tmp_path)
    plan = resolve(run_config)
    dataset = datasets.load(plan.config.data, 0)
    block = build_block(plan, 0, datasets.statistics(dataset.train)).train()
    objective = Objective(block.readout.family, plan.config.loss)
    forward, twin = block.forward_parameters(), list(block.twin.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in forward if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in forward if p.ndim == 1]},
        {"params": twin, "lr": 0.05},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.5)
    for epoch in range(2):
        order = datasets.epoch_order(len(dataset.train), 0, epoch)
        for step in range(plan.steps_per_epoch):
            rows = order[step * 128 : (step + 1) * 128]
            alpha_BPD = block.readout(block.layers(torch.from_numpy(datasets.as_float(dataset.train.inputs[rows]))))
            log_probs_BC = objective.exit_log_probs(alpha_BPD, block.twin(None))
            optimizer.zero_grad()
            targets_B = torch.from_numpy(dataset.train.targets[rows])
            torch.autograd.backward(torch.nn.functional.nll_loss(log_probs_BC, targets_B))
            optimizer.step()
    for name, tensor in block.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_fit_learns_and_predicts_with_an_uncertainty_for_every_sample() -> None:
    seen: list[Evaluation] = []
    run_config = config(epochs=12, batch_size=64)
    model = fit(run_config, on_event=lambda e: seen.append(e) if isinstance(e, Evaluation) else None)
    test = model.evaluate("test")
    assert test.mixture.accuracy > 0.9
    assert test.mixture_gap_nats >= 0
    assert astuple(seen[-1].mixture) == pytest.approx(astuple(model.evaluate("validation").mixture), rel=1e-5)
    rows = datasets.load(run_config.data, 0).test.inputs[:5]
    prediction = model.predict(rows)
    assert prediction["probabilities"].shape == (5, 10)
    assert prediction["posterior_variance"].shape == (5, 2)
    np.testing.assert_allclose(prediction["probabilities"].sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "gaussian", "unit_gaussian", "laplace"])
@pytest.mark.parametrize("loss", ["evidence", "discriminative"])
def test_every_family_learns_by_every_loss(family: str, loss: str) -> None:
    run_config = config(latent={"family": family}, loss={"name": loss}, epochs=12, batch_size=32)
    assert fit(run_config).evaluate("test").mixture.accuracy > 0.85


def test_divergence_alone_collapses() -> None:
    """The loss as the paper's summary words it: the messages vanish, and nothing is learned (method, section 1)."""
    kl_nats: list[float] = []

    def listen(event: object) -> None:
        if isinstance(event, BlockProgress):
            kl_nats.append(event.kl_nats)

    model = fit(config(loss={"name": "divergence"}, epochs=12, batch_size=32), on_event=listen)
    assert kl_nats[-1] < kl_nats[0] / 100
    assert model.evaluate("test").mixture.accuracy < 0.3


def test_fit_goes_on_in_a_folder_of_its_own(tmp_path: Path) -> None:
    first = fit(config(), run_dir=tmp_path)
    again: list[object] = []
    second = fit(config(), run_dir=tmp_path, on_event=again.append)
    assert len(again) == 1
    for name, tensor in first.network.state_dict().items():
        torch.testing.assert_close(tensor, second.network.state_dict()[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (np.zeros((2, 9, 9), "f4"), r"shape must be \(rows, 1, 8, 8\), got \(2, 9, 9\)"),
        (np.zeros((0, 1, 8, 8), "f4"), "shape must be"),
        (np.zeros((2, 1, 8, 8), "i8"), "dtype must be float32 or uint8, got int64"),
    ],
)
def test_samples_that_do_not_fit_are_refused(inputs: np.ndarray, words: str) -> None:
    model = fit(config(epochs=1))
    with pytest.raises(DataError, match=words):
        model.predict(inputs)


def test_a_users_arrays_are_trained_on(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = generator.normal(size=(300, 6)).astype("f4") * 50 + y[:, None] * 100
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    own = DataConfig("npz", "mine.npz")
    run_config = TrainingConfig(data=own, network=config().network, blocks=config().blocks, epochs=20, batch_size=32)
    model = fit(run_config, data_root=tmp_path)
    assert model.evaluate("validation").mixture.accuracy > 0.9
    assert model.splits == ("validation",)
    with pytest.raises(DataError, match="no rows"):
        model.evaluate("test")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"schedule": "constant"}, [1, 1, 1]),
        ({"schedule": "cosine"}, [1, 0.5, (1 - np.cos(np.pi / 100)) / 2]),
        ({"schedule": "constant", "warmup_steps": 100}, [0.01, 0.51, 1]),
    ],
)
def test_learning_rate_follows_its_schedule(values: dict[str, Any], expected: list[float]) -> None:
    optimizer = config(optimizer=values).optimizer
    assert [learning_rate_scale(optimizer, step, 100) for step in (0, 50, 99)] == pytest.approx(expected)
