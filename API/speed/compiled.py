"""Compile a model's repeated blocks instead of the whole: blocks of one kind share their code."""

import copy
import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .recompute import replace_forward

KEPT = ("mm", "addmm", "bmm", "convolution", "_fft_c2r", "all_reduce", "wait_tensor")  # expensive: kept for backward
LIMIT = re.compile("FailOn(Recompile|Cache)LimitHit")  # what PyTorch raises: the newer and the older name


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
    logging.getLogger("torch._higher_order_ops.wrap").setLevel(logging.ERROR)  # warns of what keep_products says
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
    """Compile a block's forward, for batches of any size: as a whole, or it fails. (In parts, what keep_products
    computes again would update BatchNorm's statistics twice.) Hooks, such as those of sharding, run outside of it."""

    def compiled(forward: Callable) -> Callable:
        code = torch.compile(functools.partial(keep_products, forward), backend=backend, dynamic=False, fullgraph=True)

        def call(module: nn.Module, *inputs, **named):
            nonlocal code
            for x in (*inputs, *named.values()):
                if isinstance(x, Tensor):
                    torch._dynamo.maybe_mark_dynamic(x, 0)
            try:
                return code(module, *inputs, **named)
            except Exception as error:
                if not LIMIT.fullmatch(type(error).__name__):
                    raise
                why = "does a number in it change? make it a tensor"
                print(f"warning: {type(module).__name__} is compiled anew again and again ({why}), going on without")
                code = forward
                return forward(module, *inputs, **named)

        return call

    replace_forward(block, compiled)


def keep_products(forward: Callable, module: nn.Module, *inputs, **named):
    """forward(module, …), keeping for backward the results of matrix products, convolutions and filters; what is
    between them is cheap, and computed again. A compiler makes new values of what operators change in place."""
    if not torch.is_grad_enabled():
        return forward(module, *inputs, **named)
    return checkpoint(forward, module, *inputs, use_reentrant=False, context_fn=_contexts, **named)


def _policy(ctx, operator, *args, **kwargs) -> CheckpointPolicy:
    """For PyTorch's selective checkpointing. Depthwise convolutions are cheap; random numbers are drawn once."""
    name = getattr(operator, "__name__", str(operator)).partition(".")[0]
    keep = name in KEPT and (name != "convolution" or args[-1] == 1)  # groups
    random = torch.Tag.nondeterministic_seeded in getattr(operator, "tags", ())
    return CheckpointPolicy.MUST_SAVE if keep or random else CheckpointPolicy.PREFER_RECOMPUTE


_contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
