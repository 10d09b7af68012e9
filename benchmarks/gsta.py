"""SimVP with gated spatiotemporal attention, a baseline for study.py: *SimVP: Towards Simple yet Powerful
Spatiotemporal Predictive Learning* (Tan et al., 2022). Encoder, decoder and feed-forward parts are those of TAU, its
successor; the attention differs, and the loss is the squared error.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tau import TAU, Block


class GatedAttention(nn.Module):
    """What a large kernel sees around a place, gated by the sigmoid of the same kernel's second half."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.mix = nn.Conv2d(channels, 2 * channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.mix(self.far(self.near(F.gelu(self.enter(x))))).chunk(2, 1)
        return x + self.leave(torch.sigmoid(gate) * value)


class GSTA(TAU):
    """past (B, T, C, H, W) -> (B, T, C, H, W)."""

    def __init__(self, T: int, C: int, hid_S: int = 64, hid_T: int = 512, blocks: int = 8) -> None:
        super().__init__(T, C, hid_S, hid_T, blocks)
        for block in self.temporal:
            if isinstance(block, Block):
                block.attention = GatedAttention(block.norm_attention.num_features)
