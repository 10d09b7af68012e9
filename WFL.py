"""The weighted frequency loss: a squared error in the spectrum that cares most about slow, large-scale change."""

import torch
from torch import Tensor, nn


class WeightedFrequencyLoss(nn.Module):
    """mean over (B, C, t, h, w) of weight(t, h, w) |FFT(prediction - target)|^2; a scalar in float32,
    whatever the autocast.

    The FFT is over (T, H, W), unnormalised and unshifted, and
        weight = 1.5 - exp(-1/2 [((t - T//2) / 8)^2 + ((h - H//2) / 12)^2 + ((w - W//2) / 12)^2]),
    so the lowest frequencies, in the corners of the unshifted grid, weigh up to 1.5, the highest, in its centre, 0.5.
    The difference is real: half of the spectrum suffices, the other half's weights are folded onto it.

    release: the FFT is over (H, W), or (C, H, W) for C > 1, and the weight's t counts frames.

    prediction, target: (B, frames, C, height, width). Raises ValueError for other sizes. See docs/method.md.
    """

    def __init__(self, frames: int, height: int, width: int, release: bool = False) -> None:
        super().__init__()
        self.release = release

        def falloff(n: int, scale: float) -> Tensor:
            return torch.exp(-0.5 * ((torch.arange(n, dtype=torch.float64) - n // 2) / scale) ** 2)

        t, h, w = falloff(frames, 8), falloff(height, 12), falloff(width, 12)
        weight = 1.5 - t[:, None, None] * h[:, None] * w  # (T, H, W)
        # |F| is the same at a frequency and its negative. In release mode t is a frame, not a frequency.
        mirrored = weight
        for axis in (1, 2) if release else (0, 1, 2):
            mirrored = mirrored.flip(axis).roll(1, axis)
        weight = (weight + mirrored)[..., : width // 2 + 1]
        weight[..., 0] /= 2  # the first column, and for an even width the last, hold their own mirror image
        if width % 2 == 0:
            weight[..., -1] /= 2
        self.register_buffer("weight", weight[:, None].float(), persistent=False)  # (T, 1, H, W//2 + 1)
        self.shape = (frames, height, width)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        _, T, C, H, W = prediction.shape
        if self.shape != (T, H, W) or target.shape != prediction.shape:
            shapes = f"prediction {tuple(prediction.shape)}, target {tuple(target.shape)}"
            raise ValueError(f"{shapes}: this loss takes two alike, frames, height, width = {self.shape}")
        error = prediction.float() - target.float()
        axes = (1, 3, 4) if not self.release else (3, 4) if C == 1 else (2, 3, 4)
        with torch.autocast(error.device.type, enabled=False):
            power = torch.view_as_real(torch.fft.rfftn(error, dim=axes)).square().sum(-1)
            return (power * self.weight).sum() / error.numel()
