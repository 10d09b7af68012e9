"""Activation checkpointing by blocks: keep a block's inputs for backward, and compute everything inside again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import MethodType

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(blocks: Sequence[nn.Module]) -> list[str]:
    """Let every block keep only its inputs for backward. Random numbers (dropout) are drawn as before, and buffers
    (BatchNorm's running statistics) are updated once."""
    for block in blocks:
        replace_forward(block, recomputed)
    return [f"recompute {len(blocks)} blocks in backward"]


def replace_forward(block: nn.Module, change: Callable[[Callable], Callable]) -> None:
    """Let block.forward be what `change` makes of it: a function of the module and its inputs. Hooks stay outside of
    it, and a copy of the block gets a forward of its own."""
    forward = vars(block).get("forward")
    block.forward = MethodType(change(type(block).forward if forward is None else forward.__func__), block)


def recomputed(forward: Callable) -> Callable:
    """forward, to be computed again in backward, with the buffers of the module as they were."""

    def call(module: nn.Module, *inputs):
        if not torch.is_grad_enabled():
            return forward(module, *inputs)
        before = [buffer.detach().clone() for buffer in module.buffers()]
        contexts = lambda: (nullcontext(), buffers_as(module, before))  # noqa: E731
        # Random generators cannot be set back in a CUDA graph; where that matters, its first replay tells (graphs.py).
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        options = dict(use_reentrant=False, context_fn=contexts, preserve_rng_state=not capturing)
        return checkpoint(forward, module, *inputs, **options)

    return call


@contextmanager
def buffers_as(block: nn.Module, before: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within, block's buffers have the values `before`; then again those that they have now."""
    buffers = list(block.buffers())
    now = [buffer.detach().clone() for buffer in buffers]
    try:
        copy_buffers(buffers, before)
        yield
    finally:
        copy_buffers(buffers, now)


@torch.no_grad()
def copy_buffers(buffers: Iterable[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    """Give buffers these values, in place."""
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
