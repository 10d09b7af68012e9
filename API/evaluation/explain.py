"""Pictures of what the filters do: the paper's Figure 1, right, on real features."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .. import UserError
from ..run.files import write_json
from ..run.recorder import Recorder
from .figures import COPY, LINEAR, MODEL, Row, as_image, save_figure, save_tiles

PLACES = (
    ("branch_r1", "filter_h", "r₁, height"),
    ("branch_r1", "filter_w", "r₁, width"),
    ("branch_r2", "filter_h", "r₂, height"),
    ("branch_r2", "filter_w", "r₂, width"),
)


def chosen(found: Mapping[str, Mapping], stages: Sequence[int] | None, blocks: Sequence[int] | None) -> list[str]:
    """'stage.block' of the DFDBs to draw: by default the first of each stage. Raises UserError where there is none."""
    there = list(dict.fromkeys(".".join(name.split("stages.")[1].split(".")[:2]) for name in found))
    some = [
        b
        for b in there
        if (stages is None or int(b.split(".")[0]) in stages) and int(b.split(".")[1]) in (blocks or [0])
    ]
    if not some:
        raise UserError(f"--stage, --block: no such DFDB, the model has (stage.block) {' '.join(there)}")
    return some


def filter_of(found: Mapping[str, Mapping], block: str, branch: str, axis: str) -> Mapping:
    """What was found at one filter."""
    return found[f"temporal.stages.{block}.{branch}.dfdu.{axis}"]


def draw_spectra(found: Mapping[str, Mapping], blocks: Sequence[str], path: Path) -> None:
    """Mean amplitude before and after the filter, the cut-off and the thresholds, a row a DFDB, a column a signal."""
    figure = Figure(figsize=(13, 2.5 * len(blocks)), layout="constrained")
    axes = figure.subplots(len(blocks), 4, squeeze=False)
    for block, line in zip(blocks, axes):
        for axis, (branch, name, title) in zip(line, PLACES):
            one = filter_of(found, block, branch, name)
            bins = np.arange(len(one["before"])) / max(1, len(one["before"]) - 1)
            level = one["threshold"].numpy()
            axis.plot(bins, one["before"], color="#999999", lw=1.2, label="before")
            axis.plot(bins, one["after"], color=MODEL, lw=1, linestyle="--", label="after")
            axis.axvline(one["cutoff"] / max(1, len(bins) - 1), color=COPY, lw=1, linestyle=":", label="cut-off")
            axis.axhline(level.mean(), color=LINEAR, lw=1, label="threshold, mean and range")
            axis.axhspan(level.min(), level.max(), color=LINEAR, alpha=0.15)
            axis.set(yscale="log", title=f"DFDB {block}, {title}: {one['removed']:.0%} of high bins removed")
            axis.title.set_fontsize(8)
            axis.tick_params(labelsize=7)
            axis.set_ylim(bottom=max(1e-3, float(one["before"].min()) / 3))
    for axis in axes[-1]:
        axis.set_xlabel("frequency, of the highest", fontsize=8)
    for line in axes:
        line[0].set_ylabel("mean amplitude", fontsize=8)
    figure.legend(*axes[0][0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside upper center")
    save_figure(figure, path)


def draw_thresholds(found: Mapping[str, Mapping], blocks: Sequence[str], path: Path) -> None:
    """Maps of the learned thresholds: segments down, positions across."""
    figure = Figure(figsize=(13, 1.9 * len(blocks)), layout="constrained")
    axes = figure.subplots(len(blocks), 4, squeeze=False)
    shown = [filter_of(found, block, b, n)["threshold"] for block in blocks for b, n, _ in PLACES]
    low, high = min(t.min().item() for t in shown), max(t.max().item() for t in shown)
    for block, line in zip(blocks, axes):
        for axis, (branch, name, title) in zip(line, PLACES):
            level = filter_of(found, block, branch, name)["threshold"].numpy()
            picture = axis.imshow(level, aspect="auto", cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
            axis.set_title(f"DFDB {block}, {title}", fontsize=8)
            axis.set_xlabel("column" if name == "filter_h" else "row", fontsize=7)
            axis.set_ylabel("segment", fontsize=7)
            axis.tick_params(labelsize=7)
    figure.colorbar(picture, ax=axes, label="threshold", shrink=0.8)
    save_figure(figure, path)


def draw_removed(found: Mapping[str, Mapping], path: Path) -> None:
    """The fraction of high bins removed in every DFDB, height and width."""
    there = chosen(found, None, range(10_000))
    figure = Figure(figsize=(max(4, 0.55 * len(there) + 1.5), 2.6), layout="constrained")
    axis = figure.subplots()
    for k, (name, color, hatch) in enumerate((("filter_h", MODEL, ""), ("filter_w", COPY, "//"))):
        values = [
            np.mean([filter_of(found, b, branch, name)["removed"] for branch in ("branch_r1", "branch_r2")])
            for b in there
        ]
        label = "height" if name == "filter_h" else "width"
        axis.bar(
            np.arange(len(there)) + (k - 0.5) * 0.38, values, 0.36, color=color, hatch=hatch, ec="white", label=label
        )
    axis.set_xticks(range(len(there)), there, fontsize=7)
    axis.set(xlabel="DFDB (stage.block)", ylabel="high bins removed", ylim=(0, 1))
    figure.legend(fontsize=7, ncols=2, loc="outside upper center")
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


def draw_filters(
    found: Mapping[str, Mapping],
    past: Tensor,
    future: Tensor,
    predicted: Mapping[str, Tensor],
    recorder: Recorder,
    stages: Sequence[int] | None,
    blocks: Sequence[int] | None,
) -> str:
    """All pictures and explain.json into the run folder; returns a line about the prediction with and without filter.

    found: of TemporalModule.watch.spectra. predicted: (B, T, C, H, W) for the filter "learned", "off" and "low".
    """
    drawn = chosen(found, stages, blocks)
    draw_spectra(found, drawn, recorder.figures / "spectra.png")
    draw_thresholds(found, drawn, recorder.figures / "thresholds.png")
    draw_removed(found, recorder.figures / "removed.png")
    each = {mode: (frames - future).square().sum((2, 3, 4)).mean(1) for mode, frames in predicted.items()}
    mse = {mode: errors.mean().item() for mode, errors in each.items()}
    first = {mode: (frames[0].cpu().numpy(), each[mode][0].item()) for mode, frames in predicted.items()}
    draw_modes(past[0].cpu().numpy(), future[0].cpu().numpy(), first, recorder.figures / "filter_modes.png")
    removed = {name: one["removed"] for name, one in found.items()}
    write_json(recorder.folder / "explain.json", {"sequences": len(past), "mse": mse, "removed": removed})
    return (
        f"MSE of {len(past)} test sequences with the filter as learned {mse['learned']:.1f}, off {mse['off']:.1f}, "
        f"passing low frequencies only {mse['low']:.1f}; pictures in {recorder.figures}"
    )
