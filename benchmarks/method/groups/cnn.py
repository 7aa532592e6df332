"""The residual CNN: the headline, its placements, what closes its gap to backprop."""

from benchmarks.method.groups.specs import (
    ALL_EXITS,
    BACKPROP,
    CNN,
    CNN_DEFAULT_READOUT,
    LOCAL_CLASSIFIERS,
    LOCAL_CLASSIFIERS_EVIDENCE,
    PLAIN,
    PLAIN_CNN,
    family,
)
from benchmarks.method.trials import Chart, Claim, Contender, Group, Spec, merged

_WIDER: Spec = {"network": {"widths": [16, 16, 32, 32, 68, 68]}}
"""Backprop's network is widened until its forward pass costs what that of four blocks with their readouts does."""
_LARGE_READOUT: Spec = {"latent": {"readout_units": 256, "readout_grid": 4}}

_THREE_SEEDS: dict[str, Spec] = {
    "bll": CNN,
    "backprop": merged(CNN, BACKPROP),
    "backprop-plain": PLAIN_CNN,
    "backprop-all-exits": merged(CNN, ALL_EXITS),
    "bll-gaussian": merged(CNN, family("gaussian")),
    "local_classifiers": merged(CNN, LOCAL_CLASSIFIERS),
    "backprop-wider": merged(CNN, BACKPROP, _WIDER),
}
_ONE_SEED: dict[str, Spec] = {
    "predsim": merged(CNN, {"rule": "predsim"}),
    "prototype": merged(CNN, {"rule": "prototype"}),
    "local_classifiers_evidence": merged(CNN, LOCAL_CLASSIFIERS_EVIDENCE),
    "bll-default-readout": CNN_DEFAULT_READOUT,
    "backprop-default-readout": merged(CNN_DEFAULT_READOUT, BACKPROP),
    "backprop-all-exits-default-readout": merged(CNN_DEFAULT_READOUT, ALL_EXITS),
    "bll-large-readout": merged(CNN, _LARGE_READOUT),
    "backprop-large-readout": merged(CNN, BACKPROP, _LARGE_READOUT),
    "backprop-plain-wider": merged(PLAIN_CNN, _WIDER),
}

CNN_RULES = Group(
    name="cnn",
    title="Residual CNN in four blocks",
    # Five seeds of `backprop-plain`: they are the members of the ensemble of group `uncertainty`.
    contenders={
        name: Contender(spec, seeds=(0, 1, 2, 3, 4) if name == "backprop-plain" else (0, 1, 2))
        for name, spec in _THREE_SEEDS.items()
    }
    | {name: Contender(spec, seeds=(0,)) for name, spec in _ONE_SEED.items()},
    claims=(
        Claim("bll:mixture", "accuracy", against="backprop-plain:last", target=0.0),
        Claim("bll:mixture", "nll", against="backprop-plain:last", target=0.0, op="<="),
        Claim("bll:mixture", "accuracy", against="backprop:last", target=-0.003),
        Claim("bll:mixture", "accuracy", against="backprop-all-exits:mixture", target=-0.003),
        Claim("bll:mixture", "accuracy", against="backprop-wider:last", target=-0.003),
        Claim("bll:last", "accuracy", against="bll:first", target=0.005),
        Claim("bll:mixture", "ece", target=0.015, op="<="),
        Claim("bll:mixture", "accuracy", against="local_classifiers:mixture"),
        Claim("bll:mixture", "nll", against="local_classifiers:mixture"),
        Claim("bll-gaussian:mixture", "accuracy", against="backprop-plain:last", target=0.0),
        Claim("bll-default-readout:mixture", "accuracy", against="backprop-plain:last", target=0.0),
        Claim("bll-large-readout:mixture", "accuracy", against="backprop-plain:last", target=0.0),
        Claim("bll-large-readout:mixture", "nll", against="backprop-plain:last", target=0.0, op="<="),
        Claim("bll-large-readout:mixture", "accuracy", against="backprop-large-readout:last", target=-0.003),
    ),
    notes="Random shifts and mirrorings for all. `backprop` and `-wider` have the last exit's readout of BLL, "
    "`-plain` a linear softmax on pooled features, `-all-exits` all of BLL's exits without a detach.",
)

_EIGHT_LAYERS = merged(CNN, {"network": {"widths": [16, 16, 16, 32, 32, 64, 64]}, "epochs": 10})

_PLACEMENTS: dict[str, Spec] = {
    "one": {"blocks": {"num_blocks": 1}},
    "two": {"blocks": {"num_blocks": 2}},
    "four-equal-flops": {},
    "eight": {"blocks": {"num_blocks": 8}},
    "four-equal-parameters": {"blocks": {"balance": "parameters"}},
    "four-equal-layers": {"blocks": {"balance": "layers"}},
    "four-cut-early": {"blocks": {"cuts": [1, 2, 3]}},
    "backprop": BACKPROP,
}

BLOCKS = Group(
    name="blocks",
    title="Number of blocks and placement of cuts: residual CNN of eight layers, 10 epochs",
    contenders={name: Contender(merged(_EIGHT_LAYERS, change), seeds=(0, 1)) for name, change in _PLACEMENTS.items()},
    claims=tuple(
        Claim(f"{name}:mixture", "accuracy", against="backprop:last") for name in _PLACEMENTS if name != "backprop"
    ),
    chart=Chart("blocks", {"cuts by FLOPs": {1: "one", 2: "two", 4: "four-equal-flops", 8: "eight"}}),
)

_SHORT = merged(CNN_DEFAULT_READOUT, {"data": {"train_rows": 30_000}, "epochs": 6})

GAP = Group(
    name="gap",
    title="What closes the gap to backprop: residual CNN, 30k rows, 6 epochs",
    contenders={
        name: Contender(merged(_SHORT, change), seeds=(0, 1))
        for name, change in {
            "bll": {},
            "backprop": BACKPROP,
            "backprop-plain": PLAIN,
            "backprop-all-exits": ALL_EXITS,
            "readout-96-grid-4": {"latent": CNN["latent"]},
            "readout-256-grid-4": _LARGE_READOUT,
            "readout-deep": {"latent": {"readout": "deep"}},
            "readout-deep-256-grid-4": merged({"latent": {"readout": "deep"}}, _LARGE_READOUT),
            "readout-conv": {"latent": {"readout": "conv", "readout_units": 64}},
            "readout-linear": {"latent": {"readout": "linear"}},
            "readout-next-layer": {"latent": {"readout": "next_layer"}},
            "overlapping-pairs": {"loss": {"span": 2}},
            "similarity-0.5": {"loss": {"similarity": 0.5}},
            "reconstruction-0.1": {"loss": {"reconstruction": 0.1}},
            "reconstruction-1": {"loss": {"reconstruction": 1.0}},
            "normalised-messages": {"blocks": {"normalize_messages": True}},
            "later-blocks-weigh-more": {"loss": {"block_weights": [0.25, 0.5, 1.0, 1.0]}},
            "units-128": {"latent": {"units": 128}},
            "gaussian": family("gaussian"),
        }.items()
    },
    claims=tuple(
        Claim(f"{name}:mixture", score, against="bll:mixture")
        for name in (
            "readout-256-grid-4",
            "readout-deep",
            "readout-conv",
            "readout-next-layer",
            "overlapping-pairs",
            "similarity-0.5",
            "reconstruction-1",
            "normalised-messages",
        )
        for score in ("accuracy", "nll")
    ),
)
