"""DFDU and the loss a second time: slow, straight from the formulas of the paper, sharing no code with the product.

Discrete Fourier transforms are sums over an explicit matrix; signals are picked by loops.
"""

import math

import torch


def dft_matrix(n: int) -> torch.Tensor:
    """exp(-2 pi i j k / n) / sqrt(n), orthonormal."""
    k = torch.arange(n, dtype=torch.float64)
    angle = -2 * math.pi * k[:, None] * k / n
    return torch.complex(angle.cos(), angle.sin()) / math.sqrt(n)


def filter_signal(signal: torch.Tensor, alpha: torch.Tensor, COF: float) -> torch.Tensor:
    """(L,) -> every second sample of the filtered signal. All L bins, the upper half mirroring the lower."""
    L = len(signal)
    spectrum = dft_matrix(L) @ signal.to(torch.complex128)
    cutoff = math.floor(COF * L + 1)
    frequency = [min(k, L - k) for k in range(L)]
    gate = torch.tensor([1.0 if f < cutoff or abs(spectrum[k]) >= alpha else 0.0 for k, f in enumerate(frequency)])
    return (dft_matrix(L).conj() @ (spectrum * gate)).real[::2]


def surrogate_alpha_gradient(signal, alpha, COF, width, grad) -> float:
    """d loss / d alpha for grad = d loss / d filtered signal, the gate's derivative being that of a sigmoid."""
    L = len(signal)
    spectrum = dft_matrix(L) @ signal.to(torch.complex128)
    cutoff = math.floor(COF * L + 1)
    total = 0.0
    for k in range(L):
        if min(k, L - k) < cutoff:
            continue
        g = 1 / (1 + math.exp(-(abs(spectrum[k]).item() - alpha) / width))
        component = (dft_matrix(L).conj()[:, k] * spectrum[k]).real[::2]  # what bin k adds to the filtered signal
        total += (component * grad).sum().item() * -g * (1 - g) / width
    return total


def dfdu(x: torch.Tensor, unit, COF: float) -> torch.Tensor:
    """(B, H, W, c) -> (B, H, W, c), with the weights of `unit`, a TemporalModule.DFDU."""
    B, H, W, c = x.shape
    r = unit.filter_h.threshold.shape[0]
    S = c // r
    h, w = torch.zeros_like(x), torch.zeros_like(x)
    for b in range(B):
        for segment in range(r):
            channels = slice(segment * S, (segment + 1) * S)
            for column in range(W):
                signal = torch.cat([x[b, row, column, channels] for row in range(H)])
                kept = filter_signal(signal, unit.filter_h.threshold[segment, column], COF)
                h[b, :, column, channels] = (signal + unit.predict_h.weight @ kept).reshape(H, S)
            for row in range(H):
                signal = torch.cat([x[b, row, column, channels] for column in range(W)])
                kept = filter_signal(signal, unit.filter_w.threshold[segment, row], COF)
                w[b, row, :, channels] = (signal + unit.predict_w.weight @ kept).reshape(W, S)
    q = x @ unit.embed_x.weight.T
    E_h = (h.sum(1, keepdim=True) / H) @ unit.embed_h.weight.T
    E_w = (w.sum(2, keepdim=True) / W) @ unit.embed_w.weight.T
    return h * E_w + w * E_h + q * (E_h + E_w)


def weighted_frequency_loss(prediction: torch.Tensor, target: torch.Tensor, release: bool = False) -> torch.Tensor:
    """(B, T, C, H, W) twice -> a scalar; full spectra, weight by weight."""
    B, T, C, H, W = prediction.shape
    total = 0.0
    for b in range(B):
        error = (prediction[b] - target[b]).to(torch.complex128)  # (T, C, H, W)
        axes = {"h": H, "w": W}
        spectrum = error
        for axis in ("t", "h", "w") if not release else ("c", "h", "w") if C > 1 else ("h", "w"):
            n = {"t": T, "c": C, **axes}[axis]
            matrix = dft_matrix(n) * math.sqrt(n)
            position = ["t", "c", "h", "w"].index(axis)
            spectrum = torch.tensordot(spectrum, matrix, dims=([position], [0])).movedim(-1, position)
        for t in range(T):
            for i in range(H):
                for j in range(W):
                    centre = ((t - T // 2) / 8) ** 2 + ((i - H // 2) / 12) ** 2 + ((j - W // 2) / 12) ** 2
                    total = total + (1.5 - math.exp(-centre / 2)) * (spectrum[t, :, i, j].abs() ** 2).sum()
    return total / prediction.numel()
