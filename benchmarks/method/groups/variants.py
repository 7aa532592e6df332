"""Groups that vary one thing about a network at a time: latents and twins, mixing, depth, data."""

from benchmarks.method.groups.specs import ALL_EXITS, BACKPROP, CNN, FASHION, LOCAL_CLASSIFIERS, MLP, PLAIN, family
from benchmarks.method.trials import Chart, Claim, Contender, Group, Spec, merged

_IDENTITY = {"latent": {"readout": "identity", "units": 256}}
_CHAIN = {"backward": {"twin": "chain"}}

IDENTITY_CHAIN = Group(
    name="identity_chain",
    title="Identity readout and chain twin: the block's output is the latent, MLP in four blocks",
    contenders={
        name: Contender(merged(MLP, change))
        for name, change in {
            "identity-chain": merged(_IDENTITY, _CHAIN),
            "identity-direct": _IDENTITY,
            "hidden-chain": _CHAIN,
            "identity-chain-means": merged(_IDENTITY, _CHAIN, {"latent": {"message": "mean"}}),
            "identity-chain-bootstrapped": merged(
                _IDENTITY, _CHAIN, {"latent": {"message": "mean", "bootstrap": 0.5, "bootstrap_epochs": 10}}
            ),
        }.items()
    }
    | {"weights": Contender(merged(MLP, _IDENTITY, _CHAIN), measure="alignment", base="identity_chain/identity-chain")},
    also=("mlp/bll", "mlp/backprop", "mlp/backprop-plain"),
    claims=(
        Claim("identity-chain:mixture", "accuracy", against="identity-direct:mixture"),
        Claim("identity-chain:mixture", "accuracy", against="mlp/bll:mixture"),
        Claim("identity-chain:last", "accuracy", against="mlp/backprop-plain:last"),
    ),
)

_RESNET18 = merged(CNN, {"network": {"architecture": "resnet18", "widths": [], "stem_stride": 2}, "epochs": 4})

RESNET18 = Group(
    name="resnet18",
    title="ResNet-18 in four blocks, four epochs",
    contenders={
        "bll": Contender(_RESNET18, seeds=(0,)),
        "backprop-plain": Contender(merged(_RESNET18, PLAIN), seeds=(0,)),
    },
    claims=(
        Claim("bll:mixture", "accuracy", against="backprop-plain:last", target=-0.005),
        Claim("bll:mixture", "nll", against="backprop-plain:last"),
    ),
    notes="One seed and as many epochs as two cores allow; the stem has stride 2.",
)

_FAMILIES = ("bernoulli", "gaussian", "categorical")
_CONSTANT_M = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
_LAPLACE_M = (0.0, 0.5, 1.0)
"""Fewer: its tempered product costs ten times what the others' sums of parameters do."""
_MIXING: dict[str, Spec] = {
    **{f"m-{m:g}": {"mixing": {"start": m}} for m in _CONSTANT_M},
    **{
        f"m-{schedule}": {"mixing": {"schedule": schedule, "start": 0.0, "end": 1.0, "ramp_epochs": 4}}
        for schedule in ("linear", "cosine", "step", "auto")
    },
}

MIXING = Group(
    name="mixing",
    title="Mixing m: schedules and families, MLP in four blocks, 8 epochs",
    contenders={
        f"{kind}-{name}": Contender(merged(MLP, family(kind), change, {"epochs": 8}), seeds=(0,))
        for kind in _FAMILIES
        for name, change in _MIXING.items()
    }
    | {
        f"laplace-m-{m:g}": Contender(
            merged(MLP, family("laplace"), {"mixing": {"start": m}}, {"epochs": 8}), seeds=(0,)
        )
        for m in _LAPLACE_M
    },
    chart=Chart(
        "m",
        {kind: {m: f"{kind}-m-{m:g}" for m in _CONSTANT_M} for kind in _FAMILIES}
        | {"laplace": {m: f"laplace-m-{m:g}" for m in _LAPLACE_M}},
    ),
)


def _deep_mlp(layers: int) -> Spec:
    return merged(MLP, {"network": {"widths": [256] * layers}, "blocks": {"balance": "layers"}, "epochs": 8})


def _deep_cnn(layers: int) -> Spec:
    """A stem and layers of three widths, 16 to 64; cheap enough for 32 layers."""
    residual = layers - 1
    widths = [16] * (residual - 2 * (residual // 3)) + [32] * (residual // 3) + [64] * (residual // 3)
    return merged(CNN, {"data": {"train_rows": 20_000}, "network": {"widths": widths}, "epochs": 5})


_DEPTHS = (4, 8, 16, 32)
_DEPTH = {
    f"{network}-{layers}-{rule}": merged(make(layers), change)
    for layers in _DEPTHS
    for network, make in (("mlp", _deep_mlp), ("cnn", _deep_cnn))
    for rule, change in (("bll", {}), ("backprop", BACKPROP))
}

DEPTH = Group(
    name="depth",
    title="Depth at four blocks: MLP (8 epochs) and residual CNN (20k rows, 5 epochs)",
    contenders={name: Contender(spec, seeds=(0,)) for name, spec in _DEPTH.items()},
    claims=tuple(
        Claim(f"{n}-{layers}-bll:mixture", "accuracy", against=f"{n}-{layers}-backprop:last")
        for n in ("mlp", "cnn")
        for layers in _DEPTHS
    ),
    chart=Chart(
        "layers",
        {
            f"{network}, {rule}": {layers: f"{network}-{layers}-{rule}" for layers in _DEPTHS}
            for network in ("mlp", "cnn")
            for rule in ("bll", "backprop")
        },
    ),
)

_LARGE_IMAGES = {
    "data": {"name": "npz", "path": "noise-224.npz", "train_rows": 32, "validation_rows": 8},
    "blocks": {"num_blocks": 4},
    "epochs": 1,
    "batch_size": 8,
}
_LARGE_NETWORKS = {
    "resnet50": {"network": {"architecture": "resnet50", "stem_stride": 4}},
    "resnet101": {"network": {"architecture": "resnet101", "stem_stride": 4}},
    "efficientnet_small": {"network": {"architecture": "efficientnet_small", "stem_stride": 2}},
}

LARGE = Group(
    name="large",
    title="Large networks at 224 pixels: four steps of eight images",
    contenders={
        f"{name}-{rule}": Contender(merged(_LARGE_IMAGES, network, change), seeds=(0,), measure="smoke")
        for name, network in _LARGE_NETWORKS.items()
        for rule, change in (("bll", {}), ("backprop", BACKPROP))
    },
    notes="Made-up images: these rows say that the networks run, how long a step takes and what memory it needs.",
)

_DIGITS = {"data": {"name": "digits", "validation_rows": 144}, "epochs": 40, "batch_size": 64}

MNIST_FORMAT = Group(
    name="mnist_format",
    title="Data in MNIST's format: Fashion-MNIST and scikit-learn's digits, MLP in four blocks",
    contenders={
        name: Contender(merged(MLP, _DIGITS, change), seeds=(0, 1, 2, 3, 4))
        for name, change in {
            "digits-bll": {},
            "digits-backprop": BACKPROP,
            "digits-backprop-plain": PLAIN,
            "digits-local_classifiers": LOCAL_CLASSIFIERS,
        }.items()
    },
    also=("mlp/bll", "mlp/backprop"),
    claims=(
        Claim("digits-bll:mixture", "accuracy", against="digits-backprop:last", target=-0.002),
        Claim("mlp/bll:mixture", "accuracy", against="mlp/backprop:last", target=-0.002),
    ),
    notes="MNIST itself was not at hand: its reader is tested on files made in its format. Fashion-MNIST comes in the "
    "same format; digits have 355 test rows, drawn anew by each seed.",
)

_NOISY = {
    f"{label}-noise-{noise:g}": merged(MLP, change, {"data": {**FASHION, "label_noise": noise}, "epochs": 8})
    for noise in (0.0, 0.2, 0.4)
    for label, change in (
        ("bernoulli", {}),
        ("gaussian", family("gaussian")),
        ("laplace", family("laplace")),
        ("laplace_scale", family("laplace_scale")),
        ("categorical", family("categorical")),
        ("unit_gaussian", family("unit_gaussian")),
        ("backprop", BACKPROP),
        ("backprop-all-exits", ALL_EXITS),
    )
}

MISSPECIFIED = Group(
    name="misspecified",
    title="Misspecified families and contaminated labels: MLP in four blocks, 8 epochs",
    contenders={name: Contender(spec, seeds=(0,)) for name, spec in _NOISY.items()},
    notes="Training labels only are replaced; test labels are clean.",
)
