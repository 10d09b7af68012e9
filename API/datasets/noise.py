"""Noisy past frames: any data set, seen through a bad camera."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from . import BatchedDataset


class NoisyPast(BatchedDataset):
    """A data set whose past frames have Gaussian noise added; the future stays clean. Noisy values are not clipped.

    sigma: standard deviation, in units of the range from black to white. An item's noise is a pure function of (seed,
    its index): a window of a file has the same noise in every epoch, a generated sequence never repeats.
    """

    def __init__(self, data: Dataset, sigma: float, seed: int) -> None:
        self.data, self.sigma, self.seed = data, sigma, seed
        self.generated, self.skipped = getattr(data, "generated", False), getattr(data, "skipped", ())
        noise = f"Gaussian noise of standard deviation {sigma:g} on the past frames"
        self.note = "; ".join(filter(None, (getattr(data, "note", ""), noise)))

    def __getattr__(self, name: str) -> object:
        """Everything else is the data set's own."""
        if name == "data":  # not there yet, while it is unpickled
            raise AttributeError(name)
        return getattr(self.data, name)

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch at once: (B, T, C, H, W), (B, T_out, C_out, H, W)."""
        if hasattr(self.data, "__getitems__"):
            past, future = self.data.__getitems__(indices)
        else:
            past, future = map(torch.stack, zip(*(self.data[index] for index in indices)))
        noise = [np.random.default_rng((self.seed, i)).standard_normal(past.shape[1:], np.float32) for i in indices]
        return past + self.sigma * torch.from_numpy(np.stack(noise)), future
