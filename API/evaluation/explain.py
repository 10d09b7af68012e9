"""Pictures of what the filters do: the paper's Figure 1, right, on real features."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .. import UserError
from ..run.files import write_json
from ..run.recorder import Recorder
from .figures import COPY, LINEAR, MODEL, PALETTE, Row, as_image, save_figure, save_tiles

PLACE = re.compile(r"\bstages\.(\d+)\.(\d+)\.(.+)$")  # of a filter in the model: stage, block in it, name in the block


def by_block(found: Mapping[str, Mapping]) -> dict[tuple[int, int], dict[str, Mapping]]:
    """{a filter's module name, '….0.1.branch.filter_h': …} -> {(stage, block) = (0, 1): {'branch.filter_h': …}}.
    Filters elsewhere are left out. Raises UserError where there is none in a DFDB."""
    blocks: dict[tuple[int, int], dict[str, Mapping]] = {}
    for name, one in sorted(found.items()):
        if place := PLACE.search(name):
            stage, block, inside = place.groups()
            blocks.setdefault((int(stage), int(block)), {})[inside] = one
    if not blocks:
        raise UserError("explain draws what the filters of the DFDBs do: this model calls none")
    return dict(sorted(blocks.items()))


def chosen(
    found: Mapping[tuple[int, int], Mapping], stages: Sequence[int] | None, blocks: Sequence[int] | None
) -> dict:
    """Those of the DFDBs to draw: by default the first of each stage. Raises UserError where there is none."""
    some = {(s, b): one for (s, b), one in found.items() if s in (stages or [s]) and b in (blocks or [0])}
    if not some:
        there = " ".join(f"{stage}.{block}" for stage, block in found)
        raise UserError(f"--stage, --block: no such DFDB, the model has (stage.block) {there}")
    return some


def draw_spectra(blocks: Mapping[tuple[int, int], Mapping[str, Mapping]], path: Path) -> None:
    """Mean amplitude before and after the filters, the cut-off and the thresholds: a row a block, a column a filter."""
    figure = Figure(figsize=(13, 2.6 * len(blocks)), layout="constrained")
    axes = figure.subplots(len(blocks), max(map(len, blocks.values())), squeeze=False)
    for (block, filters), line in zip(blocks.items(), axes):
        for axis, (name, one) in zip(line, filters.items()):
            bins = np.arange(len(one["before"])) / max(1, len(one["before"]) - 1)
            level = one["threshold"].numpy()
            axis.plot(bins, one["before"], color="#999999", lw=1.2, label="before")
            axis.plot(bins, one["after"], color=MODEL, lw=1, linestyle="--", label="after")
            axis.axvline(one["cutoff"] / max(1, len(bins) - 1), color=COPY, lw=1, linestyle=":", label="cut-off")
            axis.axhline(level.mean(), color=LINEAR, lw=1, label="threshold, mean and range")
            axis.axhspan(level.min(), level.max(), color=LINEAR, alpha=0.15)
            axis.set_yscale("log")
            axis.set_title(f"{name}\n{one['removed']:.0%} of high bins removed", fontsize=8)
            axis.tick_params(which="both", labelsize=7)
            least = float(one["before"].min())
            axis.set_ylim(bottom=max(1e-3, least / 30, min(least, float(one["after"].min())) / 2))
        line[0].set_ylabel(f"DFDB {block[0]}.{block[1]}\nmean amplitude", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("frequency, of the highest", fontsize=8)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside upper center")
    save_figure(figure, path)


def draw_thresholds(blocks: Mapping[tuple[int, int], Mapping[str, Mapping]], path: Path) -> None:
    """Maps of the learned thresholds: segments down, positions across."""
    figure = Figure(figsize=(13, 1.9 * len(blocks)), layout="constrained")
    axes = figure.subplots(len(blocks), max(map(len, blocks.values())), squeeze=False)
    levels = [one["threshold"] for filters in blocks.values() for one in filters.values()]
    low, high = min(level.min().item() for level in levels), max(level.max().item() for level in levels)
    for (block, filters), line in zip(blocks.items(), axes):
        for axis, (name, one) in zip(line, filters.items()):
            level = one["threshold"].numpy()
            picture = axis.imshow(level, aspect="auto", cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(name, fontsize=8)
            axis.set_xlabel("position", fontsize=7)
            axis.tick_params(labelsize=7)
        line[0].set_ylabel(f"DFDB {block[0]}.{block[1]}\nsegment", fontsize=7)
    figure.colorbar(picture, ax=axes, label="threshold", shrink=0.8)
    save_figure(figure, path)


def draw_removed(blocks: Mapping[tuple[int, int], Mapping[str, Mapping]], path: Path) -> None:
    """The fraction of high bins removed in every block: a bar a kind of filter, such as filter_h, over its branches."""
    kinds = list(dict.fromkeys(name.rpartition(".")[2] for filters in blocks.values() for name in filters))
    figure = Figure(figsize=(max(4, 0.55 * len(blocks) + 1.5), 2.6), layout="constrained")
    axis, width = figure.subplots(), 0.76 / len(kinds)
    for k, kind in enumerate(kinds):
        values = [
            np.mean([one["removed"] for name, one in filters.items() if name.rpartition(".")[2] == kind])
            for filters in blocks.values()
        ]
        places = np.arange(len(blocks)) + (k - (len(kinds) - 1) / 2) * width
        color, hatch = PALETTE[k % len(PALETTE)], ("", "//", "..", "xx")[k % 4]
        axis.bar(places, values, 0.95 * width, color=color, hatch=hatch, ec="white", label=kind)
    axis.set_xticks(range(len(blocks)), [f"{stage}.{block}" for stage, block in blocks], fontsize=7)
    axis.set(xlabel="DFDB (stage.block)", ylabel="high bins removed", ylim=(0, 1))
    figure.legend(fontsize=7, ncols=len(kinds), loc="outside upper center")
    save_figure(figure, path)


def draw_modes(
    past: np.ndarray, future: np.ndarray, predicted: Mapping[str, tuple[np.ndarray, float]], path: Path
) -> None:
    """One sequence: truth, and the prediction with the filter as learned, off, and passing low frequencies only, each
    with its MSE."""
    rows = [Row("past", [as_image(frame) for frame in past], 1 - len(past))]
    rows.append(Row("truth", [as_image(frame) for frame in future]))
    for mode, (frames, mse) in predicted.items():
        rows.append(Row(f"filter {mode}\nMSE {mse:.1f}", [as_image(frame) for frame in frames]))
    save_tiles(rows, path, "test sequence 0, and the MSE on it")


def stage_table(stages: Sequence[Mapping[str, float]]) -> str:
    """Per stage, what the filters remove and how far thresholds have moved: stages as of filter_report."""
    columns = {
        "removed": ("high bins removed", ".1%"),
        "energy_removed": ("energy removed", ".2%"),
        "threshold_moved": ("thresholds moved", ".3f"),
        "threshold_drift": ("signed", "+.3f"),
        "threshold_moved_over_noise": ("times what noise moves", ".2f"),
    }
    lines = ["stage" + "".join(f"{title:>24}" for title, _ in columns.values())]
    for stage in stages:
        cells = (format(stage[name], form) if name in stage else "unknown" for name, (_, form) in columns.items())
        lines.append(f"{stage['stage']:<5}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def draw_filters(
    found: Mapping[str, Mapping],
    stages: Sequence[Mapping[str, float]],
    past: Tensor,
    future: Tensor,
    predicted: Mapping[str, Tensor],
    recorder: Recorder,
    checkpoint: str,
    drawn_stages: Sequence[int] | None,
    drawn_blocks: Sequence[int] | None,
) -> str:
    """All pictures and explain.json into the run folder; returns a table of the stages, and a line about the prediction
    with and without filter.

    found: {a filter's module name: {"before", "after", "cutoff", "threshold", "removed"}}.
    stages: as of filter_report.
    predicted: (B, T, C, H, W) for the filter "learned", "off" and "low".
    checkpoint: the name of the model's.
    """
    everything = by_block(found)
    drawn = chosen(everything, drawn_stages, drawn_blocks)
    draw_spectra(drawn, recorder.figures / "spectra.png")
    draw_thresholds(drawn, recorder.figures / "thresholds.png")
    draw_removed(everything, recorder.figures / "removed.png")
    each = {mode: (frames - future).square().sum((2, 3, 4)).mean(1) for mode, frames in predicted.items()}
    mse = {mode: errors.mean().item() for mode, errors in each.items()}
    first = {mode: (frames[0].cpu().numpy(), each[mode][0].item()) for mode, frames in predicted.items()}
    draw_modes(past[0].cpu().numpy(), future[0].cpu().numpy(), first, recorder.figures / "filter_modes.png")
    removed = {name: one["removed"] for name, one in found.items()}
    content = {"checkpoint": str(checkpoint), "sequences": len(past), "mse": mse, "stages": list(stages)}
    write_json(recorder.folder / "explain.json", content | {"removed": removed})
    return (
        f"{stage_table(stages)}\n"
        f"MSE of {len(past)} test sequences with the filter as learned {mse['learned']:.1f}, off {mse['off']:.1f}, "
        f"passing low frequencies only {mse['low']:.1f}; pictures in {recorder.figures}"
    )
