"""MSE, MAE, SSIM and PSNR of predicted frames, per sequence and frame, under named protocols.

Published tables of this field differ in convention, so a number needs its protocol (SPEC section 8):

    strict    SSIM with data_range 1, PSNR in floating point; both equal scikit-image
    openstl   SSIM with data_range 2, what scikit-image once assumed for floats
    release   as openstl, PSNR on uint8 whose difference and square wrap around at 256

MSE and MAE are sums over C, H, W of a frame. Predictions are clipped to [0, 1] for SSIM and PSNR, not for MSE and MAE.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

PROTOCOLS = ("strict", "openstl", "release")
METRICS = ("mse", "mae", "ssim", "psnr")
HIGHER_IS_BETTER = {"ssim", "psnr"}
PSNR_CEILING = 100.0  # dB, for equal frames, whose PSNR is infinite


def frame_metrics(predicted: Tensor, future: Tensor, protocol: str = "strict") -> dict[str, Tensor]:
    """predicted, future (B, T, C, H, W) -> {metric: (B, T)}, on their device, in float32."""
    predicted, future = predicted.float(), future.float()
    error = predicted - future
    clipped = predicted.clamp(0, 1)
    return {
        "mse": error.square().sum((2, 3, 4)),
        "mae": error.abs().sum((2, 3, 4)),
        "ssim": ssim(clipped, future, data_range=1.0 if protocol == "strict" else 2.0),
        "psnr": wrapped_psnr(clipped, future) if protocol == "release" else psnr(clipped, future),
    }


def psnr(predicted: Tensor, future: Tensor) -> Tensor:
    """-10 log10 of the mean squared error of a frame, in dB: (B, T, C, H, W) in [0, 1] -> (B, T)."""
    return (-10 * (predicted - future).square().mean((2, 3, 4)).log10()).clamp(max=PSNR_CEILING)


def wrapped_psnr(predicted: Tensor, future: Tensor) -> Tensor:
    """PSNR as the authors' code has it: in uint8, where 20 - 30 is 246 and 17 * 17 is 33. Inflated, by up to 9 dB."""
    difference = (predicted * 255).to(torch.uint8) - (future * 255).to(torch.uint8)  # modulo 256, as is the square
    mse = (difference * difference).float().mean((2, 3, 4))
    return (20 * torch.log10(torch.tensor(255.0)) - 10 * mse.log10()).clamp(max=PSNR_CEILING)


def ssim(predicted: Tensor, future: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity, 7x7 uniform window, sample covariance, averaged over all whole windows and channels.

    (B, T, C, H, W) -> (B, T). Equals skimage.metrics.structural_similarity(..., channel_axis=0) frame by frame.
    Raises ValueError for frames smaller than the window. Source: Wang et al., IEEE TIP 13(4), 2004.
    """
    window = 7
    B, T, C, H, W = predicted.shape
    if min(H, W) < window:
        raise ValueError(f"SSIM needs frames of at least {window}x{window}, not {H}x{W}")

    def mean(x: Tensor) -> Tensor:  # one axis after the other: 14 additions a window instead of 49
        return F.avg_pool2d(F.avg_pool2d(x, (window, 1), 1), (1, window), 1)

    x, y = predicted.reshape(B * T, C, H, W), future.reshape(B * T, C, H, W)
    mean_x, mean_y = mean(x), mean(y)
    sample = window**2 / (window**2 - 1)
    variances = sample * (mean(x * x + y * y) - mean_x * mean_x - mean_y * mean_y)
    covariance = sample * (mean(x * y) - mean_x * mean_y)
    C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + C1) / (mean_x * mean_x + mean_y * mean_y + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return (luminance * structure).mean((1, 2, 3)).view(B, T)


class Scores:
    """Collects the metrics of many sequences: batches of any size in, means and their errors out.

    Keeps a few numbers a sequence and frame, on the device, no frames; nothing waits for the device before `summary`.
    """

    def __init__(self, protocol: str = "strict") -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"--protocol {protocol}: unknown, choose from {', '.join(PROTOCOLS)}")
        self.protocol = protocol
        self.batches: dict[str, list[Tensor]] = {metric: [] for metric in METRICS}

    def update(self, predicted: Tensor, future: Tensor) -> None:
        """Add a batch: predicted, future (B, T, C, H, W)."""
        for metric, values in frame_metrics(predicted, future, self.protocol).items():
            self.batches[metric].append(values)

    def values(self) -> dict[str, Tensor]:
        """{metric: (N, T)} float64 on the CPU, in the order in which the sequences came."""
        return {metric: torch.cat(batches).double().cpu() for metric, batches in self.batches.items()}

    def summary(self) -> dict[str, dict]:
        """{metric: {"mean", "standard_error" (of the mean, over sequences), "per_frame": [T]}}, JSON-ready."""
        out = {}
        for metric, values in self.values().items():
            sequences = values.mean(1)
            error = sequences.std() / len(sequences) ** 0.5 if len(sequences) > 1 else torch.zeros(())
            out[metric] = {
                "mean": sequences.mean().item(),
                "standard_error": error.item(),
                "per_frame": values.mean(0).tolist(),
            }
        return out
