"""STAU, the spatial-temporal attention unit of a DFDB."""

import torch.nn.functional as F
from torch import Tensor, nn


class STAU(nn.Module):
    """Gate temporal values by spatial attention: (B, H, W, c) -> (B, H, W, c).

    Linear(c, 2h), h = 2c // 3, makes two halves: s = GELU(depthwise 3x3 convolution) is the spatial gate, t the
    temporal value; Linear(h, c) reads s * t. The channels are T frames x D features, so t mixes time where s looks
    around in space.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 2 * channels // 3
        self.expand = nn.Linear(channels, 2 * hidden)
        self.spatial = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.reduce = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        s, t = self.expand(x).chunk(2, dim=-1)  # (B, H, W, h) each
        s = self.spatial(s.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # Conv2d takes (B, h, H, W)
        return self.reduce(F.gelu(s) * t)
