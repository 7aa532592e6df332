"""The MLP under every rule, and block-local learning with every family."""

from benchmarks.method.groups.specs import (
    ALL_EXITS,
    BACKPROP,
    LOCAL_CLASSIFIERS,
    LOCAL_CLASSIFIERS_EVIDENCE,
    MLP,
    PLAIN,
    family,
)
from benchmarks.method.trials import Claim, Contender, Group, merged

_GLOBAL_RIVALS = ("feedback_alignment", "direct_feedback_alignment", "target_propagation", "synthetic_gradients")
_LOCAL_RIVALS = ("local_classifiers", "predsim")

_CONTENDERS = {
    "bll": {},
    "backprop": BACKPROP,
    "local_classifiers": LOCAL_CLASSIFIERS,
    "predsim": {"rule": "predsim"},
    **{rule: {"rule": rule} for rule in _GLOBAL_RIVALS},
    "sign_symmetry": {"rule": "sign_symmetry"},
    "prototype": {"rule": "prototype"},
    "local_classifiers_evidence": LOCAL_CLASSIFIERS_EVIDENCE,
    "bll-gaussian": family("gaussian"),
    "bll-categorical": family("categorical"),
    "bll-laplace": family("laplace"),
    "backprop-plain": PLAIN,
    "backprop-all-exits": ALL_EXITS,
}

MLP_RULES = Group(
    name="mlp",
    title="MLP 784-256-256-256-256 in four blocks, every rule on the same modules",
    contenders={name: Contender(merged(MLP, change)) for name, change in _CONTENDERS.items()},
    claims=(
        Claim("bll:mixture", "accuracy", target=0.883),
        Claim("bll:mixture", "accuracy", against="backprop:last", target=-0.002),
        *(Claim("bll:mixture", "accuracy", against=f"{rule}:last", target=0.0) for rule in _GLOBAL_RIVALS),
        *(Claim("bll:mixture", score, against=f"{r}:mixture") for r in _LOCAL_RIVALS for score in ("accuracy", "nll")),
        Claim("bll:mixture", "error_auroc", against="local_classifiers:mixture"),
        Claim("bll-gaussian:mixture", "accuracy", against="backprop:last", target=-0.002),
    ),
    notes="Same data, epochs, optimizer and readouts (one hidden layer of 128) for all; no augmentation. The readout "
    "of `backprop-plain` is linear. `local_classifiers_evidence` is a unit-variance Gaussian under evidence.",
)
