"""Networks of the user's own: a module cut into its children, after a check that they can be run alone.

A block knows only the message of the block before it, so the module must be a chain: each child takes the output of
the child before it, and nothing else. The check runs a copy of the module once and compares what its children get
and give.
"""

from __future__ import annotations

import copy
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bll.architectures.layers import KeyedDropout, Layer
from bll.errors import InvalidConfig, Violation
from bll.plan import Plan
from bll.seeding import global_generator

_ROWS = 2


@dataclass(frozen=True)
class Layers:
    """A module whose forward runs the named children one after the other, and does nothing else."""

    module: nn.Module
    children: Sequence[str]
    """Names as in `module.named_modules()`, in the order of the forward pass; each becomes a layer."""


@dataclass(frozen=True)
class UserNetwork:
    """Layers that no config can describe. Made by `user_network`."""

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...] = field(repr=False)
    digest: str
    """SHA-256 of the layers' structure and initial weights, in hex."""

    def layers(self) -> list[Layer]:
        """Layers that are copies: however often they are built, each starts from the weights that the user gave."""
        return [
            Layer(f"{name} {type(module).__name__}", partial(copy.deepcopy, module))
            for name, module in zip(self.names, self.modules, strict=True)
        ]


@dataclass(frozen=True)
class UserPlan(Plan):
    """A plan that carries its layers, of which its config holds the digest alone. It stays in its process."""

    network: UserNetwork = field(kw_only=True, compare=False)


def user_network(network: nn.Sequential | Layers, input_shape: tuple[int, ...]) -> UserNetwork:
    """`network` as layers for samples of `input_shape`. It is copied: training leaves the user's module as it is.

    Raises InvalidConfig, naming the child, if the network is no chain of its children or draws from torch's global
    generator.
    """
    _refuse_shared(network if isinstance(network, nn.Sequential) else network.module)
    if isinstance(network, nn.Sequential):
        # Copied one by one: a ReLU that is used twice becomes two.
        module: nn.Module = nn.Sequential(OrderedDict((k, copy.deepcopy(v)) for k, v in network._modules.items()))
        names = list(network._modules)
    else:
        module, names = copy.deepcopy(network.module), list(network.children)
    if not names:
        raise _refusal("must have at least one layer")
    try:
        children = {name: module.get_submodule(name) for name in names}
    except AttributeError as error:
        raise _refusal(f"has no such child: {error}") from error
    originals = tuple(copy.deepcopy(child) for child in children.values())
    _check_chain(module, children, input_shape)
    _check_draws(children, input_shape)
    return UserNetwork(tuple(children), originals, _digest(originals))


def _refuse_shared(module: nn.Module) -> None:
    """Blocks own their weights alone, and a checkpoint holds each once."""
    owner: dict[int, str] = {}
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise _refusal(f"{name!r} has no shape yet: run the network once on a batch before it is trained")
        if tensor.numel() and (other := owner.setdefault(tensor.untyped_storage().data_ptr(), name)) != name:
            raise _refusal(f"{other!r} and {name!r} share memory, which two blocks cannot")


def _check_chain(module: nn.Module, children: dict[str, nn.Module], input_shape: tuple[int, ...]) -> None:
    """Refuse what is more than the chain of its children. Changes the weights of `module`."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():  # a path whose weight starts at zero must show
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    inputs = torch.randn(_ROWS, *input_shape, generator=generator)
    calls: list[tuple[str, Tensor | None, Tensor | None]] = []
    received: list[tuple[Tensor | None, int]] = []
    changing: list[str] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        received.append((args[0].clone(), args[0]._version) if alone else (None, 0))

    def after(name: str, _: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given, version = received.pop()
        if given is not None and args[0]._version != version:
            changing.append(name)
        calls.append((name, given, output.clone() if isinstance(output, Tensor) else None))

    for name, child in children.items():
        child.register_forward_pre_hook(before, with_kwargs=True)
        child.register_forward_hook(partial(after, name))
    try:
        with torch.no_grad():
            result = module.eval()(inputs.clone())
    except Exception as error:
        raise _refusal(f"cannot run on samples of shape {list(input_shape)}: {error}") from error
    ran = [name for name, _, _ in calls]
    if ran != list(children):
        raise _refusal(f"its forward must run {list(children)} in this order and each once, it runs {ran}")
    if changing:
        raise _refusal(
            f"{changing[0]!r} must not change its input in place, which may be another block's: inplace=False"
        )
    expected, source = inputs, "the input"
    for name, given, output in calls:
        if not _same(given, expected):
            raise _refusal(f"{name!r} must take {source} and nothing else: no skip may cross a boundary between blocks")
        if output is None or output.dtype != torch.float32 or output.shape[0] != _ROWS:
            raise _refusal(f"{name!r} must give one float32 tensor with a row for each sample")
        expected, source = output, f"the output of {name!r}"
    if not _same(result, expected):
        rule = f"its forward must end with {source}; what follows is the readouts' work: to leave it out, "
        raise _refusal(rule + "pass nn.Sequential of the children")


def _check_draws(children: dict[str, nn.Module], input_shape: tuple[int, ...]) -> None:
    """Refuse a child that draws from the global generator, whose state two blocks would share in no fixed order."""
    hidden = torch.randn(_ROWS, *input_shape, generator=torch.Generator().manual_seed(0))
    for name, child in children.items():
        for part in child.modules():
            if isinstance(part, KeyedDropout):
                part.generator = torch.Generator()
        with global_generator(0), torch.no_grad():
            state = torch.get_rng_state()
            try:
                hidden = child.train()(hidden)
            except Exception as error:
                raise _refusal(f"{name!r} cannot run in training: {error}") from error
            if not torch.equal(torch.get_rng_state(), state):
                raise _refusal(f"{name!r} draws from torch's global generator in training: use bll.KeyedDropout")


def _same(found: Any, expected: Tensor) -> bool:
    if not isinstance(found, Tensor) or found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    return torch.allclose(found, expected, rtol=0, atol=0, equal_nan=True)


def _digest(modules: Sequence[nn.Module]) -> str:
    content = hashlib.sha256()
    for module in modules:
        content.update(repr(module).encode())
        content.update(save({name: tensor.clone() for name, tensor in module.state_dict().items()}))
    return content.hexdigest()


def _refusal(rule: str) -> InvalidConfig:
    return InvalidConfig([Violation("network", rule)])
