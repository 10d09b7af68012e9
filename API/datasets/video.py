"""The user's own videos: any folder of video files, GIFs, frame folders, npy arrays or raw YUV, split by file."""

from pathlib import Path

import numpy as np

from ..clips.reading import Clip, find_clips
from ..clips.windows import ClipWindows, cache_of, sliding_windows

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}


def split_clips(clips: list[Clip], seed: int) -> dict[str, list[Clip]]:
    """Whole clips to train, val and test, at random from seed, at least one each. ValueError for fewer than 3."""
    if len(clips) < len(SHARES):
        names = ", ".join(clip.name for clip in clips)
        raise ValueError(
            f"--data_root: {len(clips)} clips ({names}) cannot be split into train, val and test; cut them"
        )
    order = np.random.default_rng(seed).permutation(len(clips))
    held_out = {name: max(1, round(share * len(clips))) for name, share in SHARES.items() if name != "train"}
    val, test = held_out["val"], held_out["test"]
    parts = {"val": order[:val], "test": order[val : val + test], "train": order[val + test :]}
    return {name: [clips[i] for i in sorted(part)] for name, part in parts.items()}


def dataset(split, *, data_root, in_shape, out_shape, seed, **options) -> ClipWindows:
    """Windows of whole clips; --data_root is the folder of clips itself, --in_shape sets channels and size."""
    clips = find_clips(Path(data_root), options.get("yuv_size"), options.get("yuv_depth"))
    T, T_out = in_shape[0], out_shape[0]
    return sliding_windows(
        cache_of(data_root, options, in_shape, "crop"),
        clips,
        T,
        T_out,
        options.get("stride") or T + T_out,
        options.get("skip_bad", False),
        f"clips of {data_root}",
        lambda usable: split_clips(usable, seed)[split],
    )
