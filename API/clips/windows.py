"""Windows over cached clips."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import UserError
from ..datasets import BatchedDataset
from .cache import ClipCache
from .clip import BadClip, Clip


def open_all(
    cache: ClipCache, clips: Sequence[Clip], skip_bad: bool, title: str
) -> tuple[list[Clip], list[int], list[str]]:
    """Decode what is not cached yet: (readable clips, their numbers of frames, why others were skipped).

    Raises BadClip for the first unreadable clip, unless skip_bad.
    """
    good, lengths, skipped = [], [], []
    quiet = not sys.stderr.isatty()
    for clip in tqdm(clips, desc=f"decoding {title}", unit="clip", leave=False, disable=quiet, delay=1):
        try:
            lengths.append(len(cache.open(clip)))
            good.append(clip)
        except BadClip as error:
            if not skip_bad:
                raise BadClip(f"{error}; --skip_bad goes on without it") from None
            skipped.append(str(error))
    if not good:
        raise UserError(f"{title}: none of its {len(clips)} clips can be read, the first because {skipped[0]}")
    return good, lengths, skipped


class ClipWindows(BatchedDataset):
    """index -> (past (T, C, H, W), future (T_out, C, H, W)), float32 in [0, 1].

    windows: (N, 1 + T + T_out): a clip's number, and the positions of the window's frames in it.
    """

    def __init__(
        self, cache: ClipCache, clips: Sequence[Clip], windows: np.ndarray, T: int, skipped: Sequence[str] = ()
    ) -> None:
        self.cache, self.clips, self.windows, self.T, self.skipped = cache, clips, windows, T, list(skipped)

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch at once: (B, T, C, H, W), (B, T_out, C, H, W)."""
        frames = np.empty((len(indices), self.windows.shape[1] - 1, *self.cache.shape), np.uint8)
        for row, window in zip(frames, self.windows[indices]):
            clip, first, last = window[0], window[1], window[-1]
            video = self.cache.open(self.clips[clip])
            row[:] = video[first : last + 1] if last - first == len(row) - 1 else video[window[1:]]
        frames = torch.from_numpy(frames)
        return frames[:, : self.T] / 255, frames[:, self.T :] / 255  # contiguous, each in its own memory

    def sources(self, index: int) -> tuple[str, list]:
        """(the clip, names of its frames) of a window; equal names are equal frames, in whatever split."""
        window = self.windows[index]
        clip = self.clips[window[0]]
        return clip.name, [clip.images[p].as_posix() if clip.images else (clip.name, int(p)) for p in window[1:]]


def slide(clip: int, frames: int, length: int, stride: int, first: int = 0) -> list[list[int]]:
    """Rows for ClipWindows: windows of `length` consecutive frames among `frames` from `first` on, every `stride`."""
    return [[clip, *range(first + start, first + start + length)] for start in range(0, frames - length + 1, stride)]


def sliding_windows(
    cache: ClipCache,
    clips: Sequence[Clip],
    T: int,
    T_out: int,
    stride: int,
    skip_bad: bool,
    title: str,
    select: Callable[[list[Clip]], list[Clip]] = list,
) -> ClipWindows:
    """Windows over those whole clips that `select` takes of the usable ones.

    A clip shorter than one window is as bad as an unreadable one.
    """
    good, lengths, skipped = open_all(cache, clips, skip_bad, title)
    long = {}
    for clip, frames in zip(good, lengths):
        if frames < T + T_out:
            message = f"{clip.path}: has {frames} frames, a window takes {T} + {T_out} (--in_shape, --out_shape)"
            if not skip_bad:
                raise BadClip(f"{message}; --skip_bad goes on without it")
            skipped.append(message)
        else:
            long[clip] = frames
    if not long:
        raise UserError(f"{title}: no clip is long enough for a window of {T} + {T_out} frames")
    kept = select(list(long))
    windows = [row for k, clip in enumerate(kept) for row in slide(k, long[clip], T + T_out, stride)]
    return ClipWindows(cache, kept, np.array(windows, np.int32), T, skipped)


def cache_of(
    data_root: str | Path,
    options: dict,
    in_shape: Sequence[int],
    resize: str,
    interpolation: str | None = None,
    partial: bool = False,
) -> ClipCache:
    """The cache of the flags: --cache_dir, else .cache in data_root; none with --no_cache.

    resize, interpolation: the data set's own, see `fit`; --resize wins over the former. partial: see ClipCache. Raises
    UserError, naming --cache_dir, where the folder cannot be used.
    """
    folder = None if options.get("no_cache") else Path(options.get("cache_dir") or Path(data_root) / ".cache")
    cache = ClipCache(folder, tuple(in_shape[1:]), options.get("resize") or resize, interpolation, partial)
    if folder is not None:
        cache.prepare()
    return cache
