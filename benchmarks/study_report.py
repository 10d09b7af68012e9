"""The table and the figure of a study, from the rows of its runs (study.py)."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.studies import Study

HIGHER = ("ssim", "psnr")


def interval(differences: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of the mean of paired differences, by Student's t."""
    from scipy.stats import t

    n = len(differences)
    return float("inf") if n < 2 else t.ppf(0.975, n - 1) * statistics.stdev(differences) / n**0.5


def table(study: Study, rows: Sequence[Mapping]) -> str:
    """Markdown: a line a variant; means over seeds, standard deviations in parentheses, and the paired
    difference to the first variant with its 95 % interval."""
    first = {row["seed"]: row for row in rows if row["variant"] == study.variants[0].name}
    lines = [
        "| | seeds | G multiply-adds | minutes | "
        + " | ".join(m.upper() for m in study.metrics)
        + " | validation MSE |"
    ]
    lines.append("|---" * (5 + len(study.metrics)) + "|")
    for variant in study.variants:
        mine = [row for row in rows if row["variant"] == variant.name]
        if not mine:
            continue
        minutes = statistics.mean(row["minutes"] for row in mine)
        cells = [variant.name, str(len(mine)), f"{mine[0]['multiply_adds'] / 1e9:.2f}", f"{minutes:.1f}"]
        for metric in study.metrics:
            digits = 3 if metric == "ssim" else 2 if metric == "psnr" else 1
            cells.append(summarise([row["test"][metric] for row in mine], digits))
            pairs = [row["test"][metric] - first[row["seed"]]["test"][metric] for row in mine if row["seed"] in first]
            if variant is not study.variants[0] and len(pairs) > 1:
                cells[-1] += f", {statistics.mean(pairs):+.{digits}f} ± {interval(pairs):.{digits}f}"
        cells.append(summarise([row["validation"]["mse"] for row in mine], 1))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summarise(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation over seeds."""
    spread = f" ({statistics.stdev(values):.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def draw(study: Study, rows: Sequence[Mapping], path: Path) -> None:
    """A dot a run, a line a variant, for every metric."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [v.name for v in study.variants if any(row["variant"] == v.name for row in rows)]
    figure, axes = plt.subplots(1, len(study.metrics), sharey=True, squeeze=False,
                                figsize=(3 * len(study.metrics) + 1, 0.35 * len(names) + 1.2))  # fmt: skip
    for axis, metric in zip(axes[0], study.metrics):
        for y, name in enumerate(names):
            values = [row["test"][metric] for row in rows if row["variant"] == name]
            axis.plot(values, [y] * len(values), "o", alpha=0.6, color="C0")
            axis.plot([statistics.mean(values)], [y], "|", markersize=14, color="black")
        axis.set(title=f"{metric.upper()} ({'higher' if metric in HIGHER else 'lower'} is better)")
        axis.title.set_fontsize(9)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].invert_yaxis()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
