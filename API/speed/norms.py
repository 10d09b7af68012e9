"""Norms over few channels on a CPU: computed in float32 under bfloat16 autocast, where PyTorch's kernels are slow.

PyTorch vectorises these norms along the channels that they normalise together. With few of them its bfloat16 kernels
take up to four times as long as converting to float32 and back.
"""

import torch
from torch import Tensor, nn

FEW = 80  # channels of a LayerNorm
FEW_IN_GROUP = 16  # channels of a group of a GroupNorm


class Float32LayerNorm(nn.LayerNorm):
    """nn.LayerNorm, computed in float32; the result is in x's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype) if x.dtype == torch.bfloat16 else super().forward(x)


class Float32GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, computed in float32; the result is in x's precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype) if x.dtype == torch.bfloat16 else super().forward(x)


def swap_norms(model: nn.Module) -> list[str]:
    """Make the norms over few channels of a model on a CPU compute in float32; returns a line about it."""
    if any(p.device.type != "cpu" for p in model.parameters()):
        return []
    found = 0
    for module in model.modules():
        if type(module) is nn.LayerNorm and len(module.normalized_shape) == 1 and module.normalized_shape[0] < FEW:
            module.__class__ = Float32LayerNorm
        elif type(module) is nn.GroupNorm and module.num_channels < FEW_IN_GROUP * module.num_groups:
            module.__class__ = Float32GroupNorm
        else:
            continue
        found += 1
    return [f"{found} norms over few channels in float32 under bfloat16"] if found else []
