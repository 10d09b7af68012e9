"""Activation checkpointing by blocks: keep a block's inputs for backward, and compute everything inside again."""

import copy
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from types import MethodType

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

PYTORCHS = vars(nn.Module()).keys() - {"training"}  # attributes of every module: its parts, parameters, hooks


def recompute_blocks(blocks: Sequence[nn.Module]) -> list[str]:
    """Let every block keep only its inputs for backward. Random numbers are drawn as before; buffers (BatchNorm's
    running statistics) and attributes of a module change once."""
    for block in blocks:
        replace_forward(block, recomputed)
    return [f"recompute {len(blocks)} blocks in backward"]


def replace_forward(block: nn.Module, change: Callable[[Callable], Callable]) -> None:
    """Let block.forward be what `change` makes of it: a function of the module and its inputs. Hooks stay outside of
    it, and a copy of the block gets a forward of its own."""
    forward = vars(block).get("forward")
    block.forward = MethodType(change(type(block).forward if forward is None else forward.__func__), block)


def recomputed(forward: Callable) -> Callable:
    """forward, to be computed again in backward, with the module as it was."""

    def call(module: nn.Module, *inputs, **named):
        if not torch.is_grad_enabled():
            return forward(module, *inputs, **named)
        then = AsItWas(module)
        # Random generators cannot be set back in a CUDA graph; where that matters, its first replay tells (graphs.py).
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        options = dict(context_fn=lambda: (nullcontext(), then), preserve_rng_state=not capturing)
        return checkpoint(forward, module, *inputs, use_reentrant=False, **options, **named)

    return call


class AsItWas:
    """Within, a block is as it was when this was made: the attributes and buffers of its modules, and what random
    generators draw (PyTorch's own are checkpoint's business). It can be entered again, for a second backward pass."""

    def __init__(self, block: nn.Module) -> None:
        self.block, self.then, self.generators = block, copied(attributes_of(block)), list(generators_of(block))

    def __enter__(self) -> None:
        self.now = attributes_of(self.block), list(generators_of(self.block))
        set_back(copied(self.then), self.generators)

    def __exit__(self, *error: object) -> None:
        set_back(*self.now)


def attributes_of(block: nn.Module) -> list[tuple[dict, dict]]:
    """(where they stand, what stands there) of the attributes and the buffers of every module."""
    places = [place for part in block.modules() for place in (vars(part), part._buffers)]
    return [(place, {name: x for name, x in place.items() if name not in PYTORCHS}) for place in places]


def copied(attributes: list[tuple[dict, dict]]) -> list[tuple[dict, dict]]:
    """The same with copies of what may be changed in place, tensors and collections; one of what stands twice."""
    copies = {}

    def own(x: object) -> object:
        if isinstance(x, Tensor) and id(x) not in copies:
            copies[id(x)] = x.detach().clone().requires_grad_(x.requires_grad)
        elif isinstance(x, dict | list | set) and id(x) not in copies:
            copies[id(x)] = copy.copy(x)
        return copies.get(id(x), x)

    return [(place, {name: own(x) for name, x in then.items()}) for place, then in attributes]


def generators_of(block: nn.Module) -> Iterator[tuple[Callable, object]]:
    """(what sets it back, its state) of the generators of Python and NumPy, and of those that modules have."""
    yield random.setstate, random.getstate()
    yield np.random.set_state, np.random.get_state()  # noqa: NPY002 - the global one, which edits may draw from
    for x in [x for part in block.modules() for x in vars(part).values()]:
        if isinstance(x, random.Random):
            yield x.setstate, x.getstate()
        elif isinstance(x, np.random.Generator):
            yield partial(setattr, x.bit_generator, "state"), x.bit_generator.state
        elif isinstance(x, np.random.RandomState | torch.Generator):
            yield x.set_state, x.get_state()


def set_back(attributes: list[tuple[dict, dict]], generators: list[tuple[Callable, object]]) -> None:
    """Put attributes where they stood, and generators into their states. What has become an attribute since is none."""
    for place, then in attributes:
        for name in place.keys() - then.keys() - PYTORCHS:
            del place[name]
        place.update(then)
    for set_state, state in generators:
        set_state(state)
