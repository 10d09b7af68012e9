"""The temporal module: one stage of DFDBs for every layer of the spatial encoder."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .dfdu import DFDU
from .stau import STAU

RESIDUAL_FROM = 4  # a stage of at least so many DFDBs adds each one's input to its output


class Branch(nn.Module):
    """Attention, then dynamics, each on normalised features: (B, H, W, c) -> (B, H, W, c).

    release: one LayerNorm, used twice, as in the authors' code.
    """

    def __init__(self, channels: int, height: int, width: int, segments: int, COF: float, release: bool) -> None:
        super().__init__()
        self.norm_stau = nn.LayerNorm(channels)
        self.stau = STAU(channels)
        self.norm_dfdu = self.norm_stau if release else nn.LayerNorm(channels)
        self.dfdu = DFDU(channels, height, width, segments, COF, release)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stau(self.norm_stau(x))
        return x + self.dfdu(self.norm_dfdu(x))


class DFDB(nn.Module):
    """Disentangling and filtering dynamics block: reduce the channels, two branches in parallel, expand.

    x (B, P, H, W) -> (B, P, H, W). The branches cut the c = P // groups channels into r1 and r2 segments (finer and
    coarser spectra). residual adds the input before the last ReLU. Paper: the right half of Figure 1.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        groups: int,
        COF: float,
        segments: Sequence[int],
        residual: bool = False,
        release: bool = False,
    ) -> None:
        super().__init__()
        reduced = channels // groups
        self.residual = residual
        self.reduction = nn.Sequential(
            nn.Conv2d(channels, reduced, 1, bias=False),
            nn.BatchNorm2d(reduced),
            nn.ReLU(inplace=True),
        )
        self.branch_r1 = Branch(reduced, height, width, segments[0], COF, release)
        self.branch_r2 = Branch(reduced, height, width, segments[1], COF, release)
        self.expansion = nn.Sequential(
            nn.Conv2d(2 * reduced, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        z = self.reduction(x).permute(0, 2, 3, 1)  # (B, H, W, c)
        z = torch.cat([self.branch_r2(z), self.branch_r1(z)], -1)  # (B, H, W, 2c)
        z = self.expansion(z.permute(0, 3, 1, 2))  # (B, P, H, W)
        return self.relu(x + z if self.residual else z)


class Stem(nn.Sequential):
    """Mix all frames before a stage: (B, P, H, W) -> (B, P, H / stride, W / stride), through P // 2 channels."""

    def __init__(self, channels: int, stride: int) -> None:
        half = channels // 2
        super().__init__(
            nn.Conv2d(channels, half, 3, padding=1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.Conv2d(half, channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
        )
        for conv in (self[0], self[5]):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


class Unstem(nn.Sequential):
    """Undo the halving Stem: (B, P, H, W) -> (B, P, 2H, 2W), through P // 2 channels."""

    def __init__(self, channels: int) -> None:
        half = channels // 2
        super().__init__(
            nn.ConvTranspose2d(channels, half, 3, padding=1),
            nn.BatchNorm2d(half),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(half, channels, 3, stride=2, padding=1, output_padding=1),
        )


class TemporalModule(nn.Module):
    """Predict every encoder layer's features: a list of (B, P, H_i, W_i) -> a list of the same shapes.

    P = T*D: all frames of a layer side by side, so that a DFDB's channel mixing is mixing in time. Stage i is
    layer_config[i] DFDBs in series; the first works at half resolution, the last behind a stem and a 3x3 maximum.
    """

    def __init__(
        self,
        channels: int,
        sizes: Sequence[tuple[int, int]],
        layer_config: Sequence[int],
        groups: int,
        COF: float,
        segments: Sequence[int] = (4, 8),
        release: bool = False,
    ) -> None:
        super().__init__()
        (H, W), *deeper = sizes
        self.stem_first = Stem(channels, stride=2)
        self.stem_last = nn.Sequential(Stem(channels, stride=1), nn.MaxPool2d(3, stride=1, padding=1))
        self.stages = nn.ModuleList()
        for depth, (height, width) in zip(layer_config, [(H // 2, W // 2), *deeper], strict=True):
            residual = depth >= RESIDUAL_FROM
            blocks = [DFDB(channels, height, width, groups, COF, segments, residual, release) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
        self.unstem_first = Unstem(channels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        first, *middle, last = features
        stage_inputs = [self.stem_first(first), *middle, self.stem_last(last)]
        first, *deeper = (stage(x) for stage, x in zip(self.stages, stage_inputs, strict=True))
        return [self.unstem_first(first), *deeper]
