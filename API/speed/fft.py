"""Real FFTs with backward passes of their own kind.

PyTorch differentiates rfft by a complex FFT of the whole length. But the adjoint of rfft is irfft, and that of irfft is
rfft, once the bins that have a mirror image, and so count twice in irfft, are halved or doubled. A compiled training
step of the Moving MNIST model moves a fifth less on a GPU, counted, not measured; on a CPU it takes 2 % less time.
"""

import torch
from torch import Tensor, nn


def rfft(x: Tensor, norm: str | None = None) -> Tensor:
    """torch.fft.rfft(x, norm=norm), over the last dimension: (…, n) -> (…, n // 2 + 1), complex."""
    if norm != "ortho":
        return torch.fft.rfft(x, norm=norm)
    scale = scale_outside(x, x.shape[-1])
    return _RFFT.apply(x if scale is None else x * scale, scale is None)


def irfft(x: Tensor, n: int, norm: str | None = None) -> Tensor:
    """torch.fft.irfft(x, n=n, norm=norm), over the last dimension: (…, n // 2 + 1), complex -> (…, n)."""
    if norm != "ortho":
        return torch.fft.irfft(x, n=n, norm=norm)
    scale = scale_outside(x, n)
    y = _IRFFT.apply(x, n, scale is None)
    return y if scale is None else y * scale


def scale_outside(x: Tensor, n: int) -> float | None:
    """The factor of an orthonormal FFT that is to be multiplied by on its real side; None on a CPU, whose FFTs scale on
    the way. cuFFT does not: PyTorch adds a kernel over the spectrum, where this one is fused with its neighbours."""
    return n**-0.5 if x.is_cuda else None


class _RFFT(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scaled: bool) -> Tensor:
        ctx.n, ctx.scaled = x.shape[-1], scaled
        return torch.fft.rfft(x, norm="ortho" if scaled else "backward")

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        halved = torch.view_as_real(grad.resolve_conj()).clone()  # compilers leave complex numbers out
        halved[..., 1 : (ctx.n + 1) // 2, :].mul_(0.5)
        norm = "ortho" if ctx.scaled else "forward"
        return torch.fft.irfft(torch.view_as_complex(halved), n=ctx.n, norm=norm), None


class _IRFFT(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, n: int, scaled: bool) -> Tensor:
        ctx.n, ctx.scaled = n, scaled
        return torch.fft.irfft(x, n=n, norm="ortho" if scaled else "forward")

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        spectrum = torch.fft.rfft(grad, norm="ortho" if ctx.scaled else "backward")
        torch.view_as_real(spectrum)[..., 1 : (ctx.n + 1) // 2, :].mul_(2)
        return spectrum, None, None


SWAPPED = {"rfft": rfft, "irfft": irfft}


def swap_ffts(model: nn.Module) -> list[str]:
    """Let every module that has torch.fft.rfft or irfft as its attribute of that name use those above; returns a line
    about it."""
    found = [
        (m, name) for m in model.modules() for name in SWAPPED if getattr(m, name, None) is getattr(torch.fft, name)
    ]
    for module, name in found:
        setattr(module, name, SWAPPED[name])
    return [f"{len(found)} FFTs that are differentiated by FFTs of their kind"] if found else []
