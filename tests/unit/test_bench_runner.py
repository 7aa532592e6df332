"""The benchmark runner: what is measured is kept, what was cut short is done again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.method import behaviour, made, runner
from benchmarks.method.groups import GROUPS
from benchmarks.method.paired import log_prediction
from benchmarks.method.runner import NotTrained, Runner, predictions
from benchmarks.method.trials import Contender, Group, Store, Trial, merged
from bll.data import Dataset, Split

SPEC = {
    "data": {"name": "digits"},
    "network": {"architecture": "mlp", "widths": [8, 8]},
    "blocks": {"num_blocks": 2},
    "epochs": 2,
}
TRIAL = Trial("some", "bll", SPEC, seed=0)

DIE_AT_THE_FIRST_CHECKPOINT = """
import json, os, signal, sys
from pathlib import Path
from benchmarks.method import measures
from benchmarks.method.paired import log_prediction
from benchmarks.method.runner import Runner
from benchmarks.method.trials import Store, Trial
from bll.events import CheckpointSaved

class Dying(measures.Clock):
    def event(self, event):
        super().event(event)
        if isinstance(event, CheckpointSaved):
            os.kill(os.getpid(), signal.SIGKILL)

measures.Clock = Dying
folder, spec = Path(sys.argv[1]), json.loads(sys.argv[2])
Runner(Store(folder / "trials"), folder / "cache").measure(Trial("some", "bll", spec, seed=0))
"""


@pytest.fixture
def measuring(tmp_path: Path) -> Runner:
    return Runner(Store(tmp_path / "trials"), tmp_path / "cache")


def test_a_finished_trial_is_kept_and_one_with_another_spec_is_measured(measuring: Runner) -> None:
    said = measuring.measure(TRIAL)
    first = measuring.store.read(TRIAL)
    assert first
    assert first["figures"]["mixture.accuracy"] > 0.2
    assert measuring.measure(TRIAL) == f"kept: {said}"
    changed = replace(TRIAL, spec=merged(SPEC, {"epochs": 3}))
    assert measuring.store.read(changed) is None
    assert "kept" not in measuring.measure(changed)
    again = measuring.store.read(changed)
    assert again
    assert again["epochs"] == 3
    assert again["figures"] != first["figures"]


def test_other_code_keeps_a_trial_only_while_it_behaves_the_same(
    measuring: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring.measure(TRIAL)
    monkeypatch.setattr(runner, "code_digest", lambda: "other code")
    assert measuring.measure(TRIAL).startswith("kept, same behaviour")
    monkeypatch.setattr(runner, "code_digest", lambda: "code with other numerics")
    monkeypatch.setattr(behaviour, "_probe", lambda config, data_root: "other predictions")
    assert replace(measuring, trust=True).measure(TRIAL).startswith("kept: ")
    assert "kept" not in measuring.measure(TRIAL)


def test_a_trial_killed_in_the_middle_goes_on_to_the_same_result(measuring: Runner, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DIE_AT_THE_FIRST_CHECKPOINT, str(tmp_path), json.dumps(SPEC)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert measuring.store.read(TRIAL) is None
    measuring.measure(TRIAL)
    whole = Runner(Store(tmp_path / "whole"), tmp_path / "other cache")
    whole.measure(TRIAL)
    scores = []
    for measured in (measuring, whole):
        stored = measured.store.read(TRIAL)
        assert stored
        arrays = predictions(stored, measured.cache)
        assert arrays
        assert arrays["test_exits"].shape == (2, len(arrays["test_targets"]), 10)
        scores.append({name: value for name, value in stored["figures"].items() if "." in name})
    assert scores[0] == scores[1]


def test_a_trial_that_fails_is_told_and_the_others_go_on(measuring: Runner, capsys: pytest.CaptureFixture[str]) -> None:
    bad = Trial("some", "bad", merged(SPEC, {"epochs": 0}), seed=0)
    assert measuring.run([bad, TRIAL], jobs=1) == [bad]
    lines = capsys.readouterr().out.splitlines()
    assert "some/bad-seed0" in lines[0]
    assert "FAILED: InvalidConfig: epochs: must be" in lines[0]
    assert measuring.store.read(TRIAL)


def test_all_contenders_come_with_the_first_seed_before_any_comes_with_the_second() -> None:
    group = Group("some", "", {"a": Contender(SPEC, seeds=(0, 1)), "b": Contender(SPEC, seeds=(0,))})
    assert [trial.key for trial in group.trials()] == ["some/a-seed0", "some/b-seed0", "some/a-seed1"]


def test_every_trial_has_a_key_of_its_own_and_every_claim_names_contenders_that_there_are() -> None:
    keys = [trial.key for group in GROUPS for trial in group.trials()]
    assert len(keys) == len(set(keys))
    named = {f"{group.name}/{name}" for group in GROUPS for name in group.contenders}
    for group in GROUPS:
        references = [r for claim in group.claims for r in (claim.of, claim.against) if r]
        whole = [r.partition(":")[0] for r in references]
        assert {name if "/" in name else f"{group.name}/{name}" for name in [*whole, *group.also]} <= named


def test_an_ensemble_is_the_mean_of_networks_trained_before(measuring: Runner) -> None:
    members = tuple(replace(TRIAL, seed=seed) for seed in (0, 1))
    both = replace(TRIAL, name="both", measure="ensemble", bases=members)
    with pytest.raises(NotTrained, match="some/bll-seed0, which is not there"):
        measuring.measure(both)
    exits, figures = [], {}
    for trial in (*members, both):
        measuring.measure(trial)
        stored = measuring.store.read(trial)
        assert stored
        figures = stored["figures"]
        arrays = predictions(stored, measuring.cache)
        assert arrays
        exits.append(arrays["test_exits"])
    # Each member was tested on its own seed's rows of digits; the ensemble on those of the first.
    np.testing.assert_allclose(exits[2][0], log_prediction(exits[0], "mixture"), atol=1e-5)
    assert figures["ood.mean.entropy"] > 0.5
    alone = replace(TRIAL, name="alone", measure="uncertainty", bases=members[:1])
    measuring.measure(alone)
    stored, before = measuring.store.read(alone), measuring.store.read(members[0])
    assert stored
    assert before
    assert stored["figures"]["mixture.nll"] == before["figures"]["mixture.nll"]
    assert stored["figures"]["tempered.nll"] > 0
    assert 0.7 < stored["figures"]["set90%.coverage"] <= 1
    assert stored["figures"]["ood"] > 0.5
    assert measuring.measure(both).startswith("kept: ")


def test_a_chain_twin_comes_to_align_with_the_forward_weights_beside_it(measuring: Runner) -> None:
    latents = {"latent": {"readout": "identity", "units": 16}, "backward": {"twin": "chain"}}
    chain = replace(TRIAL, spec=merged(SPEC, latents, {"network": {"widths": [16, 16]}, "epochs": 15}))
    measuring.measure(chain)
    weights = replace(chain, name="weights", measure="alignment", bases=(chain,))
    measuring.measure(weights)
    stored = measuring.store.read(weights)
    assert stored
    assert stored["figures"]["alignment"] > 0.1
    assert abs(stored["figures"]["boundary1.alignment_by_chance"]) < stored["figures"]["alignment"]


def test_classes_held_out_are_in_neither_split_and_the_others_are_numbered_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = np.tile(np.arange(4), 3)
    rows = Split(np.broadcast_to(targets[:, None, None, None], (12, 1, 2, 2)).astype(np.uint8), targets)
    whole = Dataset("four", rows, rows, rows, ("a", "b", "c", "d"), digest="")
    monkeypatch.setattr("benchmarks.method.made.data.load", lambda config, seed: whole)
    path = tmp_path / "fashion-without-1-2.npz"
    made.write(path)
    with np.load(path) as arrays:
        for split, count in (("train", 12), ("test", 6)):
            images, numbers = arrays[f"x_{split}"], arrays[f"y_{split}"]
            assert images.shape == (count, 2, 2)
            assert set(zip(images[:, 0, 0], numbers, strict=True)) == {(0, 0), (3, 1)}
