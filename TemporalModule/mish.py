"""Mish, x tanh(softplus(x)), and the GroupNorm before it.

Mish takes one sigmoid here: on a CPU PyTorch's own spends three quarters of its time on tanh.

With p = sigmoid(x) and q = p (2 - p):

    tanh(softplus(x)) = ((1 + e^x)^2 - 1) / ((1 + e^x)^2 + 1) = q / (2 - q)
    d / dx            = 4 p (1 - p)^2 / (2 - q)^2
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .lean import at_least_float32

FEW_CHANNELS = 16  # a group; with fewer PyTorch's GroupNorm is up to four times slower in bfloat16 on a CPU
AT_A_TIME = 2**16  # values a thread; what is in between then stays in a core's cache


class GroupNormMish(nn.GroupNorm):
    """GroupNorm, then Mish: x (N, C, H, W) -> the same, in x's precision (on a GPU autocast makes norms float32)."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_dynamo_compiling():
            return self.channels_last(x)
        few = self.num_channels < FEW_CHANNELS * self.num_groups
        y = super().forward(at_least_float32(x) if few else x)
        return mish(y.to(x.dtype))

    def channels_last(self, x: Tensor) -> Tensor:
        """The same written out, for a compiler: PyTorch's own turns to channels first on a GPU."""
        with torch.autocast(x.device.type, enabled=False):
            y = x.permute(0, 2, 3, 1).unflatten(-1, (self.num_groups, -1))  # (N, H, W, groups, C / groups)
            y = at_least_float32(y)
            variance, mean = torch.var_mean(y, (1, 2, 4), correction=0, keepdim=True)
            y = ((y - mean) * (variance + self.eps).rsqrt()).flatten(3) * self.weight + self.bias
            return F.mish(y).to(x.dtype).permute(0, 3, 1, 2)


def mish(x: Tensor) -> Tensor:
    """torch.nn.functional.mish of x, of any shape; on a GPU, where a kernel waits for memory only, PyTorch's own."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.mish(x)
    return _Mish.apply(x)


class _Mish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _by_parts(_mish, x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _by_parts(_mish_backward, *ctx.saved_tensors, grad)


def _by_parts(function: Callable[..., object], x: Tensor, *others: Tensor) -> Tensor:
    """function(x, *others) in float32 at least, some of the first dimension at a time; in x's precision and layout."""
    y = torch.empty_like(x)
    some = max(1, AT_A_TIME * torch.get_num_threads() // max(1, x[:1].numel()))
    for part, *inputs in zip(*(tensor.split(some) for tensor in (y, x, *others))):
        function(*(at_least_float32(one) for one in inputs), out=part)
    return y


def _mish(x: Tensor, out: Tensor) -> None:
    p = torch.sigmoid(x)
    q = (2 - p).mul_(p)
    _multiply(q.div_(2 - q), x, out)


def _mish_backward(x: Tensor, grad: Tensor, out: Tensor) -> None:
    p = torch.sigmoid(x)
    q = (2 - p).mul_(p)
    r = 2 - q
    slope = (1 - p).square_().mul_(p).div_(r)  # (1 - p)^2 is 1 - q, and more exact where p is nearly 1
    _multiply(q.addcmul_(slope, x, value=4).div_(r), grad, out)


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> None:
    """a b into out, which may have another precision; a is used up."""
    if out.dtype == a.dtype:
        torch.mul(a, b, out=out)
    else:
        out.copy_(a.mul_(b))
