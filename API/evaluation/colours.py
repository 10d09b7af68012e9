"""Frames as images: grey or colour as they are, or values on a scale of colours with a bar that says what they are."""

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..clips.scale import Scale

VALUES, ERRORS = "viridis", "cividis"  # matplotlib's; both can be told apart by colour-blind readers
BAR = 34  # height of a bar with its numbers


def as_image(frame: np.ndarray, scale: Scale | None = None) -> np.ndarray:
    """(C, H, W) in [0, 1] -> (H, W, 3) uint8: grey or colour as it is; of other channel counts the mean, in grey. With
    a scale, the first channel, dark violet for 0 to yellow for 1."""
    frame = np.asarray(frame, dtype=np.float32).clip(0, 1)
    if scale is not None:
        return coloured(frame[0], VALUES)
    if len(frame) != 3:
        frame = frame.mean(0, keepdims=True).repeat(3, 0)
    return (frame.transpose(1, 2, 0) * 255).round().astype(np.uint8)


def as_error(error: np.ndarray, largest: float = 1.0) -> np.ndarray:
    """(C, H, W) difference -> (H, W, 3) uint8, dark blue for none to yellow for `largest`."""
    return coloured((np.abs(error).mean(0) / largest).clip(0, 1), ERRORS)


def coloured(values: np.ndarray, name: str) -> np.ndarray:
    """(H, W) in [0, 1] -> (H, W, 3) uint8; white where it is NaN."""
    from matplotlib import colormaps

    return (colormaps[name].with_extremes(bad="white")(np.ma.masked_invalid(values))[..., :3] * 255).astype(np.uint8)


def font(size: int) -> ImageFont.FreeTypeFont:
    """The font of the curves."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def bars(scale: Scale | None, width: int, largest: float = 0.0) -> np.ndarray:
    """What the colours of values stand for, and those of errors up to `largest`, of [0, 1], unless that is 0:
    (BAR, width, 3) uint8; (0, width, 3) without a scale."""
    picture = Image.new("RGB", (width, BAR if scale else 0), "white")
    if scale is None:
        return np.asarray(picture)
    low, high = scale.pairs[scale.targets[0]]
    kinds = [(VALUES, low, high, scale.label()), (ERRORS, 0.0, largest * (high - low), "|error|")]
    kinds = kinds if largest else kinds[:1]
    each = min(width // len(kinds), 400)
    for k, (name, first, last, label) in enumerate(kinds):
        left, right = k * each + 4, (k + 1) * each - 8
        ramp = coloured(np.linspace(0, 1, right - left)[None].repeat(10, 0), name)
        picture.paste(Image.fromarray(ramp), (left, 4))
        line = ImageDraw.Draw(picture)
        ends, size = (f"{first:.5g}", f"{last:.5g}"), 11
        line.text((left, 16), ends[0], "black", font(size))
        line.text((right, 16), ends[1], "black", font(size), anchor="ra")
        room = right - left - sum(font(size).getlength(text) for text in ends) - 12
        while label and font(size).getlength(label) > room:
            label = label[:-1]
        line.text(((left + right) // 2, 16), label, "black", font(size), anchor="ma")
    return np.asarray(picture)
