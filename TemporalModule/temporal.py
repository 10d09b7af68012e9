"""The temporal module: one stage of DFDBs for every layer of the spatial encoder."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .compiled import Kind
from .dfdu import DFDU, ThresholdFilter
from .lean import ConvTranspose2d, at_least_float32, keep_inputs, keep_products
from .stau import STAU
from .winograd import Conv3x3, ConvTranspose3x3

SEGMENTS = (4, 8)  # channel segments of a DFDB's two branches at 32x32 feature maps
FEW_CHANNELS = 80  # with fewer PyTorch's LayerNorm is slower in bfloat16 on a CPU, with more faster
RESIDUAL_FROM = 4  # a stage of at least so many DFDBs adds each one's input to its output
ReLU = functools.partial(nn.ReLU, inplace=True)  # behind norms, whose backward reads what went in, not what came out


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm: (…, channels) -> the same, in x's precision (on a GPU autocast makes norms float32)."""

    def forward(self, x: Tensor) -> Tensor:
        few = x.shape[-1] < FEW_CHANNELS
        return super().forward(at_least_float32(x) if few else x).to(x.dtype)


class Branch(nn.Module):
    """Attention, then dynamics, each on normalised features and with a shortcut: (B, H, W, c) -> (B, H, W, c).

    release: the authors' code has one LayerNorm and uses it twice.
    """

    def __init__(self, channels: int, height: int, width: int, segments: int, COF: float, release: bool) -> None:
        super().__init__()
        self.norm_stau = LayerNorm(channels)
        self.stau = STAU(channels)
        self.norm_dfdu = self.norm_stau if release else LayerNorm(channels)
        self.dfdu = DFDU(channels, height, width, segments, COF, release)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stau(self.norm_stau(x), x)  # the second is the shortcut
        return self.dfdu(self.norm_dfdu(x), x)


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
        segments: Sequence[int] = SEGMENTS,
        residual: bool = False,
        release: bool = False,
    ) -> None:
        super().__init__()
        reduced = channels // groups
        self.residual = residual
        self.reduction = nn.Sequential(nn.Conv2d(channels, reduced, 1, bias=False), nn.BatchNorm2d(reduced), ReLU())
        self.branch_r1 = Branch(reduced, height, width, segments[0], COF, release)
        self.branch_r2 = Branch(reduced, height, width, segments[1], COF, release)
        self.expansion = nn.Sequential(nn.Conv2d(2 * reduced, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        z = self.reduction(x).permute(0, 2, 3, 1)  # (B, H, W, c)
        z = torch.cat([keep_products(branch, z) for branch in (self.branch_r2, self.branch_r1)], -1)  # (B, H, W, 2c)
        z = self.expansion(z.permute(0, 3, 1, 2))  # (B, P, H, W)
        return (z + x if self.residual else z).relu_()


class Stem(nn.Sequential):
    """Mix all frames before a stage: (B, P, H, W) -> (B, P, H / stride, W / stride), through P // 2 channels."""

    def __init__(self, channels: int, stride: int) -> None:
        half = channels // 2
        super().__init__(
            Conv3x3(channels, half), nn.BatchNorm2d(half), ReLU(),
            nn.BatchNorm2d(half), ReLU(),
            Conv3x3(half, channels, stride), nn.BatchNorm2d(channels), ReLU(),
        )  # fmt: skip
        for conv in (self[0], self[5]):
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


class Unstem(nn.Sequential):
    """Undo the halving Stem: (B, P, H, W) -> (B, P, 2H, 2W), through P // 2 channels."""

    def __init__(self, channels: int) -> None:
        half = channels // 2
        super().__init__(
            ConvTranspose3x3(channels, half), nn.BatchNorm2d(half), ReLU(),
            ConvTranspose2d(half, channels, 3, stride=2, padding=1, output_padding=1),
        )  # fmt: skip


class TemporalModule(nn.Module):
    """Predict every encoder layer's features: a list of (B, P, H_i, W_i) -> a list of the same shapes.

    P = T*D: all frames of a layer side by side, so that a DFDB's channel mixing is mixing in time. Stage i is
    layer_config[i] DFDBs in a row; the first works at half resolution, the last behind a stem and a 3x3 maximum.
    """

    def __init__(
        self,
        channels: int,
        sizes: Sequence[tuple[int, int]],
        layer_config: Sequence[int],
        groups: int,
        COF: float,
        segments: Sequence[int] = SEGMENTS,
        release: bool = False,
    ) -> None:
        super().__init__()
        sizes = [(sizes[0][0] // 2, sizes[0][1] // 2), *sizes[1:]]
        self.stem_first = Stem(channels, stride=2)
        self.stem_last = nn.Sequential(Stem(channels, stride=1), nn.MaxPool2d(3, stride=1, padding=1))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *(DFDB(channels, *size, groups, COF, segments, depth >= RESIDUAL_FROM, release) for _ in range(depth))
            )
            for depth, size in zip(layer_config, sizes, strict=True)
        )
        self.unstem_first = Unstem(channels)
        self.sizes = sizes
        self.checkpoint_blocks = False  # keep nothing but the blocks' inputs for backward

    def kinds(self, sequences: int) -> list[Kind]:
        """The DFDBs by stage, to compile for so many sequences at once."""
        weight = self.unstem_first[0].weight
        return [
            Kind(stage, torch.randn(sequences, weight.shape[0], *size, device=weight.device))
            for stage, size in zip(self.stages, self.sizes)
            if len(stage)
        ]

    def use_matrices(self) -> None:
        """Compute the filters' Fourier transforms as matrix products, for formats without them; for inference."""
        known: dict[int, tuple[Tensor, ...]] = {}
        for module in self.modules():
            if isinstance(module, ThresholdFilter):
                module.use_matrices(known)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        call = keep_inputs if self.checkpoint_blocks else nn.Module.__call__
        first, *middle, last = features
        predicted = []
        for stage, x in zip(
            self.stages, (call(self.stem_first, first), *middle, call(self.stem_last, last)), strict=True
        ):
            for block in stage:
                x = call(block, x)
            predicted.append(x)
        return [call(self.unstem_first, predicted[0]), *predicted[1:]]
