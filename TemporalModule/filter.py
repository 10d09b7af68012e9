"""The filter of DFDU: low frequencies pass, and a high one where its magnitude reaches a learnable threshold."""

import math

import torch
from torch import Tensor, nn

# Start of the thresholds, on the scale of layer-normalised features: in the orthonormal FFT the magnitude of a bin of
# unit-variance white noise is Rayleigh distributed, so that a threshold a removes 1 - exp(-a^2) of the bins.
START = 0.3
# Width of the sigmoid whose slope stands for the gate's derivative: bins within about two widths teach the threshold.
WIDTH = 0.1


class HardGate(torch.autograd.Function):
    """1 where magnitude >= threshold, else 0; backward: the threshold sees the slope of a sigmoid of width WIDTH.

    magnitude (B, N, K), threshold (N, 1) -> (B, N, K). The magnitude gets no gradient: the features' gradient passes
    where the gate is open, and nowhere else.
    """

    @staticmethod
    def forward(ctx, magnitude: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(magnitude, threshold)
        return (magnitude >= threshold).to(magnitude.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[None, Tensor | None]:
        if not ctx.needs_input_grad[1]:  # frozen, as in the authors' release
            return None, None
        magnitude, threshold = ctx.saved_tensors
        soft = torch.sigmoid((magnitude - threshold) / WIDTH)
        slope = soft * (1 - soft) / WIDTH  # of the gate in the magnitude; in the threshold it is the negative
        return None, -(grad * slope).sum_to_size(threshold.shape)


def analyse(x: Tensor) -> Tensor:
    """Real signals (…, L) -> their orthonormal FFT as pairs of real numbers (…, L // 2 + 1, 2)."""
    return torch.view_as_real(torch.fft.rfft(x, norm="ortho"))


def synthesise(spectrum: Tensor, n: int) -> Tensor:
    """The inverse of analyse, for signals of length n, of which every second sample is kept: (…, n // 2 + 1, 2) ->
    (…, ceil(n / 2))."""
    return torch.fft.irfft(torch.view_as_complex(spectrum), n=n, norm="ortho")[..., ::2]


class ThresholdFilter(nn.Module):
    """Filter independent signals in the frequency domain, and keep every second sample.

    x (B, N, L), real, N = segments * positions signals -> (B, N, ceil(L / 2)). Bins below cutoff = floor(COF * L + 1)
    always pass. threshold (segments, positions) is on the scale of x (orthonormal FFT); a negative one passes all.

    release: the thresholds are frozen at N(0, 1) / sqrt(L), the authors' N(0, 1) for an unnormalised FFT.
    """

    analyse, synthesise = staticmethod(analyse), staticmethod(synthesise)  # API/speed/fft.py may swap faster ones in

    def __init__(self, segments: int, positions: int, length: int, COF: float, release: bool = False) -> None:
        super().__init__()
        self.length = length
        self.cutoff = min(int(COF * length + 1), length // 2 + 1)
        if release:
            start = torch.randn(segments, positions) / math.sqrt(length)
        else:
            start = torch.full((segments, positions), START)
        self.threshold = nn.Parameter(start, requires_grad=not release)
        self.register_buffer("start", start.clone())  # to report how far learning has moved the threshold

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # there is no bfloat16 FFT
            low, high = self.spectrum(x)
            return self.synthesise(torch.cat([low, high * self.gate(high).unsqueeze(-1)], 2), self.length)

    def spectrum(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, N, L) -> its orthonormal real FFT as pairs of real numbers, float32 at least: the low frequencies
        (B, N, cutoff, 2), and the high ones (B, N, L // 2 + 1 - cutoff, 2)."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = self.analyse(x)
        return spectrum.split([self.cutoff, spectrum.shape[2] - self.cutoff], dim=2)

    def gate(self, high: Tensor) -> Tensor:
        """high (B, N, K, 2), the high frequencies -> (B, N, K): 1 where a bin passes, 0 where it is removed."""
        magnitude = torch.linalg.vector_norm(high, dim=-1)
        return HardGate.apply(magnitude, self.threshold.flatten().unsqueeze(-1))

    def extra_repr(self) -> str:
        bins = self.length // 2 + 1
        return f"signals={tuple(self.threshold.shape)}, length={self.length}, low={self.cutoff} of {bins} bins"
