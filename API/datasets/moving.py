"""Two digits drifting and bouncing in a box, generated: the physics of Moving MNIST, for any set of digit images."""

import hashlib

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from .. import UserError
from . import BatchedDataset

DIGITS_A_SEQUENCE = 2
STEP = 0.1  # of the free canvas, per frame
TRAIN, VAL, TEST = 0, 1, 2  # streams of random numbers that have nothing in common


def uniform(seed: int, stream: int, numbers: np.ndarray, draws: int) -> np.ndarray:
    """(N,) sequence numbers -> (N, draws) float64 in [0, 1), a pure function of (seed, stream, number, draw).

    A counter-based generator: the mixing function of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014) over the four words.
    NumPy's Philox is one too, but costs 90 us for every sequence to start, more than drawing the sequence.
    """

    def mix(z: np.ndarray) -> np.ndarray:
        z = z + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        key = mix(mix(np.array([seed], dtype=np.uint64)) ^ np.uint64(stream))
        words = mix(mix(key ^ np.asarray(numbers).astype(np.uint64))[:, None] ^ np.arange(draws, dtype=np.uint64))
    return (words >> np.uint64(11)) * 2.0**-53


def trajectories(u: np.ndarray, frames: int) -> np.ndarray:
    """(…, 3) uniform numbers -> (…, frames, 2) positions (y, x) in [0, 1]: start, angle, then steps and bounces."""
    position = u[..., :2].copy()
    angle = 2 * np.pi * u[..., 2]
    velocity = STEP * np.stack([np.sin(angle), np.cos(angle)], -1)
    path = np.empty((*position.shape[:-1], frames, 2))
    for t in range(frames):
        position += velocity
        velocity = np.where((position <= 0) | (position >= 1), -velocity, velocity)
        position = position.clip(0, 1)
        path[..., t, :] = position
    return path


class MovingDigits(BatchedDataset):
    """Generated sequences: number -> (past (T, 1, H, W), future (T_out, 1, H, W)), float32 in [0, 1].

    digits: (N, side, side) uint8 images. Sequence `number` is a pure function of (seed, stream, number), the
    same in every process and order; a training set's numbers go on counting from epoch to epoch, so no epoch repeats
    another.
    """

    generated = True

    def __init__(
        self,
        digits: np.ndarray,
        length: int,
        in_shape: tuple[int, int, int, int],
        out_shape: tuple[int, int, int, int],
        seed: int,
        stream: int,
    ) -> None:
        self.T, channels, self.height, self.width = in_shape
        self.frames = self.T + out_shape[0]
        side = digits.shape[-1]
        if channels != 1 or out_shape[1] != 1:
            raise UserError(f"--in_shape {list(in_shape)}: moving digits are grey, the number of channels is 1")
        if min(self.height, self.width) < side:
            raise UserError(f"--in_shape {list(in_shape)}: frames must be at least {side} high and wide for the digits")
        self.digits, self.length, self.seed, self.stream = digits, length, seed, stream

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """A batch at once: (B, T, 1, H, W), (B, T_out, 1, H, W)."""
        frames = torch.from_numpy(self.draw(numbers)).unsqueeze(2)
        return frames[:, : self.T] / 255, frames[:, self.T :] / 255  # contiguous, each in its own memory

    def sources(self, number: int) -> tuple[str, list]:
        """(the two digits, each of them) of a sequence, named by what they look like; MovingDigits store no frames."""
        names = [hashlib.sha256(self.digits[k].tobytes()).hexdigest()[:16] for k in self.script([number])[0][0]]
        return " ".join(sorted(names)), names

    def script(self, numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """What happens: which digits (B, 2), and their top left pixels (B, 2, frames, 2)."""
        u = uniform(self.seed, self.stream, np.asarray(numbers), DIGITS_A_SEQUENCE * 4).reshape(
            -1, DIGITS_A_SEQUENCE, 4
        )
        side = self.digits.shape[-1]
        corners = trajectories(u[..., :3], self.frames) * (self.height - side, self.width - side)
        return (u[..., 3] * len(self.digits)).astype(np.int64), corners.astype(np.int64)

    def draw(self, numbers: list[int]) -> np.ndarray:
        """(B, frames, H, W) uint8."""
        which, corners = self.script(numbers)
        B, side = len(numbers), self.digits.shape[-1]
        canvas = np.zeros((B * self.frames, self.height, self.width), np.uint8)
        patches = sliding_window_view(
            canvas, (side, side), axis=(1, 2), writeable=True
        )  # [frame, y, x] is a place to draw
        frame = np.arange(B * self.frames)
        for k in range(DIGITS_A_SEQUENCE):
            place = (frame, *corners[:, k].reshape(-1, 2).T)
            digit = self.digits[which[:, k].repeat(self.frames)]
            patches[place] = np.maximum(patches[place], digit) if k else digit
        return canvas.reshape(B, self.frames, self.height, self.width)
