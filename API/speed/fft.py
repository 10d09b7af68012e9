"""The FFTs of a filter that keeps every second sample, at half the cost.

Keeping every second of L samples folds the upper half of the spectrum onto the lower one, X[k] + conj X[L/2 - k], so
an inverse FFT of length L/2 gives them. And PyTorch differentiates rfft by a complex FFT of the whole length, where the
adjoint of rfft is irfft, and that of irfft is rfft, once the bins that have a mirror image, and so count twice in
irfft, are halved or doubled. Spectra are pairs of real numbers, as compilers leave complex ones out. docs/speed.md has
the numbers.
"""

from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor, nn


def analyse(x: Tensor) -> Tensor:
    """torch.fft.rfft(x, norm="ortho") as pairs of real numbers: (…, L) -> (…, L // 2 + 1, 2)."""
    scale = scale_outside(x)
    return _RFFT.apply(x if scale is None else x * scale, scale is None)


def synthesise(spectrum: Tensor, n: int) -> Tensor:
    """Every second sample of the inverse of analyse: (…, n // 2 + 1, 2) -> (…, ceil(n / 2))."""
    if n % 2:  # nothing to fold
        return torch.fft.irfft(torch.view_as_complex(spectrum), n=n, norm="ortho")[..., ::2]
    return _EvenSamples.apply(spectrum, n)


def scale_outside(x: Tensor) -> float | None:
    """The factor of an orthonormal FFT that is to be multiplied by before it; None on a CPU, whose FFTs scale on the
    way. cuFFT does not: PyTorch adds a kernel over the spectrum, where this one is fused with its neighbours."""
    return x.shape[-1] ** -0.5 if x.is_cuda else None


class _RFFT(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scaled: bool) -> Tensor:
        ctx.n, ctx.scaled = x.shape[-1], scaled
        return torch.view_as_real(torch.fft.rfft(x, norm="ortho" if scaled else "backward"))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        halved = grad * 0.5
        unmirrored(halved, ctx.n).mul_(2)
        return torch.fft.irfft(torch.view_as_complex(halved), n=ctx.n, norm="ortho" if ctx.scaled else "forward"), None


class _EvenSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spectrum: Tensor, n: int) -> Tensor:
        ctx.n, half, bins = n, n // 2, n // 4 + 1
        folded = (spectrum[..., :bins, :] + conjugate(spectrum[..., half + 1 - bins :, :].flip(-2))).mul_(n**-0.5)
        return torch.fft.irfft(torch.view_as_complex(folded), n=half, norm="forward")

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        lower = torch.view_as_real(torch.fft.rfft(grad))
        upper = conjugate(lower[..., : ctx.n // 2 + 1 - lower.shape[-2], :].flip(-2))
        doubled = torch.cat([lower, upper], -2).mul_(2 * ctx.n**-0.5)
        unmirrored(doubled, ctx.n).mul_(0.5)
        return doubled, None


def conjugate(pairs: Tensor) -> Tensor:
    """pairs (…, 2), made complex conjugates in place."""
    pairs[..., 1].neg_()
    return pairs


def unmirrored(spectrum: Tensor, n: int) -> Tensor:
    """A view of the bins of an rfft of length n, (…, n // 2 + 1, 2), that have no mirror image: the mean, and an even
    n's highest frequency."""
    return spectrum[..., :: n if n % 2 else n // 2, :]


def swap_ffts(model: nn.Module) -> list[str]:
    """Let every module that has functions analyse and synthesise use those above, where they compute the same; returns
    a line about it."""
    found = [m for m in model.modules() if hasattr(m, "analyse") and hasattr(m, "synthesise")]
    known = {pair: same(*pair) for pair in {(m.analyse, m.synthesise) for m in found}}
    swapped = [m for m in found if known[m.analyse, m.synthesise]]
    for module in swapped:
        module.analyse, module.synthesise = analyse, synthesise
    lines = [f"{len(swapped)} filters with FFTs of half the length"] if swapped else []
    if others := len(found) - len(swapped):
        lines.append(f"{others} filters as they are: their analyse and synthesise are not those of API/speed/fft.py")
    return lines


def same(analyse_too: Callable[[Tensor], Tensor], synthesise_too: Callable[[Tensor, int], Tensor]) -> bool:
    """Whether these are plain functions, without parameters, that have the values and gradients of those above, in
    float64, for lengths of all kinds."""
    if not all(isinstance(function, FunctionType) for function in (analyse_too, synthesise_too)):
        return False  # a method may use what its module learns
    numbers = torch.Generator().manual_seed(0)
    for n in (9, 10, 12):
        x, change = (torch.randn(*size, dtype=torch.float64, generator=numbers) for size in ((2, n), (n // 2 + 1, 2)))
        expected = forth_and_back(analyse, synthesise, x, change)
        try:
            learns = synthesise_too(analyse_too(x) * change, n).requires_grad
            found = forth_and_back(analyse_too, synthesise_too, x, change)
        except (TypeError, ValueError, RuntimeError):  # they take other things
            return False
        if learns or not all(a.shape == b.shape and torch.allclose(a, b, atol=1e-10) for a, b in zip(found, expected)):
            return False
    return True


@torch.enable_grad()
def forth_and_back(analyse: Callable, synthesise: Callable, x: Tensor, change: Tensor) -> list[Tensor]:
    """The spectrum of x, the samples that are left of it once change has been multiplied by, and the gradient of their
    squares."""
    x = x.clone().requires_grad_()
    spectrum = analyse(x)
    y = synthesise(spectrum * change, x.shape[-1])
    return [spectrum, y, *torch.autograd.grad(y.square().sum(), x)]
