"""The same numbers sooner or in less memory, applied to a plain model from outside.

It swaps torch's own layers, wraps the blocks that it is given, and replaces a filter's FFTs by functions that compare
equal. It can be left out as a whole (--plain), and never changes what is computed.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor, nn

from .compiled import compile_blocks
from .fft import swap_ffts
from .mish import swap_mish
from .norms import swap_norms
from .recompute import recompute_blocks


def accelerate(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    *,
    recompute: bool = False,
    compile: bool = False,
    example: Tensor | None = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    backend: str | Callable = "inductor",
    agree: Callable[[bool], bool] = bool,
) -> list[str]:
    """Speed up a model in place, before it is trained; returns a line for each thing that was applied.

    Args:
        blocks: the parts of model to recompute or compile, one by one.
        recompute: keep only their inputs for backward, and compute the rest again.
        compile: compile them, for the batch of example (others work too), under autocast. Where that fails, they stay
            as they are and the line says why.
        agree: makes of "it failed here" the answer of all processes.
    """
    lines = swap_mish(model) + swap_norms(model) + swap_ffts(model)
    if compile:
        lines += compile_blocks(model, blocks, example, autocast, backend, agree)
    if recompute:
        lines += recompute_blocks(blocks)
    return lines
