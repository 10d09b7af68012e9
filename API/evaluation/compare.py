"""Several runs side by side: one table, curves, the same sequences, and whether a difference is more than noise.

A run is a run folder with scores.npz and, for pictures, predictions.npz; or predictions of any other model: an npz
file, or a folder with predictions.npz, that holds `future` and `predicted` (N, T, C, H, W), and `past` if there is one.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from .. import UserError
from ..run.files import read_arrays, remove, write_atomically
from . import figures
from .metrics import HIGHER_IS_BETTER, PROTOCOLS, Scores, describe, metrics_of
from .sequences import fingerprints, match
from .test_set import BASELINES

CONFIDENCE = 1.96  # standard errors: 95 % of a normal distribution
CAVEAT = (
    "±: 95 % confidence, over the test sequences alone. Another training seed moves scores too, often further: where "
    "two recipes are compared, train each with several."
)
COLUMNS = (
    "protocol", "run", "metric", "sequences", "mean", "standard_error", "pairs", "difference", "plus_minus", "verdict",
)  # fmt: skip


@dataclass
class Run:
    """What is known of a run.

    values: {measurement: (N, T)}. frames: past (perhaps), future, predicted of the sequences that it kept.
    sequences: fingerprints (N,) of the targets, or None in runs that were tested before they were written.
    baselines: {"copy_last", "black": their MSE (N, T)}, which depends on the data alone. note: a line about its values.
    """

    name: str
    values: dict[str, np.ndarray]
    frames: dict[str, np.ndarray] = field(default_factory=dict)
    sequences: np.ndarray | None = None
    baselines: dict[str, np.ndarray] = field(default_factory=dict)
    note: str = ""


def load_frames(
    path: Path, limits: tuple[float, float] | None = None, ours: bool = False
) -> tuple[dict[str, np.ndarray], str]:
    """(future and predicted, and past where it is there, as float32 in [0, 1]; a line about the values in the file).

    limits: the values of black and white in the file, by default 0 and 255 for uint8, else 0 and 1. ours: they are of
    a test here, and may leave [0, 1] where the data do.
    """
    arrays = read_arrays(path)
    for name in ("future", "predicted"):
        if name not in arrays or arrays[name].ndim != 5 or arrays[name].dtype.kind not in "fui":
            raise UserError(f"{path}: needs an array '{name}' (N, T, C, H, W) of floats in [0, 1] or uint8")
    future = arrays["future"].shape
    if future != arrays["predicted"].shape or 0 in future:
        shapes = f"future {future}, predicted {arrays['predicted'].shape}"
        raise UserError(f"{path}: {shapes} must be alike, and not empty")
    past = arrays["past"].shape if "past" in arrays else future
    if len(past) != 5 or (past[0], *past[3:]) != (future[0], *future[3:]) or 0 in past:
        raise UserError(
            f"{path}: past {past} must be (N, T, C, H, W), with N, H, W as of future {future}; or leave it out"
        )
    kept, notes = {}, []
    for name in ("past", "future", "predicted"):
        if name in arrays:
            kept[name], note = scaled(arrays.pop(name), limits, ours or name == "predicted", f"{path}: '{name}'")
            notes.append(f"{name} {note}")
    return kept, f"{path}: {', '.join(notes)}"


def scaled(array: np.ndarray, limits: tuple[float, float] | None, network: bool, where: str) -> tuple[np.ndarray, str]:
    """(array as float32 with `limits` at 0 and 1, the range found in words). UserError for other values than those.

    network: its values are a network's, which may leave the range: any with limits, else by no more than 1.
    """
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not np.isfinite([low, high]).all():
        bad = (~np.isfinite(array)).any((1, 2, 3, 4)).nonzero()[0]
        raise UserError(f"{where} holds NaN or infinity in {len(bad)} sequences, the first of them number {bad[0]}")
    black, white = limits or ((0, 255) if array.dtype == np.uint8 else (0, 1))
    room = (white - black) * 1e-3  # for rounding
    if network:
        room = np.inf if limits else 1.0
    found = f"{low:.6g} to {high:.6g} ({array.dtype})"
    integers = limits is None and array.dtype.kind in "ui" and array.dtype != np.uint8
    if integers or low < black - room or high > white + room:
        expected = f"--range {black:g} {white:g}" if limits else "[0, 1] or uint8"
        raise UserError(f"{where} holds {found}, not {expected}: give its values of black and white, --range LOW HIGH")
    return (array.astype(np.float32) - np.float32(black)) / np.float32(white - black), found


def load_run(path: Path, protocols: Sequence[str], limits: tuple[float, float] | None = None) -> Run:
    """A run folder of ours, or predictions of anyone. Raises UserError, naming path, where it is neither."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such run folder or file; `python main.py test` makes a tested run")
    predictions = path if path.suffix == ".npz" else path / "predictions.npz"
    tested = (path / "scores.npz").is_file()
    shown = load_frames(predictions, (0, 1) if tested else limits, tested) if predictions.is_file() else ({}, "")
    frames, note = shown
    if tested:
        arrays = read_arrays(path / "scores.npz")
        values = {name.removeprefix("model/"): a for name, a in arrays.items() if name.startswith("model/")}
        for protocol in protocols:
            if {m for metric, m in PROTOCOLS[protocol].items() if metric != "lpips"} - set(values):
                command = f"test it again with --protocol {' '.join(protocols)}"
                command = "its data have no scale" if protocol == "physical" else command
                raise UserError(f"{path}: was not tested under {protocol}; {command}")
        future = arrays["sequences"][:, 1] if "sequences" in arrays else None
        baselines = {name: arrays[f"{name}/mse"] for name in ("copy_last", "black") if f"{name}/mse" in arrays}
        return Run(name_of(path), values, frames, future, baselines)
    if not frames:
        raise UserError(f"{path}: neither a tested run (scores.npz) nor predictions (predictions.npz)")
    if "physical" in protocols:
        raise UserError(f"{path}: --protocol physical takes run folders, of data that have a scale")
    scores = Scores(protocols)
    for predicted, future in zip(frames["predicted"], frames["future"]):
        scores.update(torch.from_numpy(predicted)[None], torch.from_numpy(future)[None])
    values = {name: v.numpy() for name, v in scores.values().items()}
    return Run(name_of(path), values, frames, fingerprints_of(frames), baselines_of(frames), note)


def name_of(path: Path) -> str:
    """What a run is called: its file's or folder's name, with the run's own for one of its tests."""
    if path.suffix == ".npz":
        return path.stem
    path = path.resolve()
    return f"{path.parents[1].name}/{path.name}" if path.parent.name == "tests" else path.name


def fingerprints_of(frames: Mapping[str, np.ndarray]) -> np.ndarray:
    """(N,) of the targets."""
    return torch.cat([fingerprints(torch.from_numpy(future)[None]) for future in frames["future"]]).numpy()


def baselines_of(frames: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"copy_last", "black": their MSE (N, T)} on the frames, the former where the past is there."""
    past, future = (torch.from_numpy(frames[part]) if part in frames else None for part in ("past", "future"))
    names = ("black",) if past is None else ("copy_last", "black")
    return {name: (BASELINES[name](past, future) - future).square().sum((2, 3, 4)).numpy() for name in names}


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
    """A row a run, protocol and metric; the difference is that to the first run, over the sequences in both."""
    table, pairs = [], [same_sequences(runs[0], run) for run in runs]
    for protocol in protocols:
        for run, (theirs, ours) in zip(runs, pairs):
            for metric, measurement in metrics_of(protocol, run.values).items():  # LPIPS only where asked for
                values = run.values[measurement]
                result = describe(measurement, torch.from_numpy(values).double())
                row = {"protocol": protocol, "run": run.name, "metric": metric, "sequences": len(values)}
                row |= {"mean": result["mean"], "standard_error": result["standard_error"]}
                first = runs[0].values.get(measurement)
                if run is not runs[0] and first is not None:
                    row["pairs"] = len(ours)
                    if len(ours):
                        pair = values[ours].astype(float), first[theirs].astype(float)
                        row["difference"], row["plus_minus"] = paired_difference(*pair)
                        row["verdict"] = verdict(metric, row["difference"], row["plus_minus"])
                    else:
                        row["verdict"] = "other sequences"
                table.append(row)
    return table


def same_sequences(a: Run, b: Run) -> tuple[np.ndarray, np.ndarray]:
    """(positions in a, positions in b) of the sequences that both were scored on.

    By their fingerprints; where those do not tell, as in runs of older versions or where frames differ by a grey level,
    a sequence is that of the same number if the baselines that both know do as well on both.
    """
    frames = [next(iter(run.values.values())).shape[1] for run in (a, b)]
    none = np.array([], int)
    if frames[0] != frames[1]:
        return none, none
    if a.sequences is not None and b.sequences is not None:
        found = match(a.sequences, b.sequences)
        if len(found[0]):
            return found
    counts = [len(next(iter(run.values.values()))) for run in (a, b)]
    common = a.baselines.keys() & b.baselines.keys()
    if not common and counts[0] != counts[1]:
        return none, none
    alike = np.ones(min(counts), bool)
    for name in common:
        ours, theirs = (run.baselines[name][: min(counts)] for run in (a, b))
        alike &= np.isclose(ours, theirs, rtol=1e-3).all(1)
    return alike.nonzero()[0], alike.nonzero()[0]


def as_markdown(table: Sequence[dict]) -> str:
    """The rows as one line a run and a column a metric."""
    lines = []
    for protocol in dict.fromkeys(row["protocol"] for row in table):
        chosen = [row for row in table if row["protocol"] == protocol]
        metrics = list(dict.fromkeys(row["metric"] for row in chosen))
        most = chosen[0]["sequences"]  # of the run that the others are compared with
        lines.append(f"| {protocol} | " + " | ".join(figures.title_of(m) for m in metrics) + " |")
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
                    some = row["pairs"] < row["sequences"] or row["pairs"] < most
                    cell += f" (over the {row['pairs']} sequences in both)" if some else ""
                elif "verdict" in row:
                    cell += f", {row['verdict']}"
                cells.append(cell)
            lines.append(f"| {run} | " + " | ".join(cells) + " |")
        lines.append("")
    if any("difference" in row for row in table):
        lines += [CAVEAT, ""]
    return "\n".join(lines)


def compare_runs(
    paths: Sequence[str | Path], protocols: Sequence[str], folder: Path, limits: tuple[float, float] | None = None
) -> str:
    """Write comparison.md and .csv, curves.png and, where frames were kept, sequences.png; return the table.

    The difference of a run is that to the first one, sequence by sequence, with a 95 % confidence interval.
    limits: see load_frames; for predictions of others, as our own are in [0, 1].
    """
    if limits and not limits[0] < limits[1]:
        raise UserError(f"--range {limits[0]:g} {limits[1]:g}: give the value of black, then that of white, above it")
    runs = [load_run(Path(path), protocols, limits) for path in paths]
    names = [run.name for run in runs]
    for k, run in enumerate(runs):
        if names.count(run.name) > 1:
            run.name = f"{run.name} ({k + 1})"
    table = rows(runs, protocols)
    text = "\n".join([*(f"{run.note}\n" for run in runs if run.note), as_markdown(table)])
    data = io.StringIO()
    writer = csv.DictWriter(data, COLUMNS)
    writer.writeheader()
    writer.writerows(table)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "comparison.md", text.encode())
        write_atomically(folder / "comparison.csv", data.getvalue().encode())
    except OSError as error:
        raise UserError(f"--res_dir: cannot write to {folder} ({error.strerror or error})") from None
    curves = {}
    for run in runs:
        means = {metric: run.values[m].mean(0) for metric, m in metrics_of(protocols[0], run.values).items()}
        curves[run.name] = {metric: {"per_frame": mean.tolist()} for metric, mean in means.items()}
    figures.frame_curves(curves, folder / "curves.png")
    shown = frames_in_all([run for run in runs if run.frames])
    if shown:
        figures.side_by_side(shown, folder / "sequences.png")
    else:
        remove(folder / "sequences.png")  # of another comparison
    return text


def frames_in_all(runs: Sequence[Run], most: int = 3) -> dict[str, dict[str, np.ndarray]]:
    """{run: frames} of the first sequences, `most` or fewer, that all runs kept; {} where there are none."""
    kept = []
    for run in runs:
        baselines = baselines_of(run.frames)
        kept.append(Run(run.name, baselines, run.frames, fingerprints_of(run.frames), baselines))
    pairs = [dict(zip(*(places.tolist() for places in same_sequences(kept[0], run)))) for run in kept]
    common = [k for k in pairs[0] if all(k in pair for pair in pairs)][:most] if pairs else []
    places = [[pair[k] for k in common] for pair in pairs]
    return {r.name: {part: a[p] for part, a in r.frames.items()} for r, p in zip(kept, places) if common}
