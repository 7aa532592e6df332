"""Rules that recognise, in a run's events, the failures which block-local learning is known for (method, section 8).

An epoch is judged when all of it has been told: its evaluation, and every block's last report and diagnostics.
Executors bring the events of different blocks in different orders; the alarms do not depend on that.
Only runs that learn classes are judged: the bounds are in accuracies, and in nats of a guess among classes.
Torch is not imported here.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from bll.choices import LossName
from bll.events import Alarm, AlarmSignature, BlockDiagnostics, BlockProgress, Evaluation, Event, Figure
from bll.plan import Plan

# Measured on healthy and on failing runs, a few seconds to minutes each: digits with an MLP in four blocks, and 3,000
# rows of Fashion-MNIST with the demo's network; every family and twin, losses evidence and discriminative, 5 to 40
# epochs. Beside each bound stands what was seen. tests/unit/test_alarms.py repeats some.

WINDOW = 3
"""Epochs that a failure must last. Later blocks learn later: in healthy runs they had caught up after two."""
MEMORY = 6
"""Epochs that are looked back on."""
REPEAT = 10
"""Epochs after which an alarm that still holds is raised again."""

SLOPE = 0.01
"""Fall of the loss in an epoch, as a fraction of log C, below which it stands still."""
UNLEARNED = 0.5
"""An exit's NLL, as a fraction of log C, above which it is far from having learned. Healthy: at most 0.52 in the third
epoch, and less in each that follows."""
AGREEMENT = 0.1
"""Cosine of forward and backward message below which they have nothing to do with each other. Healthy: 0.28 to 0.76
from the second epoch on."""
COLLAPSED, EXPLODED = 0.05, 10.0
"""Root mean square of b. Healthy: 0.25 to 0.8; with a backward learning rate 5,000 times too high, 12 to 15."""
RANK_FALL = 0.5
"""Effective rank, as a fraction of the largest remembered, at which it has fallen. Healthy: above 0.45; the random
directions of the start are given up while the loss falls."""
RANK = 0.25
"""Effective rank, as a fraction of the C - 1 directions that tell C classes apart, below which it is too small.
Healthy: above 0.48."""

SWING = 0.5
"""Nats by which the log of an epoch's mean posterior variance goes up and comes down again. Healthy: below 0.1;
failing: above 1.4."""
SATURATED = 0.5
"""Fraction of units at their bounds. Healthy: at most 0.03; failing: 0.6 to 1."""

FALL = 0.03
"""Accuracy that the last exit lacks to the best, at least; and three standard errors of the difference. Healthy: at
most 0.07 of 144 rows, 0.02 of 1,000; failing: 0.2 to 0.6."""
GAP = 0.25
"""Nats of mixture gap, which must also exceed the mixture's own NLL, with a last exit no better than the first.
Healthy: at most 0.12 nats from the third epoch on, and 0.9 of the NLL."""

_EVIDENCE = "loss.name 'evidence'"
_REMEDIES = {
    "agreement": (_EVIDENCE, "a higher learning rate, above all the backward one", "blocks.normalize_messages"),
    "collapsed": (_EVIDENCE, "a higher optimizer.backward_learning_rate"),
    "exploded": (_EVIDENCE, "a lower optimizer.backward_learning_rate"),
    "rank": (_EVIDENCE, "a richer latent.readout", "more latent.readout_units", "blocks.normalize_messages"),
    "swing": ("a slower rise of mixing", "a lower learning rate", "optimizer.warmup_steps", "another latent.family"),
    "saturated": ("a smaller mixing", "wider bounds of the variance", "a lower learning rate", "another latent.family"),
    "gap": ("fewer blocks", "a richer latent.readout", "loss.span 2", "latent.readout 'next_layer'"),
}


@dataclass(frozen=True)
class _BlockEpoch:
    """One block over one epoch."""

    loss_nats: float
    posterior_variance: float
    last: BlockDiagnostics


@dataclass
class _Epoch:
    """What has been told of one epoch so far."""

    progress: dict[int, dict[int, BlockProgress]] = field(default_factory=lambda: defaultdict(dict))
    """The reports of each block, by step: what is told again after a roll-back replaces what was told before."""
    diagnostics: dict[int, BlockDiagnostics] = field(default_factory=dict)
    """The newest of each block."""
    evaluation: Evaluation | None = None

    def is_complete(self, plan: Plan, last_step: int) -> bool:
        told = [max(reports) for reports in self.progress.values()] + [d.step for d in self.diagnostics.values()]
        return self.evaluation is not None and told.count(last_step) == 2 * plan.num_blocks

    def block(self, index: int) -> _BlockEpoch:
        reports = self.progress[index].values()
        return _BlockEpoch(
            loss_nats=sum(report.loss_nats for report in reports) / len(reports),
            posterior_variance=sum(report.posterior_variance for report in reports) / len(reports),
            last=self.diagnostics[index],
        )


@dataclass(frozen=True)
class _Finding:
    """Why an alarm is raised."""

    signature: AlarmSignature
    remedy: str
    cause: str
    values: dict[str, float]


class Watch:
    """Follows one run. After a resume it begins anew, and knows of no epoch before."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._epochs: dict[int, _Epoch] = defaultdict(_Epoch)
        self._blocks: list[list[_BlockEpoch]] = [[] for _ in plan.blocks]
        self._evaluations: list[Evaluation] = []
        self._raised: dict[tuple[AlarmSignature, int | None], int] = {}
        # While the learning rate still rises, a loss that stands still says nothing.
        self._next_epoch = -(-plan.config.optimizer.warmup_steps // plan.steps_per_epoch)
        """The first that is still to be judged. What a run that was rolled back tells of earlier ones is known."""

    def observe(self, event: Event) -> Iterator[Alarm]:
        """Takes in one event of a run; the alarms that it gives rise to."""
        if self.plan.is_regression:
            return
        if not isinstance(event, BlockProgress | BlockDiagnostics | Evaluation) or event.epoch < self._next_epoch:
            return
        epoch = self._epochs[event.epoch]
        match event:
            case BlockProgress():
                epoch.progress[event.block][event.step] = event
            case BlockDiagnostics():
                epoch.diagnostics[event.block] = event
            case Evaluation():
                epoch.evaluation = event
        if epoch.is_complete(self.plan, (event.epoch + 1) * self.plan.steps_per_epoch):
            self._next_epoch = event.epoch + 1
            yield from self._judge(event.epoch, self._epochs.pop(event.epoch))

    def _judge(self, number: int, epoch: _Epoch) -> Iterator[Alarm]:
        assert epoch.evaluation is not None
        self._evaluations = [*self._evaluations, epoch.evaluation][-MEMORY:]
        for index, history in enumerate(self._blocks):
            history[:] = [*history, epoch.block(index)][-MEMORY:]
        if len(self._evaluations) < WINDOW:
            return
        for index, history in enumerate(self._blocks):
            shortfall = _shortfall(epoch.evaluation, index)
            for finding in (_plateau(history, shortfall, self.plan), _uncertainty(history)):
                yield from self._raise(finding, index, number)
        yield from self._raise(_end_to_end(self._evaluations[-WINDOW:]), None, number)

    def _raise(self, finding: _Finding | None, block: int | None, epoch: int) -> Iterator[Alarm]:
        if finding is None:
            return
        key = finding.signature, block
        if epoch - self._raised.get(key, epoch - REPEAT) < REPEAT:
            return
        self._raised[key] = epoch
        taken = _EVIDENCE if self.plan.config.loss.name is LossName.EVIDENCE else ""
        yield Alarm(
            signature=finding.signature,
            block=block,
            epoch=epoch,
            step=(epoch + 1) * self.plan.steps_per_epoch,
            cause=finding.cause,
            remedy=", ".join(way for way in _REMEDIES[finding.remedy] if way != taken),
            values=tuple(Figure(name, value) for name, value in finding.values.items()),
        )


def _plateau(history: list[_BlockEpoch], shortfall: float, plan: Plan) -> _Finding | None:
    """The loss stands still, far from what can be learned, and the messages or the latent show why."""
    chance_nats = math.log(plan.num_classes)
    before, now = history[-WINDOW], history[-1]
    fall = before.loss_nats - now.loss_nats
    nll = now.last.exit_nll_nats
    if fall >= SLOPE * chance_nats * (WINDOW - 1) or (nll <= UNLEARNED * chance_nats and shortfall <= 0):
        return None
    last = now.last
    rank, highest = last.effective_rank, max(epoch.last.effective_rank for epoch in history)
    directions = min(plan.num_classes - 1, plan.config.latent.units)
    if last.beta_rms < COLLAPSED:
        remedy, why = "collapsed", f"the backward messages have collapsed to {last.beta_rms:.2g} (root mean square)"
    elif last.beta_rms > EXPLODED:
        remedy, why = "exploded", f"the backward messages have grown to {last.beta_rms:.3g} (root mean square)"
    elif last.agreement < AGREEMENT:
        remedy, why = "agreement", f"forward and backward messages agree by {last.agreement:.2f} only"
    elif rank < RANK_FALL * highest or rank < RANK * directions:
        remedy, why = "rank", f"the latent's effective rank is {rank:.1f}, after {highest:.1f}"
    else:
        return None
    return _Finding(
        AlarmSignature.LOSS_PLATEAU,
        remedy,
        f"the local loss of {now.loss_nats:.3g} nats has fallen by {fall:.2g} over {WINDOW} epochs while the exit's "
        f"NLL is {nll:.2f} nats ({chance_nats:.2f} by chance); {why}",
        {
            "loss_nats": now.loss_nats,
            "loss_fall_nats": fall,
            "exit_nll_nats": nll,
            "beta_rms": last.beta_rms,
            "agreement": last.agreement,
            "effective_rank": rank,
        },
    )


def _uncertainty(history: list[_BlockEpoch]) -> _Finding | None:
    """The posterior variance goes up and down between epochs, or the units' parameters are at their bounds."""
    logs = [math.log(max(epoch.posterior_variance, 1e-30)) for epoch in history]
    steps = [after - before for before, after in itertools.pairwise(logs)]
    swing = min(sum(step for step in steps if step > 0), -sum(step for step in steps if step < 0))
    saturated = min(epoch.last.saturated_units for epoch in history[-WINDOW:])
    variances = [epoch.posterior_variance for epoch in history]
    if saturated > SATURATED:
        remedy, why = (
            "saturated",
            f"{saturated:.0%} of the latent's units have been at their bounds for {WINDOW} epochs",
        )
    elif swing > SWING:
        shown = ", ".join(f"{variance:.3g}" for variance in variances)
        remedy, why = "swing", f"the mean posterior variance went up and down: {shown} in the last {len(logs)} epochs"
    else:
        return None
    values = {"posterior_variance": variances[-1], "swing_nats": swing, "saturated_units": saturated}
    return _Finding(AlarmSignature.UNSTABLE_UNCERTAINTY, remedy, why, values)


def _end_to_end(evaluations: list[Evaluation]) -> _Finding | None:
    """The last exit lacks accuracy to an earlier one and is not catching up; or all exits differ, and depth earns
    nothing."""
    now = evaluations[-1]
    first, last = now.exits[0].accuracy, now.exits[-1].accuracy
    best = max(scores.accuracy for scores in now.exits)
    falls = all(_shortfall(evaluation, -1) > 0 for evaluation in evaluations)
    catching_up = last - evaluations[0].exits[-1].accuracy > best - last
    gaping = all(e.mixture_gap_nats > max(GAP, e.mixture.nll_nats) for e in evaluations) and last <= first
    if not (falls and not catching_up) and not (gaping and len(now.exits) > 1):
        return None
    told = ", ".join(f"{scores.accuracy:.3f}" for scores in now.exits)
    return _Finding(
        AlarmSignature.END_TO_END_GAP,
        "gap",
        f"for {WINDOW} epochs the last exit's validation accuracy has been no better than that of earlier ones, now "
        f"{told}; the mixture gap is {now.mixture_gap_nats:.2f} nats",
        {
            "first_exit_accuracy": first,
            "best_exit_accuracy": best,
            "last_exit_accuracy": last,
            "mixture_gap_nats": now.mixture_gap_nats,
        },
    )


def _shortfall(evaluation: Evaluation, index: int) -> float:
    """Validation accuracy that exit `index` lacks to the best exit, beyond what chance and healthy runs explain."""
    own = evaluation.exits[index].accuracy
    best = max(scores.accuracy for scores in evaluation.exits)
    error = math.sqrt((own * (1 - own) + best * (1 - best)) / evaluation.rows)
    return best - own - max(FALL, 3 * error)
