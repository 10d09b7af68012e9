"""MSE, MAE, SSIM, PSNR and LPIPS of predicted frames, per sequence and frame, under named protocols.

Published tables of this field differ in convention, so a number needs its protocol:

    strict    SSIM with data_range 1, PSNR in floating point; both equal scikit-image
    openstl   SSIM with data_range 2, what scikit-image once assumed for floats
    release   as openstl, PSNR on uint8 whose difference and square wrap around at 256; no LPIPS

    physical  MSE, MAE and RMSE of the values that [0, 1] stands for, of data sets that have a scale

MSE and MAE are sums over C, H, W of a frame, RMSE is that of an element. Predictions are clipped to [0, 1] for SSIM,
PSNR and LPIPS, not for the others.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from .. import UserError
from ..clips.scale import Scale

# metric -> the measurement that it is under a protocol
PROTOCOLS = {
    "strict": {"mse": "mse", "mae": "mae", "ssim": "ssim", "psnr": "psnr", "lpips": "lpips"},
    "openstl": {"mse": "mse", "mae": "mae", "ssim": "ssim_range_2", "psnr": "psnr", "lpips": "lpips"},
    "release": {"mse": "mse", "mae": "mae", "ssim": "ssim_range_2", "psnr": "psnr_wrapped"},
    "physical": {"mse": "physical_mse", "mae": "physical_mae", "rmse": "physical_rmse"},
}
HIGHER_IS_BETTER = {"ssim", "psnr"}
PSNR_CEILING = 100.0  # dB, for equal frames, whose PSNR is infinite
WINDOW = 7  # of SSIM, pixels a side
CHUNK = 2**18  # pixels measured at once: what stays in a processor's cache
CHUNK_CUDA = 2**24


def metrics_of(protocol: str, measured: Iterable[str]) -> dict[str, str]:
    """{metric: measurement} of a protocol, as far as it was measured; of physical values the RMSE of channels, too."""
    measured = list(measured)
    named = {metric: name for metric, name in PROTOCOLS[protocol].items() if name in measured}
    channels = [name for name in measured if name.startswith("physical_rmse_")] if protocol == "physical" else []
    return named | {name.removeprefix("physical_"): name for name in channels}


def measure(
    predicted: Tensor,
    future: Tensor,
    measurements: Sequence[str],
    lpips: Callable | None = None,
    scale: Scale | None = None,
) -> dict:
    """predicted, future (B, T, C, H, W) -> {measurement: (B, T)}, on their device, in float32."""
    B, T = future.shape[:2]
    frames = [x.float().flatten(0, 1) for x in (predicted, future)]  # (B*T, C, H, W)
    step = max(1, (CHUNK_CUDA if future.is_cuda else CHUNK) // frames[0][0].numel())
    parts = [_measure(*pair, measurements, lpips, scale) for pair in zip(*(x.split(step) for x in frames))]
    return {name: torch.cat([part[name] for part in parts]).view(B, T) for name in measurements}


def _measure(
    predicted: Tensor, future: Tensor, measurements: Sequence[str], lpips: Callable | None, scale: Scale | None
) -> dict:
    """(N, C, H, W) -> {measurement: (N)}."""
    error = predicted - future
    clipped = predicted.clamp(0, 1)
    out = {}
    if "mse" in measurements:
        out["mse"] = error.square().sum((1, 2, 3))
    if "mae" in measurements:
        out["mae"] = error.abs().sum((1, 2, 3))
    if "psnr" in measurements:
        out["psnr"] = psnr(clipped, future)
    if "psnr_wrapped" in measurements:
        out["psnr_wrapped"] = wrapped_psnr(clipped, future)
    ranges = {name: r for name, r in {"ssim": 1.0, "ssim_range_2": 2.0}.items() if name in measurements}
    if ranges:
        out |= dict(zip(ranges, ssim(clipped, future, tuple(ranges.values()))))
    if "lpips" in measurements:
        out["lpips"] = lpips(clipped, future)
    if "physical_mse" in measurements:
        out |= physical(error, scale)
    return out


def physical(error: Tensor, scale: Scale) -> dict:
    """Errors (N, C, H, W) in [0, 1] -> those of the values, {"physical_mse", …: (N)}; where there are several channels,
    whose units may differ, the RMSE of each, too."""
    spans = torch.tensor(scale.spans, dtype=error.dtype).to(error.device, non_blocking=True)
    squares = error.square().mean((2, 3)) * spans.square()  # (N, C)
    pixels = error[0, 0].numel()
    out = {"physical_mse": pixels * squares.sum(1), "physical_rmse": squares.mean(1).sqrt()}
    out["physical_mae"] = pixels * (error.abs().mean((2, 3)) * spans).sum(1)
    return out | dict(zip(rmse_of_channels(scale), squares.sqrt().unbind(1)))


def rmse_of_channels(scale: Scale) -> list[str]:
    """The measurements of each predicted channel, named after its number in the past; none for one alone."""
    return [f"physical_rmse_{channel}" for channel in scale.targets] if len(scale.targets) > 1 else []


def psnr(predicted: Tensor, future: Tensor) -> Tensor:
    """-10 log10 of the mean squared error of a frame, in dB: (N, C, H, W) in [0, 1] -> (N)."""
    return (-10 * (predicted - future).square().mean((1, 2, 3)).log10()).clamp(max=PSNR_CEILING)


def wrapped_psnr(predicted: Tensor, future: Tensor) -> Tensor:
    """PSNR as the authors' code has it: in uint8, where 20 - 30 is 246 and 17 * 17 is 33. So no frame scores below
    24 dB."""
    difference = (predicted * 255).to(torch.uint8) - (future * 255).to(torch.uint8)  # modulo 256, as is the square
    mse = (difference * difference).float().mean((1, 2, 3))
    return (-10 * (mse / 255**2).log10()).clamp(max=PSNR_CEILING)


def ssim(predicted: Tensor, future: Tensor, data_ranges: Sequence[float] = (1.0,)) -> list[Tensor]:
    """Structural similarity, 7x7 uniform window, sample covariance, averaged over all whole windows and channels.

    (N, C, H, W) -> [(N)], one for each data range. Equals skimage.metrics.structural_similarity(..., channel_axis=0)
    frame by frame. Raises UserError for frames smaller than the window. Source: Wang et al., IEEE TIP 13(4), 2004.
    """
    N, C, H, W = predicted.shape
    check_frame(H, W)
    sides = H - WINDOW + 1, W - WINDOW + 1
    x, y = predicted, future
    maps = torch.stack([x, y, x * x + y * y, x * y]).flatten(0, 2)  # (4*N*C, H, W)
    mean_x, mean_y, squares, product = _window_means(maps).view(4, N, C, *sides)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    both = mean_x * mean_y
    means_squared = mean_x.square() + mean_y.square()
    variances, covariance = sample * (squares - means_squared), sample * (product - both)
    out = []
    for data_range in data_ranges:
        C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
        similarity = (2 * both + C1) / (means_squared + C1) * ((2 * covariance + C2) / (variances + C2))
        out.append(similarity.mean((1, 2, 3)))
    return out


def check_frame(H: int, W: int) -> None:
    """Raise UserError for frames that are smaller than the window of SSIM."""
    if min(H, W) < WINDOW:
        raise UserError(f"SSIM needs frames of at least {WINDOW}x{WINDOW}, not {H}x{W}")


def _window_means(maps: Tensor) -> Tensor:
    """(M, H, W) -> (M, H - 6, W - 6), means over windows: sums along one axis, then the other.

    Seven terms in four additions: pairs, pairs of pairs, then 4 + 2 + 1.
    """
    for axis in (-1, -2):
        n = maps.shape[axis]
        two = maps.narrow(axis, 0, n - 1) + maps.narrow(axis, 1, n - 1)
        four = two.narrow(axis, 0, n - 3) + two.narrow(axis, 2, n - 3)
        maps = four.narrow(axis, 0, n - 6) + two.narrow(axis, 4, n - 6) + maps.narrow(axis, 6, n - 6)
    return maps / WINDOW**2


class Kept:
    """Batches of rows in one tensor that doubles when it is full.

    A tensor for each batch would stay between the large ones of every step and keep their memory from being reused.
    """

    def __init__(self) -> None:
        self.rows, self.count = None, 0

    def add(self, batch: Tensor) -> None:
        """Append (B, ...)."""
        end = self.count + len(batch)
        if self.rows is None or len(self.rows) < end:
            grown = batch.new_empty(2 * end, *batch.shape[1:])
            if self.rows is not None:
                grown[: self.count] = self.all()
            self.rows = grown
        self.rows[self.count : end] = batch
        self.count = end

    def all(self) -> Tensor:
        """All rows so far: (N, ...)."""
        return self.rows[: self.count]


class Scores:
    """Collects the metrics of many sequences: batches of any size in, means and their errors out.

    Keeps a few numbers a sequence and frame, on the device, no frames. Nothing waits for the device before `values`.
    lpips: a function (N, C, H, W) twice -> (N), for the metric of that name; without it LPIPS is left out. scale: of
    the frames, for the protocol physical; without it that one is empty.
    """

    def __init__(
        self, protocols: Sequence[str] = ("strict",), lpips: Callable | None = None, scale: Scale | None = None
    ) -> None:
        unknown = [protocol for protocol in protocols if protocol not in PROTOCOLS]
        if unknown:
            raise UserError(f"--protocol {unknown[0]}: unknown, choose from {', '.join(PROTOCOLS)}")
        self.lpips, self.scale = lpips, scale
        given = {"lpips": lpips, "physical": scale}  # what measurements of that kind take
        known = [m for name in protocols for m in PROTOCOLS[name].values() if given.get(m.partition("_")[0], True)]
        known += rmse_of_channels(scale) if scale else []
        self.protocols = {name: metrics_of(name, known) for name in protocols}
        self.measurements = tuple(dict.fromkeys(m for metrics in self.protocols.values() for m in metrics.values()))
        self.kept = {name: Kept() for name in self.measurements}

    def update(self, predicted: Tensor, future: Tensor) -> None:
        """Add a batch: predicted, future (B, T, C, H, W)."""
        for name, values in measure(predicted, future, self.measurements, self.lpips, self.scale).items():
            self.kept[name].add(values)

    def values(self) -> dict[str, Tensor]:
        """{measurement: (N, T)} float64 on the CPU, in the order in which the sequences came."""
        return {name: kept.all().cpu().double() for name, kept in self.kept.items()}

    def summary(self, join: Callable[[dict], dict] = dict) -> dict[str, dict[str, dict]]:
        """{protocol: {metric: {"mean", "standard_error", "per_frame", "worst"}}}, JSON-ready.

        join: puts the values of many processes together, where each has scored its share.
        """
        measured = {name: describe(name, values) for name, values in join(self.values()).items()}
        return {
            protocol: {metric: measured[name] for metric, name in metrics.items()}
            for protocol, metrics in self.protocols.items()
        }


def describe(name: str, values: Tensor) -> dict:
    """(N, T) values of a measurement -> its mean over sequences, the mean's standard error, the mean of every future
    frame, and the indices of the five worst sequences, the worst first."""
    sequences = values.mean(1)
    error = sequences.std().item() / len(sequences) ** 0.5 if len(sequences) > 1 else 0.0
    higher_is_better = name.partition("_")[0] in HIGHER_IS_BETTER
    return {
        "mean": sequences.mean().item(),
        "standard_error": error,
        "per_frame": values.mean(0).tolist(),
        "worst": sequences.argsort(descending=not higher_is_better, stable=True)[:5].tolist(),
    }
