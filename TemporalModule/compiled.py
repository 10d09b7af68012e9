"""Compile the parts of a model that repeat, instead of the whole: parts of one kind share their code."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .lean import product_dtype


class Kind(NamedTuple):
    """Parts that differ in their weights alone, and an input (B, C, H, W) of the usual B, for which code is best."""

    parts: Sequence[nn.Module]
    example: Tensor


def compile_kinds(
    kinds: Sequence[Kind], autocast: Callable[[], AbstractContextManager], backend: str | Callable
) -> str | None:
    """Compile every part, for batches of any size; to train and to predict, or in evaluation mode to predict alone.
    Returns None, or why it failed.

    Tried out on copies first, forward and backward; where that fails all parts stay as they are. autocast: the context
    they will run in; backend: of torch.compile.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)  # for the kinds of one class
    # It says to have nothing that works in place in what is computed again. There is nothing.
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)
    how = {"backend": backend, "dynamic": False}
    if backend == "inductor":
        # It takes all that is behind a convolution for (N, C, H, W), and lays (B, H, W, c) out with H last.
        how["options"] = {"layout_optimization": False}
    try:
        for kind in kinds:
            trial = copy.deepcopy(kind.parts[0])
            compile_part(trial, how)
            for train in (True, False) if trial.training else (False,):
                x = kind.example.detach().requires_grad_(train)
                with autocast(), torch.set_grad_enabled(train):
                    y = trial.train(train)(x)
                if train:
                    y.float().sum().backward()
    except Exception as error:  # compilers fail in as many ways as there are machines
        reason = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {reason[0][:150]}"
    for part in (part for kind in kinds for part in kind.parts):
        compile_part(part, how)
    return None


def compile_part(part: nn.Module, how: Mapping) -> None:
    """part.compile(**how), with every input in one precision and layout, and marked to have any batch: where code for
    some batches does not fit another (Inductor's, for sums over few values), what is compiled next fits all others."""
    part.compile(**how)
    compiled = part._compiled_call_impl  # left out of copies, as PyTorch's own is

    def call(x: Tensor) -> Tensor:
        x = as_compiled_for(x)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(x)

    part._compiled_call_impl = call


def as_compiled_for(x: Tensor) -> Tensor:
    """x (B, C, H, W) in the precision and layout of a convolution's or DFDB's result, which parts are compiled for."""
    return x.to(product_dtype(x)).contiguous(memory_format=torch.channels_last)
