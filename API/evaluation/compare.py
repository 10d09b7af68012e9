"""Several runs side by side: one table, curves, the same sequences, and whether a difference is more than noise.

A run is a run folder with scores.npz and, for pictures, predictions.npz; or predictions of any other model: an npz
file, or a folder with predictions.npz, that holds `future` and `predicted` (N, T, C, H, W), and `past` if there is one.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..run.files import read_arrays, write_atomically
from . import figures
from .metrics import HIGHER_IS_BETTER, PROTOCOLS, Scores, describe

CONFIDENCE = 1.96  # standard errors: 95 % of a normal distribution
CAVEAT = (
    "±: 95 % confidence, over the test sequences alone. Another training seed moves scores too, often further: where "
    "two recipes are compared, train each with several."
)


@dataclass
class Run:
    """What is known of a run: {measurement: (N, T)}, and the frames it kept."""

    name: str
    values: dict[str, np.ndarray]
    frames: dict[str, np.ndarray]  # past (perhaps), future, predicted


def load_frames(path: Path) -> dict[str, np.ndarray]:
    """future and predicted, and past where it is there, of a predictions file."""
    arrays = read_arrays(path)
    for name in ("future", "predicted"):
        if name not in arrays or arrays[name].ndim != 5 or arrays[name].dtype.kind not in "fu":
            raise ValueError(f"{path}: needs an array '{name}' (N, T, C, H, W) of floats in [0, 1] or uint8")
    if arrays["future"].shape != arrays["predicted"].shape:
        shapes = f"future {arrays['future'].shape}, predicted {arrays['predicted'].shape}"
        raise ValueError(f"{path}: {shapes} must be alike")
    kept = {name: arrays[name] for name in ("past", "future", "predicted") if name in arrays}
    return {name: a.astype(np.float32) / (255 if a.dtype == np.uint8 else 1) for name, a in kept.items()}


def load_run(path: Path, protocols: Sequence[str]) -> Run:
    """A run folder of ours, or predictions of anyone. Raises ValueError, naming path, where it is neither."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such run folder or file; `python main.py test` makes a tested run")
    predictions = path if path.suffix == ".npz" else path / "predictions.npz"
    frames = load_frames(predictions) if predictions.is_file() else {}
    if (path / "scores.npz").is_file():
        arrays = read_arrays(path / "scores.npz")
        values = {name.removeprefix("model/"): a for name, a in arrays.items() if name.startswith("model/")}
        for protocol in protocols:
            if {m for metric, m in PROTOCOLS[protocol].items() if metric != "lpips"} - set(values):
                command = f"test it again with --protocol {' '.join(protocols)}"
                raise ValueError(f"{path}: was not tested under {protocol}; {command}")
        return Run(path.resolve().name, values | {"copy_last": arrays["copy_last/mse"]}, frames)
    if not frames:
        raise ValueError(f"{path}: neither a tested run (scores.npz) nor predictions (predictions.npz)")
    scores = Scores(protocols)
    for predicted, future in zip(frames["predicted"], frames["future"]):
        scores.update(torch.from_numpy(predicted)[None], torch.from_numpy(future)[None])
    values = {name: v.numpy() for name, v in scores.values().items()}
    return Run(path.stem if path.suffix == ".npz" else path.resolve().name, values, frames)


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """(N, T) values of the same sequences -> (mean of ours - theirs, half the width of its 95 % interval)."""
    difference = (ours - theirs).mean(1)
    error = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else np.inf
    return difference.mean(), CONFIDENCE * error


def verdict(metric: str, difference: float, half_width: float) -> str:
    """In words: better or worse beyond noise, or not."""
    if abs(difference) <= half_width:
        return "within noise"
    return "better" if (difference > 0) == (metric in HIGHER_IS_BETTER) else "worse"


def rows(runs: Sequence[Run], protocols: Sequence[str]) -> list[dict[str, str | float]]:
    """A row a run, protocol and metric; the difference is that to the first run, sequence by sequence."""
    table = []
    for protocol in protocols:
        for run in runs:
            for metric, measurement in PROTOCOLS[protocol].items():
                if measurement not in run.values:
                    continue  # LPIPS was not asked for
                values = run.values[measurement]
                result = describe(measurement, torch.from_numpy(values).double())
                row = {"protocol": protocol, "run": run.name, "metric": metric, "sequences": len(values)}
                row |= {"mean": result["mean"], "standard_error": result["standard_error"]}
                first = runs[0].values.get(measurement)
                if run is not runs[0] and first is not None:
                    if first.shape == values.shape and same_sequences(runs[0], run):
                        difference, half_width = paired_difference(values.astype(float), first.astype(float))
                        row |= {"difference": difference, "plus_minus": half_width}
                        row["verdict"] = verdict(metric, difference, half_width)
                    else:
                        row["verdict"] = "other sequences"
                table.append(row)
    return table


def same_sequences(a: Run, b: Run) -> bool:
    """Whether two runs were scored on the same sequences, as far as what they kept tells."""
    if "copy_last" in a.values and "copy_last" in b.values:  # a fingerprint of past and future
        return np.allclose(a.values["copy_last"], b.values["copy_last"], rtol=1e-3)
    if a.frames and b.frames:
        count = min(len(a.frames["future"]), len(b.frames["future"]))
        return np.allclose(a.frames["future"][:count], b.frames["future"][:count], atol=1e-2)
    return True


def as_markdown(table: Sequence[dict]) -> str:
    """The rows as one line a run and a column a metric."""
    lines = []
    for protocol in dict.fromkeys(row["protocol"] for row in table):
        chosen = [row for row in table if row["protocol"] == protocol]
        metrics = list(dict.fromkeys(row["metric"] for row in chosen))
        lines.append(f"| {protocol} | " + " | ".join(figures.TITLES[m] for m in metrics) + " |")
        lines.append("|---" * (len(metrics) + 1) + "|")
        for run in dict.fromkeys(row["run"] for row in chosen):
            cells = []
            for metric in metrics:
                row = next((r for r in chosen if r["run"] == run and r["metric"] == metric), None)
                if row is None:
                    cells.append("–")
                    continue
                cell = f"{row['mean']:.4g} ({row['standard_error']:.2g})"
                if "difference" in row:
                    cell += f", {row['difference']:+.3g} ± {row['plus_minus']:.2g}: {row['verdict']}"
                elif "verdict" in row:
                    cell += f", {row['verdict']}"
                cells.append(cell)
            lines.append(f"| {run} | " + " | ".join(cells) + " |")
        lines.append("")
    if any("difference" in row for row in table):
        lines += [CAVEAT, ""]
    return "\n".join(lines)


def compare_runs(paths: Sequence[str | Path], protocols: Sequence[str], folder: Path) -> str:
    """Write comparison.md and .csv, curves.png and, where frames were kept, sequences.png; return the table.

    The difference of a run is that to the first one, sequence by sequence, with a 95 % confidence interval.
    """
    runs = [load_run(Path(path), protocols) for path in paths]
    names = [run.name for run in runs]
    for k, run in enumerate(runs):
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({k + 1})"
    table = rows(runs, protocols)
    folder.mkdir(parents=True, exist_ok=True)
    text = as_markdown(table)
    write_atomically(folder / "comparison.md", text.encode())
    data = io.StringIO()
    columns = (
        "protocol",
        "run",
        "metric",
        "sequences",
        "mean",
        "standard_error",
        "difference",
        "plus_minus",
        "verdict",
    )
    writer = csv.DictWriter(data, columns)
    writer.writeheader()
    writer.writerows(table)
    write_atomically(folder / "comparison.csv", data.getvalue().encode())
    measured = PROTOCOLS[protocols[0]]
    curves = {}
    for run in runs:
        means = {metric: run.values[name].mean(0) for metric, name in measured.items() if name in run.values}
        curves[run.name] = {metric: {"per_frame": mean.tolist()} for metric, mean in means.items()}
    figures.frame_curves(curves, folder / "curves.png")
    kept = [run for run in runs if run.frames]
    if kept and all(same_sequences(kept[0], run) for run in kept):
        sequences = min(3, *(len(run.frames["future"]) for run in kept))
        figures.side_by_side({run.name: run.frames for run in kept}, sequences, folder / "sequences.png")
    return text
