"""DFDNet: disentangling and filtering dynamics for video prediction. The model, top down as in the paper's Figure 1.

Shapes: B sequences of T past frames of C x H x W pixels; D = hid_S features a frame; P = T*D.

    past (B, T, C, H, W)
      encoder     frame by frame; every layer's output     e_i (B, P, H_i, W_i)
      temporal    all frames together                      m_i (B, P, H_i, W_i), one stage of DFDBs a layer
      decoder     frame by frame; deepest m first, the shallower ones added on the way up
    future (B, T_out, C_out, H, W)
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from TemporalModule import TemporalModule


class ConvSC(nn.Module):
    """Convolution, GroupNorm, Mish: (N, C_in, H, W) -> (N, C_out, H / stride, W / stride); transposed: H * stride."""

    def __init__(self, C_in: int, C_out: int, kernel_size: int, stride: int = 1, transposed: bool = False) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2
        if transposed and stride > 1:
            self.conv = nn.ConvTranspose2d(C_in, C_out, kernel_size, stride, padding, output_padding=stride // 2)
        else:
            self.conv = nn.Conv2d(C_in, C_out, kernel_size, stride, padding)
        self.norm = nn.GroupNorm(2, C_out)
        self.act = nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Encoder(nn.Module):
    """Past (B, T, C, H, W) -> every layer's features [(B, T*D, H_0, W_0), …]; each second layer halves the size."""

    def __init__(self, C: int, D: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConvSC(D if i else C, D, k, stride)
            for i, (k, stride) in enumerate(zip(kernel_size, strides(len(kernel_size))))
        )

    def forward(self, past: Tensor) -> list[Tensor]:
        T, features = past.shape[1], []
        x = past.flatten(0, 1).clone(memory_format=torch.channels_last)  # (B*T, C, H, W)
        for layer in self.layers:
            x = layer(x)
            features.append(frames_as_channels(x, T))
        return features


class Decoder(nn.Module):
    """Predicted features of every layer [(B, T*D, H_0, W_0), …] -> frames (B, T, C, H, W)."""

    def __init__(self, D: int, C: int, kernel_size: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            ConvSC(D, D, k, stride, transposed=True)
            for k, stride in zip(reversed(kernel_size), reversed(strides(len(kernel_size))))
        )
        self.readout = nn.Conv2d(D, C, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        B, D = features[0].shape[0], self.readout.in_channels
        *shallower, x = (channels_as_frames(m, D) for m in features)  # (B*T, D, H_i, W_i)
        *up, last = self.layers
        for layer, m in zip(up, reversed(shallower), strict=True):
            x = layer(x) + m
        return self.readout(last(x)).unflatten(0, (B, -1)).contiguous()


class DFDNet(nn.Module, PyTorchModelHubMixin, library_name="dfdnet", tags=["video-prediction"]):
    """Predict the next frames of a video: past (B, T, C, H, W) in [0, 1] -> future (B, T_out, C_out, H, W).

    Args:
        in_shape, out_shape: (T, C, H, W) and (T_out, C_out, H, W). H and W divide by the product of the strides.
        hid_S: D, features a frame. Even.
        layer: depth of the spatial encoder and decoder; strides 1, 2, 1, 2, …
        kernel_size: one odd number a layer, or one for all.
        COF: cut-off frequency of the filter as a fraction of the signal length; bins below always pass.
        groups: a DFDB works on P // groups channels.
        layer_config: DFDBs a stage, one number a layer.
        release: compute what the authors' released code computes (docs/method.md).
        segments: channel segments of a DFDB's two branches.

    Raises: ValueError, naming the flag, for sizes that do not fit together.
    """

    def __init__(
        self,
        in_shape: Sequence[int] = (10, 1, 64, 64),
        out_shape: Sequence[int] = (10, 1, 64, 64),
        hid_S: int = 64,
        layer: int = 4,
        kernel_size: Sequence[int] | int = (3, 3, 3, 3),
        COF: float = 0.3125,
        groups: int = 2,
        layer_config: Sequence[int] = (1, 8, 2, 8),
        release: bool = False,
        segments: Sequence[int] = (4, 8),
    ) -> None:
        super().__init__()
        kernel_size = [kernel_size] if isinstance(kernel_size, int) else list(kernel_size)
        check_sizes(in_shape, out_shape, hid_S, layer, kernel_size, COF, groups, layer_config, segments)
        kernel_size = kernel_size * layer if len(kernel_size) == 1 else kernel_size
        self.T, C, H, W = in_shape
        self.T_out, C_out = out_shape[:2]

        self.encoder = Encoder(C, hid_S, kernel_size)
        self.temporal = TemporalModule(
            self.T * hid_S, feature_sizes(H, W, layer), layer_config, groups, COF, segments, release
        )
        self.decoder = Decoder(hid_S, C_out, kernel_size)

    def forward(self, past: Tensor) -> Tensor:
        """past (B, T, C, H, W) -> (B, T_out, C_out, H, W); beyond T frames, on from the newest T predictions."""
        future = self.predict_once(past)
        while future.shape[1] < self.T_out:
            future = torch.cat([future, self.predict_once(future[:, -self.T :])], 1)
        return future[:, : self.T_out]

    def predict_once(self, past: Tensor) -> Tensor:
        """T frames -> the next T frames: (B, T, C, H, W) -> (B, T, C_out, H, W)."""
        return self.decoder(self.temporal(self.encoder(past)))

    def blocks(self) -> list[nn.Module]:
        """The parts to recompute, compile or shard one by one, from outside."""
        temporal = self.temporal
        dfdbs = [block for stage in temporal.stages for block in stage]
        parts = [self.encoder, temporal.stem_first, temporal.stem_last, *dfdbs, temporal.unstem_first, self.decoder]
        return list(dict.fromkeys(parts))  # once each, also a DFDB that stands in several places


# Both, and their gradients, lay the channels last in memory, as convolutions and DFDBs read them.
def frames_as_channels(x: Tensor, T: int) -> Tensor:
    """The features of T frames as channels of one map: (B*T, D, H, W) -> (B, T*D, H, W)."""
    return rearrange(x.permute(0, 2, 3, 1), "(B T) H W D -> B H W (T D)", T=T).permute(0, 3, 1, 2)


def channels_as_frames(x: Tensor, D: int) -> Tensor:
    """The inverse of frames_as_channels: (B, T*D, H, W) -> (B*T, D, H, W)."""
    return rearrange(x.permute(0, 2, 3, 1), "B H W (T D) -> (B T) H W D", D=D).permute(0, 3, 1, 2)


def strides(layer: int) -> list[int]:
    """1, 2, 1, 2, …: every second layer halves."""
    return [1 + i % 2 for i in range(layer)]


def feature_sizes(H: int, W: int, layer: int) -> list[tuple[int, int]]:
    """(H_i, W_i) of every encoder layer."""
    scales = [math.prod(strides(layer)[: i + 1]) for i in range(layer)]
    return [(H // s, W // s) for s in scales]


def check_sizes(in_shape, out_shape, hid_S, layer, kernel_size, COF, groups, layer_config, segments, **_) -> None:
    """Raise a ValueError that names the flag where these arguments of DFDNet do not fit together."""

    def demand(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(message)

    for flag, shape in (("--in_shape", in_shape), ("--out_shape", out_shape)):
        whole = len(shape) == 4 and all(isinstance(n, int) and n > 0 for n in shape)
        demand(whole, f"{flag} {shape}: give four positive whole numbers, T C H W")
    for flag, value in (("--hid_S", hid_S), ("--layer", layer), ("--groups", groups)):
        demand(isinstance(value, int) and value > 0, f"{flag} {value}: must be a positive whole number")
    T, C, H, W = in_shape
    demand(layer >= 2, f"--layer {layer}: at least 2, the first and the last temporal stage differ")
    demand(hid_S % 2 == 0, f"--hid_S {hid_S}: must be even, for GroupNorm's two groups")
    demand(
        len(kernel_size) in (1, layer),
        f"--kernel_size {kernel_size}: give {layer} numbers, one for each --layer, or one for all",
    )
    demand(all(k % 2 == 1 and k > 0 for k in kernel_size), f"--kernel_size {kernel_size}: must be positive odd numbers")
    demand(len(layer_config) == layer, f"--layer_config {layer_config}: give {layer} numbers, one for each --layer")
    demand(all(k >= 0 for k in layer_config), f"--layer_config {layer_config}: must not be negative")
    demand(0 <= COF <= 1, f"--COF {COF}: must lie between 0 and 1, a fraction of the signal length")
    demand(
        tuple(out_shape[2:]) == (H, W),
        f"--out_shape {out_shape}: height and width must be those of --in_shape, {H} {W}",
    )
    again = f"--out_shape {out_shape}: {out_shape[0]} frames from {T} take a second pass"
    demand(out_shape[1] == C or out_shape[0] <= T, f"{again}, so the channels must be --in_shape's {C}")
    factor = math.prod(strides(layer))
    demand(
        H % factor == 0 and W % factor == 0,
        f"--in_shape {in_shape}: height and width must divide by {factor} (--layer {layer})",
    )
    P = T * hid_S
    demand(
        P % groups == 0,
        f"--groups {groups}: must divide the {P} channels of --in_shape {T} frames times --hid_S {hid_S}",
    )
    demand(len(segments) == 2 and all(r > 0 for r in segments), f"--segments {segments}: give two positive numbers")
    c = P // groups
    for r in segments:
        demand(c % r == 0, f"--segments {r}: must divide a DFDB's {c} channels ({T} frames * --hid_S / --groups)")
