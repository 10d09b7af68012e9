"""Draws img/architecture.png, DFDNet as this repo builds it: `python img/draw_architecture.py`."""

from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

# Okabe-Ito colours, lightened
FRAME, SPACE, TIME, ATTENTION, DYNAMICS, PLAIN = "#f5f5f5", "#cfe8f7", "#fde3bf", "#d5efe3", "#f8d9c4", "#ffffff"


def box(axis, x: float, y: float, w: float, h: float, text: str, color: str, size: float = 8) -> tuple[float, ...]:
    """A rounded box with its lower left corner at (x, y)."""
    axis.add_patch(FancyBboxPatch((x, y), w, h, boxstyle="round,pad=0,rounding_size=0.06", fc=color, ec="#444", lw=0.9))
    axis.text(x + w / 2, y + h / 2, text, ha="center", va="center", fontsize=size, linespacing=1.25)
    return x, y, w, h


def arrow(axis, *points: tuple[float, float], text: str = "") -> None:
    """Straight lines through points, an arrowhead at the last."""
    for a, b in pairwise(points[:-1]):
        axis.plot(*zip(a, b), color="#444", lw=1, solid_capstyle="round")
    axis.add_patch(
        FancyArrowPatch(*points[-2:], arrowstyle="-|>", mutation_scale=9, color="#444", lw=1, shrinkA=0, shrinkB=0)
    )
    if text:
        (x0, y0), (x1, y1) = points[-2:]
        axis.text((x0 + x1) / 2, (y0 + y1) / 2 + 0.07, text, ha="center", va="bottom", fontsize=7, color="#333")


def network(axis) -> None:
    """Left: encoder, one temporal stage a layer, decoder."""
    axis.text(0, 5.55, "DFDNet", fontsize=11, weight="bold")
    box(axis, 0.0, 4.2, 0.9, 0.8, "past\n(T, C, H, W)", FRAME, 7.5)
    box(axis, 6.0, 4.2, 1.0, 0.8, "future\n(T, C, H, W)", FRAME, 7.5)
    stages = ("stem, ½ size\n1 DFDB\nunstem", "8 DFDBs", "2 DFDBs", "stem, max-pool\n8 DFDBs")
    for i, blocks in enumerate(stages):
        y = 4.2 - i * 1.2
        box(axis, 1.5, y, 1.1, 0.8, f"ConvSC\nstride {1 + i % 2}", SPACE)
        box(axis, 3.15, y, 1.2, 0.8, blocks, TIME)
        box(axis, 4.7, y, 0.95, 0.8, f"ConvSC\nstride {1 + i % 2}" + ("\n1×1" if i == 0 else ""), SPACE, 7.5)
        arrow(axis, (2.6, y + 0.4), (3.15, y + 0.4), text=f"$e_{i}$")
        if i < 3:
            arrow(axis, (2.05, y), (2.05, y - 0.4))
            arrow(axis, (5.17, y - 0.4), (5.17, y - 0.08))
        arrow(axis, (4.35, y + 0.4), (4.7, y + 0.4), text=f"$m_{i}$")
    arrow(axis, (0.9, 4.6), (1.5, 4.6))
    arrow(axis, (5.65, 4.6), (6.0, 4.6))
    for x, text in ((2.05, "spatial encoder"), (3.75, "temporal module"), (5.17, "spatial decoder")):
        axis.text(x, 5.2, text, ha="center", fontsize=8.5)
    axis.text(3.75, 0.28, "all T frames side by side:\nT·D channels", ha="center", va="top", fontsize=7.5, color="#333")


def block(axis) -> None:
    """Middle: a DFDB with its two branches."""
    x0 = 8.0
    axis.text(x0, 5.55, "DFDB", fontsize=11, weight="bold")
    box(axis, x0 + 0.45, 4.75, 2.0, 0.45, "1×1 conv, BN, ReLU", PLAIN)
    for k, segments in enumerate((8, 4)):
        x = x0 + k * 1.55
        for y, text, color in (
            (3.8, "LayerNorm", PLAIN),
            (3.2, "STAU", ATTENTION),
            (2.2, "LayerNorm", PLAIN),
            (1.6, f"DFDU\n{segments} segments", DYNAMICS),
        ):
            box(axis, x + 0.12, y, 1.1, 0.4, text, color)
        for top, bottom in ((3.8, 3.6), (3.2, 2.6), (2.2, 2.0), (1.6, 1.05)):
            arrow(axis, (x + 0.67, top), (x + 0.67, bottom))
        for top, plus in ((4.28, 2.88), (2.72, 1.28)):  # shortcuts
            arrow(axis, (x + 0.67, top), (x + 1.34, top), (x + 1.34, plus), (x + 0.72, plus))
            axis.text(
                x + 0.67,
                plus,
                "+",
                ha="center",
                va="center",
                fontsize=8,
                bbox=dict(boxstyle="circle,pad=0.1", fc="w", lw=0.7),
            )
        arrow(axis, (x0 + 1.45, 4.75), (x0 + 1.45, 4.5), (x + 0.67, 4.5), (x + 0.67, 4.2))
    box(axis, x0 + 0.3, 0.6, 2.3, 0.45, "concatenate, 1×1 conv, BN", PLAIN)
    arrow(axis, (x0 + 1.45, 0.6), (x0 + 1.45, 0.25), text="")
    axis.text(x0 + 1.45, 0.05, "(+ input in deep stages), ReLU", ha="center", va="center", fontsize=7.5)


def unit(axis) -> None:
    """Right: a DFDU."""
    x0 = 12.0
    axis.text(x0, 5.55, "DFDU", fontsize=11, weight="bold")
    axis.text(x0 + 2.05, 5.2, "x (H, W, c), c in segments", ha="center", fontsize=8)
    for k, name in enumerate(("height", "width")):
        x = x0 + k * 2.15
        letter = name[0]
        arrow(axis, (x0 + 2.05, 5.12), (x0 + 2.05, 4.98), (x + 0.95, 4.98), (x + 0.95, 4.75))
        box(axis, x, 4.3, 1.9, 0.45, f"decompose along {name}", DYNAMICS)
        box(
            axis,
            x,
            2.75,
            1.9,
            1.25,
            "FFT\nlow bins pass; a high bin\nonly if |X| ≥ α (learned)\ninverse FFT, every 2nd sample",
            DYNAMICS,
            7,
        )
        box(axis, x, 2.0, 1.9, 0.45, "+ MLP of the filtered signal", DYNAMICS, 7.5)
        box(axis, x, 1.25, 1.9, 0.45, f"$E_{letter}$: mean over {name}, linear", PLAIN, 7)
        for top, bottom in ((4.3, 4.0), (2.75, 2.45), (2.0, 1.7), (1.25, 0.95)):
            arrow(axis, (x + 0.95, top), (x + 0.95, bottom))
    box(axis, x0 + 0.2, 0.45, 3.65, 0.5, "$h ⊙ E_w + w ⊙ E_h + q ⊙ (E_h + E_w)$", PLAIN, 9)
    axis.text(x0 + 2.05, 0.25, "q: linear of x", ha="center", va="center", fontsize=7.5, color="#333")


def main() -> None:
    """Write the picture beside this script."""
    figure = Figure(figsize=(16.4, 6.0))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(-0.15, 16.3), ylim=(-0.25, 5.9))
    axis.set_axis_off()
    network(axis)
    block(axis)
    unit(axis)
    figure.savefig(Path(__file__).with_name("architecture.png"), dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
