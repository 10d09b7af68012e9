"""What is in a data set: sizes, values, what could not be read, and whether its splits overlap."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from torch.utils.data import Dataset

from .splits import listed, split_manifest, suspects

MOST_WINDOWS = 500  # a split that are read for mean and range
MOST_NAMES = 100  # of clips that are listed, a split


def report(name: str, datasets: Mapping[str, Dataset]) -> str:
    """Lines for a person about the splits of a data set, which are read as in training."""
    lines = [f"{name}:"]
    for split, data in datasets.items():
        some = np.unique(np.linspace(0, len(data) - 1, min(MOST_WINDOWS, len(data))).astype(int))
        low, high, means = np.inf, -np.inf, []
        for index in some:
            past, future = data[int(index)]
            low = min(low, past.min().item(), future.min().item())
            high = max(high, past.max().item(), future.max().item())
            means.append((past.sum().item() + future.sum().item()) / (past.numel() + future.numel()))
        clips = getattr(data, "clips", None)
        source = f"{len(clips):,} clips of {len({f for c in clips for f in c.files()}):,} files, " if clips else ""
        kind = "sequences generated a pass" if getattr(data, "generated", False) else "windows"
        (T, C, H, W), T_out = past.shape, len(future)
        values = f"mean {np.mean(means):.3f}, range {low:.3f} to {high:.3f}"
        read = "" if len(some) == len(data) else f" in {len(some)} of them"
        lines.append(f"  {split:<6}{source}{len(data):,} {kind} of {T}+{T_out} frames {C}x{H}x{W}, {values}{read}")
        if note := getattr(data, "note", ""):
            lines.append(f"        {note}")
        if clips:
            lines.append(f"        {listed([clip.name for clip in clips], MOST_NAMES)}")
    skipped = dict.fromkeys(reason for data in datasets.values() for reason in getattr(data, "skipped", ()))
    lines += [f"  left out: {reason}" for reason in skipped]
    lines += [f"  {line}" for line in suspects(split_manifest(datasets))]
    return "\n".join([*lines, *overlaps(datasets)])


def overlaps(datasets: Mapping[str, Dataset]) -> list[str]:
    """A line for any two splits: how many files, windows and frames of the one are in the other too."""
    seen = {}
    for split, data in datasets.items():
        if hasattr(data, "sources"):
            sources = [data.sources(i) for i in range(len(data))]
            seen[split] = {
                "files": {file for file, _ in sources},
                "windows": {tuple(frames) for _, frames in sources},
                "frames": {frame for _, frames in sources for frame in frames},
            }
    lines = []
    for a, b in combinations(datasets, 2):
        if unknown := [split for split in (a, b) if split not in seen]:
            verdict = f"not checked: {' and '.join(unknown)} cannot say where its items come from"
        else:
            common = {kind: len(seen[a][kind] & seen[b][kind]) for kind in seen[a]}
            counts = ", ".join(
                f"{n:,} of {len(seen[a][kind]):,} and {len(seen[b][kind]):,} {kind}" for kind, n in common.items()
            )
            verdict = "share nothing" if not any(common.values()) else f"LEAK: share {counts}"
        lines.append(f"  overlap: {a} and {b} {verdict}")
    return lines
