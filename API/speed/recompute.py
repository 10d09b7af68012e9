"""Activation checkpointing by blocks: keep a block's inputs for backward, and compute everything inside again."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_blocks(blocks: Sequence[nn.Module]) -> list[str]:
    """Let every block keep only its inputs for backward. Random numbers (dropout) are drawn as before, and buffers
    (BatchNorm's running statistics) are updated once."""
    for block in blocks:
        replace_call(block, functools.partial(recomputed, block, called(block)))
    return [f"recompute {len(blocks)} blocks in backward"]


def recomputed(block: nn.Module, call: Callable, *inputs):
    """call(*inputs), to be computed again in backward, with the buffers of block as they were."""
    if not torch.is_grad_enabled():
        return call(*inputs)
    before = [buffer.detach().clone() for buffer in block.buffers()]
    return checkpoint(call, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), buffers_as(block, before)))


@contextmanager
def buffers_as(block: nn.Module, before: Sequence[torch.Tensor]) -> Iterator[None]:
    """Within, block's buffers have the values `before`; then again those that they have now."""
    buffers = list(block.buffers())
    now = [buffer.detach().clone() for buffer in buffers]
    try:
        _copy(buffers, before)
        yield
    finally:
        _copy(buffers, now)


@torch.no_grad()
def _copy(buffers: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def called(block: nn.Module) -> Callable:
    """What block(...) calls: its compiled form where there is one."""
    return block._compiled_call_impl or block._call_impl


def replace_call(block: nn.Module, call: Callable) -> None:
    """Let block(...) call something else. PyTorch's own place for it: copies and state dicts leave it out."""
    block._compiled_call_impl = call
