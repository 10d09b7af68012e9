"""Mish, x tanh(softplus(x)), for CPUs.

Mish takes one exponential here: on a CPU PyTorch's own spends three quarters of its time on tanh.

With e = exp(x) and h = e + e^2 / 2, whose own slope is e + e^2 = 2 h - e:

    tanh(softplus(x)) = ((1 + e)^2 - 1) / ((1 + e)^2 + 1) = h / (1 + h)
    d / dx            = (2 h - e) / (1 + h)^2
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LINEAR = 40.0  # from there on Mish is x, in float64 too, and e^2 is far from overflowing
AT_A_TIME = 2**16  # values a thread; what is in between then stays in a core's cache


class FastMish(nn.Mish):
    """nn.Mish on a CPU: x, of any shape -> the same, in x's precision."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.mish(x)
        return mish(x)


def swap_mish(model: nn.Module) -> list[str]:
    """Make every nn.Mish of a model on a CPU a FastMish; returns a line about it."""
    if any(p.device.type != "cpu" for p in model.parameters()):
        return []
    found = [module for module in model.modules() if type(module) is nn.Mish and not module.inplace]
    for module in found:
        module.__class__ = FastMish
    return [f"{len(found)} Mish with one exponential instead of three"] if found else []


def mish(x: Tensor) -> Tensor:
    """torch.nn.functional.mish of x, of any shape, on a CPU."""
    return _Mish.apply(x)


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _by_parts(_mish, x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            return torch.autograd.grad(F.mish(x), x, grad, create_graph=True)[0]
        return _by_parts(_mish_backward, x, grad)


def _by_parts(function: Callable[..., object], x: Tensor, *others: Tensor) -> Tensor:
    """function(x, *others) in float32 at least, some of the first dimension at a time; in x's precision and layout."""
    y = torch.empty_like(x)
    some = max(1, AT_A_TIME * torch.get_num_threads() // max(1, x[:1].numel()))
    for part, *inputs in zip(*(tensor.split(some) for tensor in (y, x, *others))):
        function(*(one.to(torch.promote_types(one.dtype, torch.float32)) for one in inputs), out=part)
    return y


def _mish(x: Tensor, out: Tensor) -> None:
    h = torch.exp(x)
    h.addcmul_(h, h, value=0.5)
    _finish(torch.div, x, h.reciprocal_().add_(1), out)  # right for an h of zero or infinity, too


def _mish_backward(x: Tensor, grad: Tensor, out: Tensor) -> None:
    # The slope of x h / (1 + h) is w (h + x (2 h - e) w), with w = 1 / (1 + h).
    x = x.clamp(max=LINEAR)
    e = x.exp()
    h = e.addcmul(e, e, value=0.5)
    w = (1 + h).reciprocal_()
    e.sub_(h, alpha=2).mul_(w)
    _finish(torch.mul, grad, h.addcmul_(e, x, value=-1).mul_(w), out)


def _finish(operator: Callable[..., Tensor], a: Tensor, b: Tensor, out: Tensor) -> None:
    """operator(a, b) into out, which may have another precision; b is used up."""
    same = out.dtype == b.dtype
    operator(a, b, out=out if same else b)
    if not same:
        out.copy_(b)
