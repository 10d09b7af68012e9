"""The user's own arrays, of any kind of data on a grid: npy, npz, h5, NetCDF, zarr; values scaled, windows cut by time.

Three files or more are split by file, as `video` splits clips. Of one or two, the sequences (axis N) are split, where
there are three or more; else time: the first 8 tenths of each sequence train, the next validates, the last tests.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import UserError
from ..clips.arrays import find_arrays, open_arrays, stamp
from ..clips.clip import BadClip, Clip
from ..clips.layout import Sequences
from ..clips.scale import Scale
from . import BatchedDataset
from .splits import distinct, split_by, split_clips

RESIZE, INTERPOLATION = "crop", None
READING = ("layout", "variable", "fill_missing")
OPTIONS = (*READING, "value_range", "target_channels", "resize", "stride", "skip_bad")
BLOCK = 2**26  # bytes that are read at once to look for missing values and for the range


@dataclass(frozen=True)
class Part:
    """Frames first to last (exclusive) of sequence n of a file. clip: its entry in splits.json."""

    clip: Clip
    n: int
    first: int
    last: int


@dataclass(frozen=True)
class Survey:
    """What is in a file: the least and the largest value of every frame, (N, F, C) each, once missing ones are filled,
    and how many (N, F) are."""

    low: np.ndarray
    high: np.ndarray
    missing: np.ndarray


def reader(options: dict, size: tuple[int, int] | None) -> tuple:
    """How arrays are opened: arguments of survey and opened, after the path."""
    return (*(options.get(name) for name in READING), size, options.get("resize") or RESIZE)


def opened(path: Path, layout: str | None, variable: str | None, fill: str | None, size, resize: str) -> Sequences:
    """The Sequences in a file."""
    return open_arrays(path, variable, layout, fill=fill, size=size, resize=resize)


def survey(path: Path, *how) -> Survey:
    """Read a file from end to end, once. Raises BadClip where values are missing and not to be filled."""
    return survey_of(stamp(path), path, *how)


@lru_cache(maxsize=2**16)
def survey_of(_: tuple[int, int], path: Path, *how) -> Survey:
    """The survey of a file as it is since its stamp."""
    array = opened(path, *how)
    low, high = (np.empty((array.N, array.F, array.C)) for _ in range(2))
    missing = np.zeros((array.N, array.F), int)
    step, left = max(1, BLOCK // (8 * array.C * array.h * array.w)), 0
    blocks = [(n, first) for n in range(array.N) for first in range(0, array.F, step)]
    quiet = not sys.stderr.isatty()
    for n, first in tqdm(blocks, desc=f"reading {path.name}", unit="block", leave=False, disable=quiet, delay=1):
        values = array.raw(n, first, min(first + step, array.F))
        frames = slice(first, first + len(values))
        missing[n, frames] = np.isnan(values).sum((1, 2, 3))
        left += array.fill_gaps(values, n, first)
        low[n, frames], high[n, frames] = (f(values, (2, 3)) for f in (np.min, np.max))
    if left:
        share = f"{left:,} of {array.N * array.F * array.C * values[0, 0].size:,} values are missing"
        raise BadClip(f"{array.where}: {share} (NaN, infinity or _FillValue); {array.help()}")
    return Survey(low, high, missing)


class ArrayWindows(BatchedDataset):
    """index -> (past (T, C, H, W), future (T_out, C_out, H, W)), float32; the training side is in [0, 1].

    windows: (N, 2): a part's number, and the window's first frame. how: see reader.
    """

    def __init__(
        self, parts: Sequence[Part], windows: np.ndarray, T: int, T_out: int, scale: Scale, how: tuple
    ) -> None:
        self.parts, self.windows, self.T, self.length, self.scale, self.how = parts, windows, T, T + T_out, scale, how
        self.clips = list(dict.fromkeys(part.clip for part in parts))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch at once."""
        frames = []
        for number, first in self.windows[indices].tolist():
            part = self.parts[number]
            values = opened(part.clip.path, *self.how).read(part.n, first, first + self.length)
            frames.append(self.scale.to_unit(values))
        frames = torch.from_numpy(np.stack(frames))
        return frames[:, : self.T].contiguous(), self.scale.known(frames[:, self.T :]).contiguous()

    def sources(self, index: int) -> tuple[str, list]:
        """(the clip, names of its frames) of a window; equal names are equal frames, in whatever split."""
        number, first = self.windows[index].tolist()
        part = self.parts[number]
        return part.clip.name, [(part.clip.path, part.n, t) for t in range(first, first + self.length)]


def split_parts(clips: Sequence[Clip], how: tuple, length: int, seed: int) -> dict[str, list[Part]]:
    """The parts of each split. Raises UserError where a split would be too short for a window of so many frames."""
    parts = {"train": [], "val": [], "test": []}
    for split, some in split_clips(clips, seed).items() if len(clips) >= 3 else ():
        for clip in some:
            array = opened(clip.path, *how)
            parts[split] += [Part(clip, n, 0, array.F) for n in range(array.N)]
    for clip in clips if len(clips) < 3 else ():
        array = opened(clip.path, *how)
        if array.N >= 3:
            for split, some in split_by({n: f"{seed} {n}" for n in range(array.N)}).items():
                parts[split] += [Part(part_of(clip, f"{n}"), n, 0, array.F) for n in some]
            continue
        ends = 0, round(0.8 * array.F), round(0.9 * array.F), array.F
        if min(ends[2] - ends[1], ends[3] - ends[2]) < length:
            tenth = f"{array.where}: a tenth of its {array.F} frames is to validate, one to test, and is shorter than"
            raise UserError(f"{tenth} a window of {length}; give fewer frames (--in_shape T, --out_shape T) or 3 files")
        for split, first, last in zip(parts, ends, ends[1:]):
            clip_part = part_of(clip, f"{first}:{last}")
            parts[split] += [Part(clip_part, n, first, last) for n in range(array.N)]
    return parts


def part_of(clip: Clip, part: str) -> Clip:
    """The clip that is a part of a file."""
    return replace(clip, name=f"{clip.name}[{part}]", part=part)


def usable(data_root: str | Path, how: tuple, length: int, C: int, skip_bad: bool) -> tuple[list[Clip], list[str]]:
    """(files that can be read and are long enough, others and copies in words). Raises BadClip for the first bad file,
    unless skip_bad."""
    clips, left_out = distinct(find_arrays(Path(data_root)))
    good = []
    for clip in clips:
        try:
            array = opened(clip.path, *how)
            if C != array.C:
                raise BadClip(f"{array.where}: has {array.C} channels, --in_shape asks for {C}")
            if length > array.F:
                raise BadClip(f"{array.where}: has {array.F} frames, a window takes {length} (--in_shape, --out_shape)")
            if skip_bad:  # all that is to be read of it can be
                survey(clip.path, *how)
            good.append(clip)
        except BadClip as error:
            if not skip_bad:
                raise BadClip(f"{error}; --skip_bad goes on without it" if len(clips) > 1 else f"{error}") from None
            left_out.append(str(error))
    if not good:
        raise UserError(f"--data_root {data_root}: none of its arrays can be used, the first because {left_out[0]}")
    return good, left_out


def first_array(clips: Sequence[Clip], how: tuple, skip_bad: bool) -> Sequences:
    """The first file's sequences; with skip_bad, those of the first that can be read. Raises BadClip where none can."""
    for left, clip in zip(reversed(range(len(clips))), clips):
        try:
            return opened(clip.path, *how)
        except BadClip:
            if not (skip_bad and left):
                raise


def range_of(parts: Sequence[Part], how: tuple) -> list[float]:
    """LOW HIGH of each channel in turn, over all frames of the parts. Raises UserError for a constant channel."""
    low, high = [], []
    for part in parts:
        found, frames = survey(part.clip.path, *how), slice(part.first, part.last)
        low.append(found.low[part.n, frames].min(0))
        high.append(found.high[part.n, frames].max(0))
    pairs = np.stack([np.min(low, 0), np.max(high, 0)], 1)
    for channel, (one, other) in enumerate(pairs):
        if one == other:
            what = f"channel {channel} is {one:g} throughout the training side"
            raise UserError(f"--value_range: {what}, which gives no scale; give LOW HIGH, of each channel")
    return pairs.flatten().tolist()


def settle(*, data_root, in_shape, out_shape, seed, multiple: int = 1, **options) -> dict[str, list]:
    """The flags that the data decide where they are left open: {"in_shape", "out_shape", "value_range"}.

    in_shape and out_shape may be T alone. multiple: H and W are rounded down to one of it.
    """
    in_shape, out_shape = list(in_shape), list(out_shape)
    if len(in_shape) == 1:
        first = first_array(find_arrays(Path(data_root)), reader(options, None), options.get("skip_bad", False))
        if min(first.h, first.w) < multiple:
            small = f"its frames are {first.h}x{first.w}, less than {multiple}"
            raise UserError(f"{first.where}: {small}; is it {first.letters} (--layout)?")
        in_shape += [first.C, first.h // multiple * multiple, first.w // multiple * multiple]
    if len(in_shape) == 4 and len(out_shape) == 1:
        out_shape += [len(options.get("target_channels") or range(in_shape[1])), *in_shape[2:]]
    limits = options.get("value_range")
    if limits:
        limits = Scale(limits, in_shape[1], options.get("target_channels")).limits
    elif len(in_shape) == len(out_shape) == 4:
        shapes = dict(in_shape=in_shape, out_shape=out_shape)
        limits = dataset("train", data_root=data_root, seed=seed, **shapes, **options).scale.limits
    return {"in_shape": in_shape, "out_shape": out_shape, "value_range": limits}


def dataset(split, *, data_root, in_shape, out_shape, seed, **options) -> ArrayWindows:
    """Windows over the arrays of a file or folder, data_root. Values are scaled by value_range, or by the least and the
    largest of the training side."""
    T, C, H, W = in_shape
    length, targets, how = T + out_shape[0], options.get("target_channels"), reader(options, (H, W))
    if len(targets or range(C)) != out_shape[1]:
        chosen = f"--target_channels {' '.join(map(str, targets))}: are" if targets else "--target_channels: all"
        raise UserError(f"{chosen} {len(targets or range(C))} channels, --out_shape asks for {out_shape[1]}")
    clips, left_out = usable(data_root, how, length, C, options.get("skip_bad", False))
    parts = split_parts(clips, how, length, seed)
    name = opened(clips[0].path, *how).name or "value"
    limits = options.get("value_range") or range_of(parts["train"], how)
    scale, mine = Scale(limits, C, targets, name), parts[split]
    stride = options.get("stride") or length
    windows = [(k, t) for k, part in enumerate(mine) for t in range(part.first, part.last - length + 1, stride)]
    data = ArrayWindows(mine, np.array(windows, np.int64), T, out_shape[0], scale, how)
    data.skipped, data.note = left_out, note_of(mine, scale, how)
    return data


def note_of(parts: Sequence[Part], scale: Scale, how: tuple) -> str:
    """What 0 and 1 stand for, and how many values are filled or beyond, in words."""
    found = [(survey(part.clip.path, *how), part.n, slice(part.first, part.last)) for part in parts]
    filled = sum(int(s.missing[n, frames].sum()) for s, n, frames in found)
    low = np.min([s.low[n, frames].min(0) for s, n, frames in found], 0)
    high = np.max([s.high[n, frames].max(0) for s, n, frames in found], 0)
    lines = [f"0 to 1 is {scale} of {scale.name}"]
    for channel, (one, other) in enumerate(scale.pairs):
        room = 1e-6 * (other - one)
        if low[channel] < one - room or high[channel] > other + room:
            lines.append(f"channel {channel} goes beyond, from {low[channel]:.6g} to {high[channel]:.6g}")
    return "; ".join(lines + ([f"{filled:,} missing values filled: {how[2]}"] if filled else []))
