"""Pictures of a run, drawn without a screen: strips of frames, GIFs, curves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw

from ..clips.scale import Scale
from ..run.files import save_atomically
from .colours import as_error, as_image, bars, font

# Okabe and Ito's colours, which colour-blind readers can tell apart; dashes tell them apart in print.
MODEL, COPY, LINEAR, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"
PALETTE = (MODEL, COPY, LINEAR, "#CC79A7", "#E69F00", "#56B4E9", BLACK)
STYLES = {"model": (MODEL, "-"), "copy_last": (COPY, "--"), "linear": (LINEAR, "-."), "black": (BLACK, ":")}
TITLES = {"mse": "MSE", "mae": "MAE", "rmse": "RMSE", "ssim": "SSIM", "psnr": "PSNR (dB)", "lpips": "LPIPS"}
SIDE, LARGEST = 128, 320  # pixels: frames in strips are enlarged up to the one, and no larger than the other


@dataclass
class Row:
    """Of a picture: a label, images (H, W, 3) uint8 or None for a gap, the number of the first one's frame, and the
    largest error, on [0, 1], that colours of errors tell apart."""

    label: str
    images: Sequence[np.ndarray | None]
    first: int = 1
    largest: float = 0.0


def rows_of(past: np.ndarray, future: np.ndarray, predicted: np.ndarray, scale: Scale | None = None) -> list[Row]:
    """(T, C, H, W) each -> the four rows of a strip. With a scale, errors are of the channel that is shown, and their
    colours reach up to the largest of them."""
    errors, largest = predicted - future, 1.0
    if scale:
        past, errors = scale.known(past), errors[:, :1]
        largest = float(np.abs(errors).max()) or 1.0
    return [
        Row("past", [as_image(frame, scale) for frame in past], 1 - len(past)),
        Row("truth", [as_image(frame, scale) for frame in future]),
        Row("prediction", [as_image(frame, scale) for frame in predicted]),
        Row("|error|", [as_error(error, largest) for error in errors], largest=largest),
    ]


def title_of(metric: str) -> str:
    """A metric's name in tables; rmse_2 is that of channel 2."""
    name, _, channel = metric.partition("_")
    return f"{TITLES.get(name, name)} channel {channel}" if channel else TITLES.get(name, name)


def number(frame: int) -> str:
    """A frame's number as pictures show it: 0 is the newest past frame, +1 the first future one."""
    return f"{frame:+d}" if frame else "0"


def tiles(rows: Sequence[Row], title: str = "", scale: Scale | None = None) -> Image.Image:
    """Labelled rows of images, one below the other; frame numbers stand above a row where they are not those of the
    row before. Small frames are enlarged, and large ones made smaller, by one factor for all. scale: of their colours,
    which bars at the bottom explain."""
    H, W = next(image for row in rows for image in row.images if image is not None).shape[:2]
    factor = max(1, SIDE // max(H, W)) if max(H, W) <= LARGEST else LARGEST / max(H, W)
    h, w, gap, line = round(H * factor), round(W * factor), 4, 18
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.BOX
    small, large = font(13), font(15)
    left = 3 * gap + max(round(small.getlength(text)) for row in rows for text in row.label.split("\n"))
    numbered = [k == 0 or row.first != rows[k - 1].first for k, row in enumerate(rows)]
    columns = max(len(row.images) for row in rows)
    width = max(left + columns * (w + gap), round(large.getlength(title)) + 2 * gap)
    height = gap + (line + gap) * bool(title) + sum(max(h, 36 if "\n" in row.label else line) + gap for row in rows)
    legend = bars(scale, width, max(row.largest for row in rows))
    picture = Image.new("RGB", (width, height + line * sum(numbered) + len(legend)), "white")
    draw, top = ImageDraw.Draw(picture), gap
    if title:
        draw.text((gap, top), title, "black", large)
        top += line + gap
    for row, shown in zip(rows, numbered):
        places = range(left, width, w + gap)
        if shown:
            for k, x in enumerate(places[: len(row.images)]):
                draw.text((x + w // 2, top + line - 2), number(row.first + k), "black", small, anchor="mb")
            top += line
        for image, x in zip(row.images, places):
            if image is not None:
                picture.paste(Image.fromarray(image).resize((w, h), how), (x, top))
        draw.multiline_text((left - 2 * gap, top + h / 2), row.label, "black", small, anchor="rm", align="right")
        top += max(h, 36 if "\n" in row.label else line) + gap
    if len(legend):
        picture.paste(Image.fromarray(legend), (0, top))
    return picture


def save_tiles(rows: Sequence[Row], path: Path, title: str = "", scale: Scale | None = None) -> None:
    """Write the picture of some rows, whole or not at all."""
    save_atomically(path, lambda file: tiles(rows, title, scale).save(file, format="PNG"))


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    save_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150, bbox_inches="tight"))


def strip(
    past: np.ndarray, future: np.ndarray, predicted: np.ndarray, path: Path, title: str = "", scale: Scale | None = None
) -> None:
    """One sequence, (T, C, H, W) arrays, as four rows of frames: past, truth, prediction, absolute error."""
    save_tiles(rows_of(past, future, predicted, scale), path, title, scale)


def caption(text: str, width: int, height: int) -> np.ndarray:
    """(height, at most width) uint8: black on white, in letters that fit."""
    size = next((s for s in range(max(height - 5, 6), 5, -1) if font(s).getlength(text) <= width - 4), 5)
    line = Image.new("L", (min(width, round(font(size).getlength(text)) + 4), height), 255)
    ImageDraw.Draw(line).text((2, height // 2), text, 0, font(size), anchor="lm")
    return np.asarray(line)


def gif(
    past: np.ndarray,
    future: np.ndarray,
    predicted: np.ndarray,
    path: Path,
    enlarge: int = 3,
    scale: Scale | None = None,
) -> None:
    """One sequence, (T, C, H, W) arrays, moving: truth, prediction and error side by side, the past before them."""
    H, W = past.shape[-2:]
    enlarge = max(1, min(enlarge, 512 // max(H, W)) if max(H, W) > 170 else enlarge)
    h, w, blank = H * enlarge, W * enlarge, np.full((H, W, 3), 32, np.uint8)
    *_, errors = rows = rows_of(past, future, predicted, scale)
    shown, truth, prediction, error = (row.images for row in rows)
    frames = [*((image, image, blank) for image in shown), *zip(truth, prediction, error)]
    legend, pictures = Image.fromarray(bars(scale, (w + 4) * 3, errors.largest)), []
    for place, images in enumerate(frames, 1 - len(past)):
        picture = Image.new("RGB", ((w + 4) * 3, h + 16 + legend.height), "white")
        picture.paste(legend, (0, h + 16))
        names = ("truth", "prediction", "|error|") if place > 0 else ("past", "", "")
        texts = (f"{number(place)} {names[0]}", *names[1:])
        for k, (image, text) in enumerate(zip(images, texts)):
            left = k * (w + 4) + 2
            picture.paste(Image.fromarray(caption(text, w, 14)), (left, 0))
            picture.paste(Image.fromarray(image).resize((w, h), Image.Resampling.NEAREST), (left, 14))
        pictures.append(picture)
    moving = dict(format="GIF", save_all=True, append_images=pictures[1:], duration=200, loop=0)
    save_atomically(path, lambda file: pictures[0].save(file, **moving))


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
        axis.set(xlabel="epoch", xlim=(epochs[0] - 0.5, epochs[-1] + 0.5))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def frame_curves(results: Mapping[str, Mapping], path: Path, title: str = "") -> None:
    """{"model" | baseline | run: {metric: {"per_frame": …}}} -> every metric against the future frame.

    The scale is that of all curves but black's, which lies far away from them; where it is outside, that is said.
    """
    metrics = list(next(iter(results.values())))
    figure = Figure(figsize=(2.8 * len(metrics), 2.9), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        shown = []
        for k, (name, result) in enumerate(results.items()):
            if metric not in result:
                continue
            color, line = STYLES.get(name, (PALETTE[k % len(PALETTE)], ("-", "--", "-.", ":")[k % 4]))
            values = result[metric]["per_frame"]
            axis.plot(range(1, len(values) + 1), values, line, color=color, marker=".", label=name.replace("_", " "))
            shown += values if name != "black" else []
        if shown and "black" in results and metric in results["black"]:
            low, high = min(shown), max(shown)
            room = 0.08 * (high - low) or 0.08 * abs(high) or 1
            axis.set_ylim(low - room, high + room)
            black = results["black"][metric]["per_frame"]
            if min(black) > high + room or max(black) < low - room:
                side = "above" if min(black) > high else "below"
                text = f"black: {min(black):.3g} to {max(black):.3g}, {side}"
                axis.text(0.5, 1.0, text, fontsize=6.5, ha="center", va="bottom", transform=axis.transAxes)
        axis.set_title(title_of(metric), pad=14)
        longest = max(len(result[metric]["per_frame"]) for result in results.values() if metric in result)
        axis.set(xlabel="future frame", xlim=(0.5, longest + 0.5))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=min(len(labels), 4), loc="outside lower center")
    save_figure(figure, path)


def side_by_side(frames: Mapping[str, Mapping[str, np.ndarray]], path: Path) -> None:
    """{run: {"past", "future", "predicted"}} of the same sequences -> truth, then each run's prediction, row by row."""
    rows, first = [], next(iter(frames.values()))
    for k, future in enumerate(first["future"]):
        past = first["past"][k][-3:] if "past" in first else future[:0]
        rows.append(Row(f"truth {k}", [as_image(frame) for frame in (*past, *future)], 1 - len(past)))
        for name, run in frames.items():
            rows.append(Row(name, [None] * len(past) + [as_image(f) for f in run["predicted"][k]], 1 - len(past)))
    save_tiles(rows, path)


def contact_sheet(datasets: Mapping[str, Sequence], path: Path, samples: int = 4) -> None:
    """For every split a few windows, evenly spaced, one a line: past frames, then future frames."""
    rows = []
    for split, data in datasets.items():
        scale = getattr(data, "scale", None)
        for index in np.linspace(0, len(data) - 1, min(samples, len(data))).astype(int):
            past, future = (x.numpy() for x in data[int(index)])
            past = scale.known(past) if scale else past
            rows.append(Row(f"{split} {index}", [as_image(frame, scale) for frame in (*past, *future)], 1 - len(past)))
    save_tiles(rows, path, scale=scale)
