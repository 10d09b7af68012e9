"""The gate of a filter: the high bins of a signal's spectrum that do not clear a threshold are removed.

    forward   X = rfft(x); X[k] = 0 where k >= cutoff and |X[k]| < threshold; y = irfft(X); every second sample of y.
    backward  x gets the exact gradient of that linear map, the gate held fixed. The threshold gets the gradient it
              would have if the gate were g = sigmoid((|X| - threshold) / width): dg / d threshold = -g (1 - g) / width.

In effect all Fourier transforms are orthonormal; their factors are put where they cost nothing. For even L the samples
that would be thrown away are never computed: y[::2] is the inverse FFT of half the length of the folded spectrum
X[k] + conj(X[L/2 - k]). Backward keeps x and takes its spectrum again: no complex tensor is kept.

It is written twice. In complex numbers, where every operator runs by itself; and in real ones for a compiler, which
knows no complex numbers, but makes one kernel of all that lies between two Fourier transforms.
"""

import torch
from torch import Tensor

from .lean import once


def spectral_gate(x: Tensor, threshold: Tensor, cutoff: int, width: float, dtype: torch.dtype) -> Tensor:
    """x (B, N, L), threshold (N,) -> (B, N, ceil(L / 2)), the even samples of the filtered signals.

    cutoff: the first high bin, at least 1: the mean always passes. dtype: of the result, as what reads it takes it.
    """
    if torch.compiler.is_dynamo_compiling():
        return _gate_in_real_numbers(x, threshold, cutoff, width, dtype)
    y, gate = once(lambda: _gate(x, threshold, cutoff, dtype), 2)
    return _Gate.apply(x, threshold, y, gate, cutoff, width) if torch.is_grad_enabled() else y


# In complex numbers --------------------------------------------------------------------------------------------------


class _Gate(torch.autograd.Function):
    """The gate with its results at hand: computed just now, or read off a tape."""

    @staticmethod
    def forward(ctx, x: Tensor, threshold: Tensor, y: Tensor, gate: Tensor, cutoff: int, width: float) -> Tensor:
        ctx.save_for_backward(x, threshold, gate)
        ctx.cutoff, ctx.width = cutoff, width
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad: Tensor):
        learn = ctx.needs_input_grad[1]
        x, threshold = _gate_backward(grad, *ctx.saved_tensors, ctx.cutoff, ctx.width, learn)
        return x, threshold, None, None, None, None


def _gate(x: Tensor, threshold: Tensor, cutoff: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The result, and the gate: where it is open, (B, N, high bins)."""
    length = x.shape[-1]
    spectrum = torch.fft.rfft(x, norm="forward")  # the orthonormal one divided by the root of length
    high = spectrum[..., cutoff:]
    gate = is_open(power_of(high), threshold * length**-0.5)
    high.mul_(gate)  # masked_fill_ would branch at every bin
    return _even_samples(spectrum, length).to(dtype), gate


def _gate_backward(
    grad: Tensor, x: Tensor, threshold: Tensor, gate: Tensor, cutoff: int, width: float, learn: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradients for x, and for threshold if it is to learn."""
    length = x.shape[-1]
    # In weights where every bin counts once; the real signal's gradient has each bin twice but the first and last.
    spectrum_grad = _even_samples_adjoint(grad.to(x.dtype), length)  # the orthonormal one times the root of length
    threshold_grad = None
    if learn:
        high = torch.fft.rfft(x, norm="ortho")[..., cutoff:]
        soft = torch.sigmoid((power_of(high).sqrt_() - threshold.unsqueeze(-1)).div_(width))
        through_gate = _inner(spectrum_grad[..., cutoff:], high).mul_(soft).mul_(soft.sub_(1))
        if length % 2 == 0 and through_gate.shape[-1]:
            through_gate[..., -1] *= 0.5  # the Nyquist bin has no mirror image
        threshold_grad = through_gate.sum((0, -1)) * (2 / width * length**-0.5)
    spectrum_grad[..., cutoff:].mul_(gate)
    return torch.fft.irfft(spectrum_grad, n=length), threshold_grad


def is_open(power: Tensor, threshold: Tensor) -> Tensor:
    """Where the gate is open: |X|^2 of high bins (B, N, K) against thresholds (N,)."""
    return power >= threshold.clamp(min=0).square().unsqueeze(-1)


def power_of(spectrum: Tensor) -> Tensor:
    """|X|^2 without the square root of abs()."""
    return _inner(spectrum, spectrum)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Re(conj(a) b), bin by bin; on a CPU four times as fast as a sum over view_as_real."""
    return a.conj_physical().mul_(b).real


def _even_samples(spectrum: Tensor, length: int) -> Tensor:
    """(…, L // 2 + 1) half spectrum of a real signal, divided by L -> (…, ceil(L / 2)) the signal's even samples."""
    if length % 2:
        return torch.fft.irfft(spectrum, n=length, norm="forward")[..., ::2].contiguous()
    half = length // 2
    front = spectrum[..., : half // 2 + 1]
    back = spectrum[..., half - half // 2 :].flip(-1).conj_physical_()  # bins half, half - 1, …
    return torch.fft.irfft(back.add_(front), n=half, norm="forward")


def _even_samples_adjoint(grad: Tensor, length: int) -> Tensor:
    """The spectrum, unnormalised, of grad with a zero between any two samples: (…, ceil(L / 2)) -> (…, L // 2 + 1)."""
    if length % 2:
        spread = grad.new_zeros(*grad.shape[:-1], length)
        spread[..., ::2] = grad
        return torch.fft.rfft(spread)
    half = length // 2
    spectrum = torch.fft.rfft(grad)
    mirrored = spectrum[..., : half - half // 2].flip(-1).conj_physical_()  # bins half // 2 + 1 … half
    return torch.cat([spectrum, mirrored], -1)


# In real numbers, for a compiler -------------------------------------------------------------------------------------


def _gate_in_real_numbers(x: Tensor, threshold: Tensor, cutoff: int, width: float, dtype: torch.dtype) -> Tensor:
    """The same out of operators whose gradients PyTorch knows."""
    length = x.shape[-1]
    scale = length**-0.5
    spectrum = rfft(x) * scale  # (B, N, K, 2)
    # Number by number, so that backward is one kernel: what is common to the two numbers of a bin is computed twice,
    # and a threshold's gradient is summed sequence by sequence, then over all.
    squares = spectrum.detach().square()
    power = (squares + squares.flip(-1)).flatten(-2)  # (B, N, 2 K)
    threshold = threshold.expand(len(x), -1)
    gate = is_open(power, threshold).to(x.dtype)
    if threshold.requires_grad and torch.is_grad_enabled():
        soft = torch.sigmoid((power.sqrt() - threshold.unsqueeze(-1)) / width)
        gate = gate + (soft - soft.detach())  # the value of the hard gate, the slope of the soft one
    low = torch.arange(power.shape[-1], device=x.device) < 2 * cutoff
    spectrum = spectrum * torch.where(low, 1.0, gate).view_as(spectrum)
    if length % 2:
        return irfft(spectrum * scale, length, dtype)[..., ::2]
    half = length // 2
    conjugate = 1 - 2 * torch.arange(2, device=x.device)  # 1, -1
    back = spectrum[..., half - half // 2 :, :].flip(-2) * conjugate
    return irfft((spectrum[..., : half // 2 + 1, :] + back) * scale, half, dtype)


# Neither transform is normalised: on a GPU that is a pass of its own through memory, while a factor before or after is
# no work for a compiler.
@torch.library.custom_op("dfdnet::rfft", mutates_args=())
def rfft(x: Tensor) -> Tensor:
    """The spectrum of real signals in real numbers: (…, L) -> (…, L // 2 + 1, 2), real and imaginary parts.

    One operator to PyTorch, so that a compiler leaves it whole.
    """
    return torch.view_as_real(torch.fft.rfft(x.contiguous()))


@rfft.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2 + 1, 2)


@torch.library.custom_op("dfdnet::irfft", mutates_args=())
def irfft(spectrum: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """Its inverse times length: (…, length // 2 + 1, 2) -> (…, length), rounded to dtype."""
    return torch.fft.irfft(torch.view_as_complex(spectrum.contiguous()), n=length, norm="forward").to(dtype)


@irfft.register_fake
def _(spectrum: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    return spectrum.new_empty(*spectrum.shape[:-2], length, dtype=dtype)


def _bins_of_each(length: int, device: torch.device) -> Tensor:
    """(length // 2 + 1, 1): 2 for bins that stand for their mirror image too, 1 for the first and an even last one."""
    k = torch.arange(length // 2 + 1, device=device)
    return torch.where((k == 0) | (2 * k == length), 1, 2).unsqueeze(-1)


def _note_length(ctx, inputs: tuple, output: Tensor) -> None:
    ctx.length = inputs[0].shape[-1]


def _rfft_backward(ctx, grad: Tensor) -> Tensor:
    return irfft(grad / _bins_of_each(ctx.length, grad.device), ctx.length, grad.dtype)


def _note_precision(ctx, inputs: tuple, output: Tensor) -> None:
    spectrum, ctx.length, _ = inputs
    ctx.dtype = spectrum.dtype


def _irfft_backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
    return rfft(grad.to(ctx.dtype)) * _bins_of_each(ctx.length, grad.device), None, None


rfft.register_autograd(_rfft_backward, setup_context=_note_length)
irfft.register_autograd(_irfft_backward, setup_context=_note_precision)
