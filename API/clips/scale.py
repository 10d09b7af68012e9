"""The values of a data set <-> [0, 1], channel by channel."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from torch import Tensor

from .. import UserError

Frames = TypeVar("Frames", np.ndarray, Tensor)


class Scale:
    """What 0 and 1 stand for.

    limits: LOW HIGH for all channels, or of each in turn. targets: the channels that are predicted, in ascending order;
    None: all. name: what the values are called. Raises UserError, naming the flag, for numbers that do not fit.
    """

    def __init__(
        self, limits: Sequence[float], channels: int, targets: Sequence[int] | None = None, name: str = "value"
    ) -> None:
        given, limits = " ".join(f"{value:g}" for value in limits), np.array(limits, np.float64)
        if limits.size not in (2, 2 * channels):
            raise UserError(f"--value_range {given}: give LOW HIGH, or the {2 * channels} of {channels} channels")
        pairs = np.broadcast_to(limits.reshape(-1, 2), (channels, 2))
        if not (np.isfinite(pairs).all() and (pairs[:, 0] < pairs[:, 1]).all()):
            raise UserError(f"--value_range {given}: each LOW must be a number below its HIGH")
        targets = list(range(channels)) if targets is None else list(targets)
        if targets != sorted(set(targets)) or not targets or not 0 <= targets[0] <= targets[-1] < channels:
            chosen = " ".join(map(str, targets))
            raise UserError(f"--target_channels {chosen}: some of 0 to {channels - 1}, each once, in ascending order")
        self.pairs, self.targets, self.channels, self.name = pairs, targets, channels, name

    @property
    def limits(self) -> list[float]:
        """LOW HIGH of every channel in turn."""
        return self.pairs.flatten().tolist()

    @property
    def spans(self) -> list[float]:
        """HIGH - LOW of the predicted channels."""
        return (self.pairs[self.targets, 1] - self.pairs[self.targets, 0]).tolist()

    def to_unit(self, values: np.ndarray) -> np.ndarray:
        """(..., C, H, W) floats -> float32, LOW at 0 and HIGH at 1. Others are not clipped."""
        low, high = self.pairs.T.astype(values.dtype)[..., None, None]
        return ((values - low) / (high - low)).astype(np.float32)

    def to_values(self, frames: np.ndarray) -> np.ndarray:
        """The inverse, of predictions: (..., C_out, H, W) -> float64."""
        low, high = self.pairs[self.targets].T[..., None, None]
        return low + frames.astype(np.float64) * (high - low)

    def known(self, past: Frames) -> Frames:
        """(..., C, H, W) -> (..., C_out, H, W): the channels that are predicted."""
        return past if len(self.targets) == self.channels else past[..., self.targets, :, :]

    def label(self) -> str:
        """What pictures show: the first predicted channel."""
        return self.name if self.channels == 1 else f"{self.name}, channel {self.targets[0]}"

    def __str__(self) -> str:
        some = [f"{low:.6g} to {high:.6g}" for low, high in self.pairs[:4]]
        return ", ".join(some) + (f" and so on for {self.channels} channels" if self.channels > 4 else "")
