"""DFDU, the unit the paper is named after: decompose the features into height and width signals, filter their
spectra with a learnable threshold, predict with a linear layer, and recombine.

Signals, for c = r * S channels cut into r segments of S (SPEC letters: B batch, H W feature map):

    height   one signal per segment and column:   (B, H, W, c) -> (B, r*W, H*S)    thresholds (r, W)
    width    one signal per segment and row:      (B, H, W, c) -> (B, r*H, W*S)    thresholds (r, H)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .gate import is_open, power_of, spectral_gate
from .lean import AddedLinear, Linear, at_least_float32, last, product_dtype

# Where learning starts. The threshold lives on the scale of layer-normalised features: in the orthonormal FFT the
# magnitude of a bin of unit-variance noise is Rayleigh, so alpha removes 1 - exp(-alpha^2) of the bins: 8.6 % at 0.3.
# That is active (there is something to learn from) and mild (the signal energy lost is under half a percent).
START = 0.3
# Width of the sigmoid that stands for the gate in the backward pass: bins within about two widths of the threshold
# teach it. Of the order of the start value, so that the bins both sides of it take part and none far away does.
WIDTH = 0.1


class ThresholdFilter(nn.Module):
    """Keep every low frequency, and a high one only where its magnitude clears a learnable threshold.

    x (B, N, L) real, N = segments * positions independent signals of length L -> (B, N, ceil(L / 2)): every second
    sample of the filtered signals. Bins below cutoff = floor(COF * L + 1) are low. The threshold (segments, positions)
    is on the scale of x (orthonormal FFT); a negative one lets everything through.

    release: thresholds do not learn and start from N(0, 1) / sqrt(L), the authors' N(0, 1) for an unnormalised FFT.
    """

    def __init__(self, segments: int, positions: int, length: int, COF: float, release: bool = False) -> None:
        super().__init__()
        self.length, self.cutoff = length, min(int(COF * length + 1), length // 2 + 1)
        start = (
            torch.randn(segments, positions) / math.sqrt(length)
            if release
            else torch.full((segments, positions), START)
        )
        self.threshold = nn.Parameter(start, requires_grad=not release)
        self.register_buffer("start", start.clone())  # to tell how far learning has moved the threshold
        self.matrices: tuple[Tensor, ...] | None = None  # see use_matrices
        self.watch: list[Tensor] | None = None  # see watch.filter_statistics

    def forward(self, x: Tensor) -> Tensor:
        if self.matrices is not None:
            return self.by_matrices(x)
        x = at_least_float32(x)
        dtype = product_dtype(x)
        with torch.autocast(x.device.type, enabled=False):  # there is no bfloat16 FFT
            if self.watch is not None:
                self.watch.append(self.removed(x))
            threshold = self.threshold.flatten().to(x.dtype)
            return spectral_gate(x, threshold, self.cutoff, WIDTH, dtype)

    def use_matrices(self, known: dict[int, tuple[Tensor, ...]]) -> None:
        """From now on compute both Fourier transforms as matrix products, the same numbers, for formats without an FFT.

        known: matrices by signal length, so that filters of one length share theirs.
        """
        L = self.length
        if L not in known:
            k, n = torch.arange(L // 2 + 1, dtype=torch.float64), torch.arange(L, dtype=torch.float64)
            angle = 2 * math.pi / L * (k[:, None] * n % L)
            twice = torch.where((k == 0) | (2 * k == L), 1.0, 2.0)[
                :, None
            ]  # bins that stand for their mirror image too
            cos, sin = angle.cos() / math.sqrt(L), angle.sin() / math.sqrt(L)
            known[L] = tuple(
                m.float().contiguous() for m in (cos.T, -sin.T, (twice * cos)[:, ::2], (-twice * sin)[:, ::2])
            )
        self.matrices = known[L]

    def by_matrices(self, x: Tensor) -> Tensor:
        """The filter in real matrix products; for inference."""
        to_real, to_imaginary, from_real, from_imaginary = self.matrices
        x = x.float()
        real, imaginary = x @ to_real, x @ to_imaginary
        low = torch.arange(self.length // 2 + 1, device=x.device) < self.cutoff
        power = real * real + imaginary * imaginary
        gate = (low | is_open(power, self.threshold.flatten())).to(x.dtype)
        return (gate * real) @ from_real + (gate * imaginary) @ from_imaginary

    @torch.no_grad()
    def removed(self, x: Tensor) -> Tensor:
        """Fraction of the high-frequency bins of x (B, N, L) that the gate closes; a scalar on x's device."""
        high = torch.fft.rfft(x, norm="ortho")[..., self.cutoff :]
        gate = is_open(power_of(high), self.threshold.flatten())
        return 1 - gate.float().mean() if gate.numel() else gate.new_zeros((), dtype=torch.float32)

    def extra_repr(self) -> str:
        bins = self.length // 2 + 1
        return f"signals={tuple(self.threshold.shape)}, length={self.length}, low={self.cutoff} of {bins} bins"


class DFDU(nn.Module):
    """Disentangle the dynamics along height and width, filter them, predict, and recombine.

    x, shortcut (B, H, W, c) -> (B, H, W, c), the shortcut added; c must divide by segments. Paper: the right of
    Figure 1.
    """

    def __init__(
        self, channels: int, height: int, width: int, segments: int, COF: float, release: bool = False
    ) -> None:
        super().__init__()
        self.segments, self.depth = segments, channels // segments  # r, S
        length_h, length_w = height * self.depth, width * self.depth
        self.filter_h = ThresholdFilter(segments, width, length_h, COF, release)
        self.filter_w = ThresholdFilter(segments, height, length_w, COF, release)
        self.predict_h = AddedLinear((length_h + 1) // 2, length_h, bias=False)
        self.predict_w = AddedLinear((length_w + 1) // 2, length_w, bias=False)
        self.embed_h = Linear(channels, channels, bias=False)
        self.embed_w = Linear(channels, channels, bias=False)
        self.embed_x = Linear(channels, channels, bias=False)

    def decompose_h(self, x: Tensor) -> Tensor:
        """(B, H, W, r*S) -> (B, r*W, H*S), float32 at least: a signal runs down one column, S channels at each row."""
        return rearranged(x.unflatten(-1, (self.segments, -1)), (0, 3, 2, 1, 4)).flatten(3).flatten(1, 2)

    def decompose_w(self, x: Tensor) -> Tensor:
        """(B, H, W, r*S) -> (B, r*H, W*S), float32 at least: a signal runs along one row."""
        return rearranged(x.unflatten(-1, (self.segments, -1)), (0, 3, 1, 2, 4)).flatten(3).flatten(1, 2)

    def compose_h(self, signals: Tensor) -> Tensor:
        """(B, r*W, H*S) -> (B, H, W, r*S), the inverse of decompose_h."""
        planes = signals.unflatten(1, (self.segments, -1)).unflatten(-1, (-1, self.depth))  # (B, r, W, H, S)
        return planes.permute(0, 3, 2, 1, 4).flatten(3)

    def compose_w(self, signals: Tensor) -> Tensor:
        """(B, r*H, W*S) -> (B, H, W, r*S), the inverse of decompose_w."""
        planes = signals.unflatten(1, (self.segments, -1)).unflatten(-1, (-1, self.depth))  # (B, r, H, W, S)
        return planes.permute(0, 2, 3, 1, 4).flatten(3)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        # Each signal gets its prediction added, where it lies in x. (B, H, W, c)
        h = self.predict_h(self.filter_h(self.decompose_h(x)), x, self.compose_h)
        w = self.predict_w(self.filter_w(self.decompose_w(x)), x, self.compose_w)
        E_h = self.embed_h(mean_over(h, 1))  # (B, 1, W, c)
        E_w = self.embed_w(mean_over(w, 2))  # (B, H, 1, c)
        return recombine(h, w, self.embed_x(x), E_h, E_w, shortcut)


def rearranged(x: Tensor, order: Sequence[int]) -> Tensor:
    """x.permute(order), contiguous and in float32 at least: there is no bfloat16 FFT."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    if torch.compiler.is_compiling():
        return _contiguous(x.permute(order), dtype)
    return _Rearranged.apply(x, order, dtype)


class _Rearranged(torch.autograd.Function):
    """One pass through memory, there and back, for layout and precision together."""

    @staticmethod
    def forward(ctx, x: Tensor, order: Sequence[int], dtype: torch.dtype) -> Tensor:
        ctx.order, ctx.dtype = order, x.dtype
        return _contiguous(x.permute(order), dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        back = [ctx.order.index(axis) for axis in range(grad.ndim)]
        return _contiguous(grad.permute(back), ctx.dtype), None, None


def _contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype, memory_format=torch.contiguous_format).contiguous()  # to() leaves an x of that dtype as it lies


def mean_over(x: Tensor, axis: int) -> Tensor:
    """x.mean(axis, keepdim=True), which would divide its gradient only after spreading it out."""
    return x.sum(axis, keepdim=True) * (1 / x.shape[axis])


def recombine(h: Tensor, w: Tensor, q: Tensor, E_h: Tensor, E_w: Tensor, shortcut: Tensor) -> Tensor:
    """h E_w + w E_h + q (E_h + E_w) + shortcut: E_h (B, 1, W, c), E_w (B, H, 1, c), the others and the result
    (B, H, W, c). Nothing may follow it inside of keep_products."""
    if torch.compiler.is_compiling():
        return h * E_w + w * E_h + q * (E_h + E_w) + shortcut

    def compute() -> Tensor:
        return (h * E_w).addcmul_(w, E_h).addcmul_(q, E_h + E_w).add_(shortcut)

    total = last(compute, like=h)
    return _Recombine.apply(h, w, q, E_h, E_w, shortcut, total) if torch.is_grad_enabled() else total


class _Recombine(torch.autograd.Function):
    """The recombination with its result at hand. In fewer passes through memory than operator by operator."""

    @staticmethod
    def forward(ctx, h: Tensor, w: Tensor, q: Tensor, E_h: Tensor, E_w: Tensor, shortcut: Tensor, total: Tensor):
        ctx.save_for_backward(h, w, q, E_h, E_w)
        return total.view_as(total)

    @staticmethod
    def backward(ctx, grad: Tensor):
        h, w, q, E_h, E_w = ctx.saved_tensors
        to_E_h = (w + q).mul_(grad).sum(1, keepdim=True)
        to_E_w = (h + q).mul_(grad).sum(2, keepdim=True)
        return grad * E_w, grad * E_h, grad * (E_h + E_w), to_E_h, to_E_w, grad, None
