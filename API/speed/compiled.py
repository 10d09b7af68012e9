"""Compile a model's repeated blocks instead of the whole: blocks of one kind share their code."""

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from .recompute import replace_forward


def compile_blocks(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    example: Tensor,
    autocast: Callable[[], AbstractContextManager],
    backend: str | Callable,
    agree: Callable[[bool], bool],
) -> list[str]:
    """Compile every block, after a trial on a copy of the model: forward, and backward in training mode.

    Returns a line that says how it went; where it failed, in any process, all blocks stay as they are.
    """
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)  # for the blocks of a class
    began, problem = time.perf_counter(), None
    try:
        try_compiling(model, blocks, example, autocast, backend)
    except Exception as error:  # compilers fail in as many ways as there are machines
        reason = str(error).strip().splitlines() or [""]
        problem = f"{type(error).__name__}: {reason[0][:150]}"
    if agree(problem is not None):
        return [f"warning: compiling failed, going on without ({problem or 'in another process'})"]
    for block in blocks:
        compile_block(block, backend)
    return [f"compiled {len(blocks)} blocks in {time.perf_counter() - began:.0f} s"]


def try_compiling(model: nn.Module, blocks: Sequence[nn.Module], example: Tensor, autocast, backend) -> None:
    """Compile and run a copy of model; raises whatever goes wrong."""
    names = {module: name for name, module in model.named_modules()}
    trial = copy.deepcopy(model)
    for block in blocks:
        compile_block(trial.get_submodule(names[block]), backend)
    if trial.training:
        with autocast():
            future = trial(example)
        future.float().sum().backward()
    with autocast(), torch.no_grad():
        trial.eval()(example)


def compile_block(block: nn.Module, backend: str | Callable) -> None:
    """Compile a block's forward, for batches of any size. Hooks, such as those of sharding, run outside of it."""

    def compiled(forward: Callable) -> Callable:
        code = torch.compile(forward, backend=backend, dynamic=False)

        def call(module: nn.Module, *inputs):
            for x in inputs:
                if isinstance(x, Tensor):
                    torch._dynamo.maybe_mark_dynamic(x, 0)
            return code(module, *inputs)

        return call

    replace_forward(block, compiled)
