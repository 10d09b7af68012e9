"""Keep less for the backward pass, and compute the rest again when it is needed (activation checkpointing)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from . import dfdu  # noqa: F401 - it makes the operator named below

_aten = torch.ops.aten
# What is kept. The filter is here as its output is small, half a signal, and its Fourier transforms are not cheap.
PRODUCTS = {
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.convolution.default,
    torch.ops.dfdnet.spectral_gate.default,
}  # fmt: skip


def keep_products(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """function(*inputs), keeping for backward the inputs and the outputs of matrix products and convolutions.

    Norms, activations, gates, Fourier transforms and changes of layout are cheap beside those, and are done again.
    function must not change any state. Compiled code is left alone: the compiler decides this by itself.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or _all_again.get():
        return function(*inputs)
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def keep_inputs(module: nn.Module, *inputs: Tensor) -> Tensor | list[Tensor]:
    """module(*inputs), keeping for backward the inputs alone. All of it, matrix products too, is done again."""
    if not torch.is_grad_enabled():
        return module(*inputs)
    contexts = partial(_first_and_again, module)
    return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)


def _policy(context, operator, *args, **kwargs) -> CheckpointPolicy:
    keep = operator in PRODUCTS
    if operator is _aten.convolution.default:
        keep = args[-1] == 1  # groups; a depthwise one is nine multiply-adds a number, no dearer than a norm
    elif operator is _aten._to_copy.default:
        keep = isinstance(args[0], nn.Parameter)  # autocast's copy of a weight, one whatever the batch
    return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE


def _first_and_again(module: nn.Module) -> tuple:
    """The contexts of a forward pass and of its repetition, in which BatchNorm must not count the batch twice."""
    return _inside(), _inside(module)


_all_again: ContextVar[bool] = ContextVar("all_again", default=False)  # inside of keep_inputs, keep_products need not


@contextmanager
def _inside(frozen: nn.Module | None = None) -> Iterator[None]:
    """keep_products does nothing of its own, and frozen's running statistics stay as they are."""
    token = _all_again.set(True)
    modules = frozen.modules() if frozen is not None else ()
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        _all_again.reset(token)
        for norm in norms:
            norm.track_running_stats = True
