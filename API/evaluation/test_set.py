"""Scoring a model, any model, on a test set beside baselines that have learned nothing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..machine.device import Machine
from ..run.files import write_arrays, write_json
from ..run.progress import Progress
from ..run.recorder import Recorder
from . import figures
from .metrics import Scores

BASELINES = {}  # name -> function (past, future's shape) -> frames; filled below


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    machine: Machine,
    recorder: Recorder,
    about: Mapping,
    protocols: Sequence[str] = ("strict",),
    lpips: Callable | None = None,
    save_predictions: int = 0,
) -> dict:
    """Stream over a test set and score model beside the baselines, under every protocol.

    Writes test.json (about, and {protocol: {"model" or baseline: {metric: …}}}), scores.npz (the numbers of every
    sequence and frame), predictions.npz of save_predictions sequences, and figures. Returns test.json's content.
    Each of many processes computes its share; the first one writes.
    """
    model.eval()
    scores = {name: Scores(protocols, lpips) for name in ("model", *BASELINES)}
    keep, progress, done = [], Progress(len(loader), "test"), 0
    for step, batch in enumerate(loader, 1):
        past, future = machine.move(batch)
        with machine.autocast():
            predicted = model(past)
        scores["model"].update(predicted, future)
        for name, baseline in BASELINES.items():
            scores[name].update(baseline(past, future), future)
        if done < save_predictions:
            keep.append([x[: save_predictions - done].float().cpu() for x in (past, future, predicted)])
        done += len(past)
        if progress.due():
            progress.show(step, "", done)
    progress.close()
    values = {name: machine.world.join(score.values()) for name, score in scores.items()}
    done = len(next(iter(values["model"].values())))
    kept = machine.world.join(dict(zip(("past", "future", "predicted"), map(torch.cat, zip(*keep))))) if keep else {}
    if not machine.world.main:
        return {}
    summaries = {name: score.summary(lambda _, name=name: values[name]) for name, score in scores.items()}
    results = {protocol: {name: summaries[name][protocol] for name in summaries} for protocol in protocols}
    content = {**about, "sequences": done, **results}
    write_json(recorder.folder / "test.json", content)
    arrays = {f"{name}/{m}": v.float().numpy() for name, measured in values.items() for m, v in measured.items()}
    write_arrays(recorder.folder / "scores.npz", **arrays)
    if kept:
        frames = {name: x[:save_predictions].numpy() for name, x in kept.items()}
        write_arrays(recorder.folder / "predictions.npz", **frames)
    draw_examples(model, loader.dataset, values["model"]["mse"], machine, recorder.figures)
    figures.frame_curves(results[protocols[0]], recorder.figures / "frames.png")
    recorder.log(f"test on {done} sequences, means per sequence (standard error):\n{table(results)}")
    return content


def copy_last(past: Tensor, future: Tensor) -> Tensor:
    """A baseline that has learned nothing: the newest past frame again and again (its mean where channels differ)."""
    last = past[:, -1:]
    if past.shape[2] != future.shape[2]:
        last = last.mean(2, keepdim=True)
    return last.expand_as(future)


def linear(past: Tensor, future: Tensor) -> Tensor:
    """Every pixel goes on as it went from the last past frame but one to the last, within [0, 1]."""
    last = copy_last(past, future)
    if past.shape[1] < 2:
        return last
    steps = torch.arange(1, future.shape[1] + 1, device=past.device, dtype=past.dtype).view(-1, 1, 1, 1)
    return (last + steps * (last - copy_last(past[:, :-1], future))).clamp(0, 1)


def black(past: Tensor, future: Tensor) -> Tensor:
    """Nothing."""
    return torch.zeros_like(future)


BASELINES |= {"copy_last": copy_last, "linear": linear, "black": black}


def draw_examples(model: nn.Module, dataset: Dataset, mse: Tensor, machine: Machine, folder: Path) -> None:
    """Strips and GIFs of the best, the median and the worst test sequence, by their mse (N, T)."""
    order = mse.mean(1).argsort()
    for name, index in {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}.items():
        past, future = dataset[int(index)]
        with machine.autocast():
            predicted = model(past[None].to(machine.device))[0]
        sequence = [x.float().cpu().numpy() for x in (past, future, predicted)]
        figures.strip(*sequence, folder / f"{name}.png", f"{name} of the test set: sequence {int(index)}")
        figures.gif(*sequence, folder / f"{name}.gif")


def table(results: Mapping[str, Mapping[str, Mapping]]) -> str:
    """{protocol: {"model" or baseline: {metric: …}}} as lines, side by side."""
    lines = []
    for protocol, rows in results.items():
        lines.append(f"{protocol:<12}" + "".join(f"{figures.TITLES[metric]:>20}" for metric in rows["model"]))
        for name, result in rows.items():
            cells = (f"{r['mean']:.4g} ({r['standard_error']:.2g})" for r in result.values())
            lines.append(f"{name:<12}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)
