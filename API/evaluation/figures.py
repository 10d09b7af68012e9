"""Pictures of a run, drawn without a screen: strips of frames, GIFs, curves; and what TensorBoard shows."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes tell them apart in print.
MODEL, COPY, LINEAR, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
PALETTE = (MODEL, COPY, LINEAR, "#CC79A7", "#E69F00", "#56B4E9", BLACK)
STYLES = {"model": (MODEL, "-"), "copy_last": (COPY, "--"), "linear": (LINEAR, "-."), "black": (BLACK, ":")}
TITLES = {"mse": "MSE", "mae": "MAE", "ssim": "SSIM", "psnr": "PSNR (dB)", "lpips": "LPIPS"}


def as_image(frame: np.ndarray) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8: grey or colour as it is; of other channel counts the mean, in grey."""
    frame = np.asarray(frame, dtype=np.float32).clip(0, 1)
    if len(frame) != 3:
        frame = frame.mean(0, keepdims=True).repeat(3, 0)
    return (frame.transpose(1, 2, 0) * 255).round().astype(np.uint8)


def as_error(error: np.ndarray) -> np.ndarray:
    """(C, H, W) difference -> (H, W, 3) uint8, dark blue for none to yellow for one (the cividis scale)."""
    from matplotlib import colormaps

    return (colormaps["cividis"](np.abs(error).mean(0).clip(0, 1))[..., :3] * 255).astype(np.uint8)


def rows_of(past: np.ndarray, future: np.ndarray, predicted: np.ndarray) -> dict[str, list[np.ndarray]]:
    """(T, C, H, W) each -> the four rows of a strip, as images."""
    return {
        "past": [as_image(frame) for frame in past],
        "truth": [as_image(frame) for frame in future],
        "prediction": [as_image(frame) for frame in predicted],
        "|error|": [as_error(p - f) for p, f in zip(predicted, future)],
    }


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="png", dpi=150, bbox_inches="tight")
    partial.replace(path)


def strip(past: np.ndarray, future: np.ndarray, predicted: np.ndarray, path: Path, title: str = "") -> None:
    """One sequence, (T, C, H, W) arrays, as four rows of frames: past, truth, prediction, absolute error."""
    rows = rows_of(past, future, predicted)
    columns = max(len(row) for row in rows.values())
    figure = Figure(figsize=(columns * 0.9 + 0.8, len(rows) * 0.95))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=dict(wspace=0.04, hspace=0.18))
    for (name, images), line in zip(rows.items(), axes):
        first = 1 - len(images) if name == "past" else 1
        for column, axis in enumerate(line):
            axis.set_axis_off()
            if column < len(images):
                axis.imshow(images[column], interpolation="nearest")
                if name in ("past", "truth"):
                    axis.set_title(f"{first + column:+d}".replace("+0", "0"), fontsize=7, pad=2)
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    if title:
        figure.suptitle(title, fontsize=9)
    save_figure(figure, path)


def gif(past: np.ndarray, future: np.ndarray, predicted: np.ndarray, path: Path, scale: int = 3) -> None:
    """One sequence, (T, C, H, W) arrays, moving: truth, prediction and error side by side, the past before them."""
    H, W = past.shape[-2:]
    scale = max(1, min(scale, 512 // max(H, W)) if max(H, W) > 170 else scale)
    blank = np.full((H, W, 3), 32, np.uint8)
    frames = [(as_image(p), as_image(p), blank, "past") for p in past]
    frames += [(as_image(f), as_image(p), as_error(p - f), "future") for f, p in zip(future, predicted)]
    pictures = []
    for *tiles, phase in frames:
        picture = Image.new("RGB", ((W * scale + 4) * 3, H * scale + 16), (255, 255, 255))
        draw = ImageDraw.Draw(picture)
        for k, (tile, name) in enumerate(zip(tiles, ("truth", "prediction", "|error|"))):
            left = k * (W * scale + 4) + 2
            picture.paste(Image.fromarray(tile).resize((W * scale, H * scale), Image.Resampling.NEAREST), (left, 14))
            draw.text((left, 1), f"{name}, {phase}" if k == 0 else name, fill=(0, 0, 0))
        pictures.append(picture)
    partial = path.with_name(f".{path.name}")
    pictures[0].save(partial, format="GIF", save_all=True, append_images=pictures[1:], duration=200, loop=0)
    partial.replace(path)


def training_curves(history: Sequence[Mapping], path: Path) -> None:
    """Loss, validation metrics and learning rate over the epochs, from the records of metrics.jsonl."""
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    axes = figure.subplots(1, 4)
    checked = [record for record in history if "val_mse" in record]
    epochs, at = [r["epoch"] for r in history], [r["epoch"] for r in checked]
    axes[0].plot(epochs, [r["train_loss"] for r in history], color=MODEL, marker=".", label="training")
    axes[0].plot(at, [r["val_loss"] for r in checked], color=COPY, linestyle="--", marker="x", label="validation")
    axes[0].set(title="weighted frequency loss", yscale="log")
    axes[0].legend(fontsize=7)
    for axis, metric in zip(axes[1:], ("mse", "ssim")):
        axis.plot(at, [r[f"val_{metric}"] for r in checked], color=MODEL, marker=".")
        axis.set(title=f"validation {TITLES[metric]}")
    axes[3].plot(epochs, [r["lr"] for r in history], color=MODEL, marker=".")
    axes[3].set(title="learning rate")
    for axis in axes:
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def frame_curves(results: Mapping[str, Mapping], path: Path) -> None:
    """{"model" | baseline: Scores.summary()} -> every metric against the future frame."""
    metrics = list(next(iter(results.values())))
    figure = Figure(figsize=(2.8 * len(metrics), 2.6), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        for k, (name, result) in enumerate(results.items()):
            if metric not in result:
                continue
            color, line = STYLES.get(name, (PALETTE[k % len(PALETTE)], ("-", "--", "-.", ":")[k % 4]))
            values = result[metric]["per_frame"]
            axis.plot(range(1, len(values) + 1), values, line, color=color, marker=".", label=name.replace("_", " "))
        axis.set(title=TITLES.get(metric, metric), xlabel="future frame")
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    save_figure(figure, path)


def side_by_side(frames: Mapping[str, Mapping[str, np.ndarray]], sequences: int, path: Path) -> None:
    """{run: {"past", "future", "predicted"}} -> the first sequences: truth, then every run's prediction, row by row."""
    lines, first = [], next(iter(frames.values()))
    for k in range(sequences):
        past = first["past"][k][-3:] if "past" in first else first["future"][k][:0]
        truth = [as_image(frame) for frame in (*past, *first["future"][k])]
        lines.append((f"truth {k}", truth))
        blank = [np.full_like(truth[0], 255)] * len(past)
        lines += [(name, blank + [as_image(frame) for frame in run["predicted"][k]]) for name, run in frames.items()]
    frame_rows(lines, path)


def frame_rows(rows: Sequence[tuple[str, Sequence[np.ndarray]]], path: Path) -> None:
    """Labelled rows of images, one below the other."""
    columns = max(len(images) for _, images in rows)
    figure = Figure(figsize=(columns * 0.9 + 1.6, len(rows) * 0.95))
    axes = figure.subplots(len(rows), columns, squeeze=False, gridspec_kw=dict(wspace=0.04, hspace=0.08))
    for (label, images), line in zip(rows, axes):
        for axis in line:
            axis.set_axis_off()
        for axis, image in zip(line, images):
            axis.imshow(image, interpolation="nearest")
        line[0].text(-0.12, 0.5, label, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
    save_figure(figure, path)


def contact_sheet(datasets: Mapping[str, Sequence], path: Path, samples: int = 4) -> None:
    """For every split a few windows, evenly spaced, one a line: past frames, then future frames."""
    lines = []
    for split, data in datasets.items():
        for index in np.linspace(0, len(data) - 1, min(samples, len(data))).astype(int):
            past, future = (x.numpy() for x in data[int(index)])
            lines.append((f"{split} {index}", [as_image(frame) for frame in (*past, *future)], len(past)))
    columns = max(len(images) for _, images, _ in lines)
    figure = Figure(figsize=(columns * 0.7 + 1, len(lines) * 0.75))
    axes = figure.subplots(len(lines), columns, squeeze=False, gridspec_kw=dict(wspace=0.04, hspace=0.1))
    for (name, images, T), line in zip(lines, axes):
        for column, axis in enumerate(line):
            axis.set(xticks=[], yticks=[])
            axis.set_axis_off()
            if column < len(images):
                axis.imshow(images[column], interpolation="nearest")
                axis.set_title(f"{column - T + 1:+d}".replace("+0", "0"), fontsize=6, pad=1)
        line[0].text(-0.12, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
    save_figure(figure, path)


class Board:
    """TensorBoard: every number of an epoch, and a picture of a prediction."""

    def __init__(self, folder: Path, epoch: int = 0) -> None:
        """epoch: how many are done; what was written of later ones is hidden."""
        self.writer = SummaryWriter(os.fspath(folder / "tensorboard"), purge_step=epoch + 1 if epoch else None)

    def scalars(self, epoch: int, record: Mapping) -> None:
        """A record of metrics.jsonl."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self.writer.add_scalar(name, value, epoch)
        for stage in record.get("filter", ()):
            self.writer.add_scalar(f"filter/removed_stage_{stage['stage']}", stage["removed"], epoch)
            self.writer.add_scalar(f"filter/threshold_moved_stage_{stage['stage']}", stage["threshold_moved"], epoch)

    def picture(self, epoch: int, past: Tensor, future: Tensor, predicted: Tensor) -> None:
        """One sequence, (T, C, H, W) each, as rows of past, truth, prediction and error."""
        rows = rows_of(*(x.float().cpu().numpy() for x in (past, future, predicted)))
        widest = max(len(row) for row in rows.values())
        blank = np.zeros_like(rows["past"][0])
        lines = [np.concatenate([*row, *[blank] * (widest - len(row))], 1) for row in rows.values()]
        self.writer.add_image("past, truth, prediction, error", np.concatenate(lines), epoch, dataformats="HWC")

    def close(self) -> None:
        """Flush to disk."""
        self.writer.close()
