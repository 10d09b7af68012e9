"""TAU, a model of the same purpose, for speed.py to stand beside: *Temporal Attention Unit: Towards Efficient
Spatiotemporal Predictive Learning* (Tan et al., CVPR 2023), of its authors' size for Moving MNIST: 15.9 G multiply-adds
a sequence (by API.evaluation.summary.costs, which also counts 44.8 M parameters). Float32, written plainly.

Encoder and decoder as DFDNet's, on all frames apart; between them attention blocks on all frames' channels together.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvSC(nn.Module):
    """Convolution, group normalisation, SiLU; halves or doubles the resolution where asked to."""

    def __init__(self, C_in: int, C_out: int, down: bool = False, up: bool = False) -> None:
        super().__init__()
        conv = nn.Conv2d(C_in, 4 * C_out if up else C_out, 3, 2 if down else 1, 1)
        self.conv = nn.Sequential(conv, nn.PixelShuffle(2)) if up else conv
        self.norm = nn.GroupNorm(2, C_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class Attention(nn.Module):
    """Static attention, what a large kernel sees around a place, times dynamic attention, one weight a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        few = max(channels // 16, 4)
        self.enter, self.leave = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, channels, 1)
        self.near = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.far = nn.Conv2d(channels, channels, 7, padding=9, dilation=3, groups=channels)
        self.mix = nn.Conv2d(channels, channels, 1)
        self.squeeze, self.excite = nn.Linear(channels, few, bias=False), nn.Linear(few, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = F.gelu(self.enter(x))
        dynamic = torch.sigmoid(self.excite(F.relu(self.squeeze(u.mean((2, 3))))))
        return x + self.leave(dynamic[..., None, None] * self.mix(self.far(self.near(u))) * u)


class Mixer(nn.Module):
    """A block's feed-forward part, with a look at the neighbours in between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand, self.reduce = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.around = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(F.gelu(self.around(self.expand(x))))


class Block(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.norm_attention, self.norm_mixer = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.attention, self.mixer = Attention(channels), Mixer(channels, 8 * channels)
        self.scale_attention, self.scale_mixer = (nn.Parameter(torch.full((channels, 1, 1), 0.01)) for _ in range(2))
        self.out = nn.Conv2d(channels, out, 1) if out != channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale_attention * self.attention(self.norm_attention(x))
        return self.out(x + self.scale_mixer * self.mixer(self.norm_mixer(x)))


class TAU(nn.Module):
    """past (B, T, C, H, W) -> (B, T, C, H, W)."""

    def __init__(self, T: int, C: int, hid_S: int = 64, hid_T: int = 512, blocks: int = 8) -> None:
        super().__init__()
        D, P = hid_S, T * hid_S
        self.first = ConvSC(C, D)
        self.encoder = nn.Sequential(ConvSC(D, D, down=True), ConvSC(D, D), ConvSC(D, D, down=True))
        widths = [P] + [hid_T] * (blocks - 1) + [P]
        self.temporal = nn.Sequential(*(Block(*pair) for pair in pairwise(widths)))
        self.decoder = nn.Sequential(ConvSC(D, D, up=True), ConvSC(D, D), ConvSC(D, D, up=True))
        self.last, self.readout = ConvSC(D, D), nn.Conv2d(D, C, 1)

    def forward(self, past: Tensor) -> Tensor:
        B, T = past.shape[:2]
        skip = self.first(past.flatten(0, 1))
        x = self.encoder(skip)
        x = self.temporal(x.reshape(B, -1, *x.shape[2:])).reshape(x.shape)
        return self.readout(self.last(self.decoder(x) + skip)).unflatten(0, (B, T))


class TAULoss(nn.Module):
    """The squared error, and a tenth of how far the changes from frame to frame, as a distribution, are from the true
    ones (Kullback-Leibler divergence at temperature 0.1)."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        predicted, true = (F.softmax(x.diff(dim=1).flatten(2) / 0.1, -1) for x in (prediction, target))
        divergence = (predicted * torch.log(predicted / (true + 1e-12) + 1e-12)).mean()
        return F.mse_loss(prediction, target) + 0.1 * divergence
