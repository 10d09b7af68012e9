"""DFDU, the unit the paper is named after: decompose the features into height and width signals, filter their
spectra with a learnable threshold, predict with a linear layer, and recombine.

Signals, for c = r * S channels cut into r segments of S (SPEC letters: B batch, H W feature map):

    height   one signal per segment and column:   (B, H, W, c) -> (B, r*W, H*S)    thresholds (r, W)
    width    one signal per segment and row:      (B, H, W, c) -> (B, r*H, W*S)    thresholds (r, H)
"""

import math

import torch
from torch import Tensor, nn

from .lean import Linear, once

# Where learning starts. The threshold lives on the scale of layer-normalised features: in the orthonormal FFT the
# magnitude of a bin of unit-variance noise is Rayleigh, so alpha removes 1 - exp(-alpha^2) of the bins: 8.6 % at 0.3.
# That is active (there is something to learn from) and mild (the signal energy lost is under half a percent).
START = 0.3
# Width of the sigmoid that stands for the gate in the backward pass: bins within about two widths of the threshold
# teach it. Of the order of the start value, so that the bins both sides of it take part and none far away does.
WIDTH = 0.1


@torch.library.custom_op("dfdnet::spectral_gate", mutates_args=())
def spectral_gate(x: Tensor, threshold: Tensor, cutoff: int, width: float) -> tuple[Tensor, Tensor]:
    """The hard gate, the inverse FFT and the halving in one step, with a surrogate gradient for the thresholds.

    forward   X = rfft(x); X[k] = 0 where k >= cutoff and |X[k]| < threshold; y = irfft(X); every second sample of y.
    backward  x gets the exact gradient of that linear map, the gate held fixed. The threshold gets the gradient it
              would have if the gate were g = sigmoid((|X| - threshold) / width): dg / d threshold = -g (1 - g) / width.

    x (B, N, L), threshold (N,) -> (B, N, ceil(L / 2)), and the gate: (B, N, high bins), True where closed. For even L
    the samples that would be thrown away are never computed: y[::2] is the inverse FFT of half the length of the folded
    spectrum X[k] + conj(X[L/2 - k]). Backward keeps the gate and x, and takes x's spectrum again: no complex tensor.

    One operator to PyTorch, so that a compiler, which knows no complex numbers, leaves it whole.
    """
    return _gate(x, threshold, cutoff)


@spectral_gate.register_fake
def _(x: Tensor, threshold: Tensor, cutoff: int, width: float) -> tuple[Tensor, Tensor]:
    L = x.shape[-1]
    return x.new_empty(*x.shape[:-1], (L + 1) // 2), x.new_empty(*x.shape[:-1], L // 2 + 1 - cutoff, dtype=torch.bool)


def _gate_backward(
    grad: Tensor, x: Tensor, threshold: Tensor, closed: Tensor, cutoff: int, width: float, learn: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of spectral_gate for x and threshold; the latter zero unless it is to learn."""
    length = x.shape[-1]
    # In weights where every bin counts once; the real signal's gradient has each bin twice but the first and last.
    spectrum_grad = _even_samples_adjoint(grad, length)
    threshold_grad = torch.zeros_like(threshold)
    if learn:
        high = torch.fft.rfft(x, norm="ortho")[..., cutoff:]
        soft = torch.sigmoid((_power(high).sqrt_() - threshold.unsqueeze(-1)).div_(width))
        through_gate = _inner(spectrum_grad[..., cutoff:], high).mul_(soft).mul_(soft.sub_(1))
        if length % 2 == 0 and through_gate.shape[-1]:
            through_gate[..., -1] *= 0.5  # the Nyquist bin has no mirror image
        threshold_grad = through_gate.sum((0, -1)) * (2 / width)
    spectrum_grad[..., cutoff:].masked_fill_(closed, 0)
    return torch.fft.irfft(spectrum_grad, n=length, norm="ortho"), threshold_grad


spectral_gate_backward = torch.library.custom_op("dfdnet::spectral_gate_backward", mutates_args=())(_gate_backward)


@spectral_gate_backward.register_fake
def _(grad, x, threshold, closed, cutoff, width, learn):
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(threshold)


def _keep_for_backward(ctx, inputs, output) -> None:
    x, threshold, ctx.cutoff, ctx.width = inputs
    ctx.save_for_backward(x, threshold, output[1])
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx, grad: Tensor, _) -> tuple[Tensor, Tensor | None, None, None]:
    learn = ctx.needs_input_grad[1]
    x, threshold = spectral_gate_backward(grad, *ctx.saved_tensors, ctx.cutoff, ctx.width, learn)
    return x, threshold if learn else None, None, None


spectral_gate.register_autograd(_gradients, setup_context=_keep_for_backward)


class _Gate(torch.autograd.Function):
    """spectral_gate where nothing compiles, with its results at hand: computed just now, or read off a tape."""

    @staticmethod
    def forward(ctx, x: Tensor, threshold: Tensor, y: Tensor, closed: Tensor, cutoff: int, width: float) -> Tensor:
        ctx.save_for_backward(x, threshold, closed)
        ctx.cutoff, ctx.width = cutoff, width
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor):
        learn = ctx.needs_input_grad[1]
        x, threshold = _gate_backward(grad, *ctx.saved_tensors, ctx.cutoff, ctx.width, learn)
        return x, threshold if learn else None, None, None, None, None


def _gate(x: Tensor, threshold: Tensor, cutoff: int) -> tuple[Tensor, Tensor]:
    """spectral_gate in PyTorch's own operators; all there is to it in inference, and in files for other programs."""
    spectrum = torch.fft.rfft(x, norm="ortho")
    high = spectrum[..., cutoff:]
    closed = _closed(high, threshold)
    high.masked_fill_(closed, 0)
    return _even_samples(spectrum, x.shape[-1]), closed


def _closed(high: Tensor, threshold: Tensor) -> Tensor:
    """Where the gate is closed: high bins (B, N, K) against thresholds (N,)."""
    return _power(high) < threshold.clamp(min=0).square().unsqueeze(-1)


def _power(spectrum: Tensor) -> Tensor:
    """|X|^2 without the square root of abs()."""
    return _inner(spectrum, spectrum)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Re(conj(a) b), bin by bin; on a CPU four times as fast as a sum over view_as_real."""
    return a.conj_physical().mul_(b).real


def _even_samples(spectrum: Tensor, length: int) -> Tensor:
    """(…, L // 2 + 1) half spectrum of a real signal -> (…, ceil(L / 2)) its even samples."""
    if length % 2:
        return torch.fft.irfft(spectrum, n=length, norm="ortho")[..., ::2].contiguous()
    half = length // 2
    # conj_physical: inside a custom operator that a dispatch mode calls, a lazy conj() is lost.
    front = spectrum[..., : half // 2 + 1]
    back = spectrum[..., half - half // 2 :].flip(-1).conj_physical_()  # bins half, half - 1, …
    return torch.fft.irfft((front + back).mul_(math.sqrt(0.5)), n=half, norm="ortho")


def _even_samples_adjoint(grad: Tensor, length: int) -> Tensor:
    """The transpose of _even_samples after rfft: the spectrum of grad with a zero between any two samples."""
    if length % 2:
        spread = grad.new_zeros(*grad.shape[:-1], length)
        spread[..., ::2] = grad
        return torch.fft.rfft(spread, norm="ortho")
    half = length // 2
    spectrum = torch.fft.rfft(grad, norm="ortho").mul_(math.sqrt(0.5))
    mirrored = spectrum[..., : half - half // 2].flip(-1).conj_physical_()  # bins half // 2 + 1 … half
    return torch.cat([spectrum, mirrored], -1)


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
        with torch.autocast(x.device.type, enabled=False):  # there is no bfloat16 FFT
            x = x if x.dtype == torch.float64 else x.float()
            if self.watch is not None:
                self.watch.append(self.removed(x))
            threshold = self.threshold.flatten().to(x.dtype)
            if torch.compiler.is_dynamo_compiling():
                return spectral_gate(x, threshold, self.cutoff, WIDTH)[0]
            y, closed = once(lambda: _gate(x, threshold, self.cutoff), 2)
            return _Gate.apply(x, threshold, y, closed, self.cutoff, WIDTH)

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
        closed = power < self.threshold.flatten().clamp(min=0).square().unsqueeze(-1)
        gate = (low | ~closed).to(x.dtype)
        return (gate * real) @ from_real + (gate * imaginary) @ from_imaginary

    @torch.no_grad()
    def removed(self, x: Tensor) -> Tensor:
        """Fraction of the high-frequency bins of x (B, N, L) that the gate closes; a scalar on x's device."""
        high = torch.fft.rfft(x, norm="ortho")[..., self.cutoff :]
        closed = _closed(high, self.threshold.flatten())
        return closed.float().mean() if closed.numel() else closed.new_zeros((), dtype=torch.float32)

    def extra_repr(self) -> str:
        bins = self.length // 2 + 1
        return f"signals={tuple(self.threshold.shape)}, length={self.length}, low={self.cutoff} of {bins} bins"


class DFDU(nn.Module):
    """Disentangle the dynamics along height and width, filter them, predict, and recombine.

    x (B, H, W, c) -> (B, H, W, c); c must divide by segments. Paper: the right of Figure 1.
    """

    def __init__(
        self, channels: int, height: int, width: int, segments: int, COF: float, release: bool = False
    ) -> None:
        super().__init__()
        self.segments, self.depth = segments, channels // segments  # r, S
        length_h, length_w = height * self.depth, width * self.depth
        self.filter_h = ThresholdFilter(segments, width, length_h, COF, release)
        self.filter_w = ThresholdFilter(segments, height, length_w, COF, release)
        self.predict_h = Linear((length_h + 1) // 2, length_h, bias=False)
        self.predict_w = Linear((length_w + 1) // 2, length_w, bias=False)
        self.embed_h = Linear(channels, channels, bias=False)
        self.embed_w = Linear(channels, channels, bias=False)
        self.embed_x = Linear(channels, channels, bias=False)

    def decompose_h(self, x: Tensor) -> Tensor:
        """(B, H, W, r*S) -> (B, r*W, H*S): a signal runs down one column, S channels at each row."""
        return x.unflatten(-1, (self.segments, -1)).permute(0, 3, 2, 1, 4).flatten(3).flatten(1, 2)

    def decompose_w(self, x: Tensor) -> Tensor:
        """(B, H, W, r*S) -> (B, r*H, W*S): a signal runs along one row."""
        return x.unflatten(-1, (self.segments, -1)).permute(0, 3, 1, 2, 4).flatten(3).flatten(1, 2)

    def compose_h(self, signals: Tensor) -> Tensor:
        """(B, r*W, H*S) -> (B, H, W, r*S), the inverse of decompose_h."""
        planes = signals.unflatten(1, (self.segments, -1)).unflatten(-1, (-1, self.depth))  # (B, r, W, H, S)
        return planes.permute(0, 3, 2, 1, 4).flatten(3)

    def compose_w(self, signals: Tensor) -> Tensor:
        """(B, r*H, W*S) -> (B, H, W, r*S), the inverse of decompose_w."""
        planes = signals.unflatten(1, (self.segments, -1)).unflatten(-1, (-1, self.depth))  # (B, r, H, W, S)
        return planes.permute(0, 2, 3, 1, 4).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        # Each signal gets its prediction added, where it lies in x. (B, H, W, c)
        h = x + self.compose_h(self.predict_h(self.filter_h(self.decompose_h(x))))
        w = x + self.compose_w(self.predict_w(self.filter_w(self.decompose_w(x))))
        E_h = self.embed_h(h.mean(1, keepdim=True))  # (B, 1, W, c)
        E_w = self.embed_w(w.mean(2, keepdim=True))  # (B, H, 1, c)
        return h * E_w + w * E_h + self.embed_x(x) * (E_h + E_w)
