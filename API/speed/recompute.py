"""Activation checkpointing by blocks: keep a block's inputs for backward, and compute everything inside again."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import MethodType

import numpy as np
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(blocks: Sequence[nn.Module]) -> list[str]:
    """Let every block keep only its inputs for backward. Random numbers (of PyTorch, NumPy and Python) are drawn
    as before, and buffers (BatchNorm's running statistics) and numbers of a module change once."""
    for block in blocks:
        replace_forward(block, recomputed)
    return [f"recompute {len(blocks)} blocks in backward"]


def replace_forward(block: nn.Module, change: Callable[[Callable], Callable]) -> None:
    """Let block.forward be what `change` makes of it: a function of the module and its inputs. Hooks stay outside of
    it, and a copy of the block gets a forward of its own."""
    forward = vars(block).get("forward")
    block.forward = MethodType(change(type(block).forward if forward is None else forward.__func__), block)


def recomputed(forward: Callable) -> Callable:
    """forward, to be computed again in backward, with the buffers and numbers of the module as they were."""

    def call(module: nn.Module, *inputs, **named):
        if not torch.is_grad_enabled():
            return forward(module, *inputs, **named)
        before = {buffer: buffer.detach().clone() for buffer in module.buffers()}
        before = [(part, name, before.get(buffer)) for part, name, buffer in places_of_buffers(module)]
        generators, numbers = host_generators(), numbers_of(module)
        contexts = lambda: (nullcontext(), as_it_was(module, before, numbers, generators))  # noqa: E731
        # Random generators cannot be set back in a CUDA graph; where that matters, its first replay tells (graphs.py).
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        options = dict(use_reentrant=False, context_fn=contexts, preserve_rng_state=not capturing)
        return checkpoint(forward, module, *inputs, **options, **named)

    return call


@contextmanager
def as_it_was(
    block: nn.Module, buffers: Sequence[tuple], numbers: Sequence[tuple], generators: tuple
) -> Iterator[None]:
    """Within, block has other buffers and numbers, and Python and NumPy draw what they did then; PyTorch sees to its
    own."""
    now = host_generators(), numbers_of(block)
    try:
        set_host_generators(generators)
        set_numbers(numbers)
        with other_buffers(block, buffers):
            yield
    finally:
        set_host_generators(now[0])
        set_numbers(now[1])


def numbers_of(block: nn.Module) -> list[tuple[dict, dict[str, float]]]:
    """(its attributes, those that are plain numbers) of every module: counters, rates, `training`."""
    places = map(vars, block.modules())
    return [(place, {name: x for name, x in place.items() if isinstance(x, int | float)}) for place in places]


def set_numbers(numbers: Sequence[tuple[dict, dict[str, float]]]) -> None:
    """Set them back. What has become an attribute since is none again."""
    for place, then in numbers:
        for name in [name for name, x in place.items() if isinstance(x, int | float) and name not in then]:
            del place[name]
        place.update(then)


def host_generators() -> tuple:
    """The states of the generators of Python and of NumPy."""
    return random.getstate(), np.random.get_state()  # noqa: NPY002 - the global one, which edits may draw from


def set_host_generators(states: tuple) -> None:
    """Set them back."""
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


def places_of_buffers(block: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor | None]]:
    """(module, name, buffer) of all buffers, those that are None, too."""
    return [(part, name, buffer) for part in block.modules() for name, buffer in part._buffers.items()]


@contextmanager
def other_buffers(block: nn.Module, others: Sequence[tuple[nn.Module, str, torch.Tensor | None]]) -> Iterator[None]:
    """Within, block has copies of other buffers; whether it changes them in place or assigns new ones, it has its own
    again afterwards."""
    own = places_of_buffers(block)
    copies = {buffer: buffer.clone() for _, _, buffer in others if buffer is not None}
    try:
        for part, name, buffer in others:
            setattr(part, name, copies.get(buffer))
        yield
    finally:
        for part, name, buffer in own:
            setattr(part, name, buffer)
