"""Uncertainty of the residual CNN: one pass of block-local learning beside what costs backprop several."""

from benchmarks.method.groups.cnn import CNN_RULES
from benchmarks.method.groups.specs import CNN, PLAIN_CNN, family
from benchmarks.method.trials import Claim, Contender, Group, Spec, merged

_MEMBERS = (0, 1, 2, 3, 4)
_DROPOUT: Spec = merged(PLAIN_CNN, {"network": {"dropout": 0.1}})


def _single(name: str, seeds: tuple[int, ...]) -> Contender:
    return Contender(CNN_RULES.contenders[name].spec, seeds, "uncertainty", base=f"cnn/{name}")


UNCERTAINTY = Group(
    name="uncertainty",
    title="Uncertainty of the residual CNN on test rows and on inputs of other kinds",
    contenders={
        "bll": _single("bll", (0, 1, 2)),
        "bll-gaussian": _single("bll-gaussian", (0, 1, 2)),
        "bll-default-readout": _single("bll-default-readout", (0,)),
        "bll-large-readout": _single("bll-large-readout", (0,)),
        "backprop-plain": _single("backprop-plain", (0, 1, 2)),
        "backprop-all-exits": _single("backprop-all-exits", (0, 1, 2)),
        "ensemble-of-5": Contender(
            CNN_RULES.contenders["backprop-plain"].spec, (0,), "ensemble", "cnn/backprop-plain", _MEMBERS
        ),
        "mc-dropout-30": Contender(_DROPOUT, (0,), "mc_dropout"),
    },
    claims=(
        Claim("bll:mixture", "nll", against="backprop-plain:tempered", target=0.0, op="<="),
        Claim("bll:tempered", "nll", against="backprop-plain:tempered"),
        Claim("bll:mixture", "error_auroc", against="backprop-plain:mixture", target=0.0),
        Claim("bll-large-readout:mixture", "nll", against="backprop-plain:tempered", target=0.0, op="<="),
        Claim("bll-large-readout:mixture", "error_auroc", against="backprop-plain:mixture", target=0.0),
        Claim("bll:mixture", "accuracy", against="ensemble-of-5:mixture"),
        Claim("bll:mixture", "nll", against="ensemble-of-5:mixture"),
        Claim("bll:mixture", "error_auroc", against="ensemble-of-5:mixture"),
        Claim("bll:mixture", "nll", against="mc-dropout-30:mixture"),
        Claim("bll:mixture", "error_auroc", against="mc-dropout-30:mixture"),
        Claim("bll:", "ood", against="ensemble-of-5:", target=0.0),
        Claim("bll:", "ood", against="mc-dropout-30:"),
        Claim("bll:", "ood", against="backprop-plain:"),
    ),
    notes="`ood` is the mean AUROC over kinds of unknown inputs: by the evidence of features for a single network, by "
    "the mixture's entropy for ensemble and dropout; both are in the figures where there are both. The ensemble's "
    "members are `cnn/backprop-plain`; its cost is theirs. The ensemble is not tempered: each member has its own "
    "validation rows, which the others were trained on.",
)

_KNOWN: Spec = {
    "data": {"name": "npz", "path": "fashion-without-5-8.npz", "validation_rows": 4800, "augmentation": "shift_flip"},
    "epochs": 6,
}


_GAUSSIAN: Spec = merged(CNN, family("gaussian"))


def _held_out(spec: Spec) -> Spec:
    """`spec`, but its data, which is a file's."""
    return {**spec, **_KNOWN}


_TRAINED: dict[str, Contender] = {
    "trained-bll": Contender(_held_out(CNN), (0,)),
    "trained-bll-gaussian": Contender(_held_out(_GAUSSIAN), (0,)),
    "trained-backprop": Contender(_held_out(PLAIN_CNN), _MEMBERS),
}

HELD_OUT = Group(
    name="held_out",
    title="Classes that were held out: residual CNN on eight classes of Fashion-MNIST, 6 epochs",
    contenders=_TRAINED
    | {
        "bll": Contender(_held_out(CNN), (0,), "uncertainty", "held_out/trained-bll"),
        "bll-gaussian": Contender(_held_out(_GAUSSIAN), (0,), "uncertainty", "held_out/trained-bll-gaussian"),
        "backprop-plain": Contender(_held_out(PLAIN_CNN), (0,), "uncertainty", "held_out/trained-backprop"),
        "ensemble-of-5": Contender(_held_out(PLAIN_CNN), (0,), "ensemble", "held_out/trained-backprop", _MEMBERS),
    },
    claims=(
        Claim("bll:", "ood", against="ensemble-of-5:", target=0.0),
        Claim("bll:", "ood.held_out.evidence", against="backprop-plain:"),
        Claim("bll:", "ood.held_out.entropy", against="ensemble-of-5:"),
    ),
    notes="Sandals and bags were not trained on.",
)
