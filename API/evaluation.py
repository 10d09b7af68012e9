"""Scoring a model, any model, on a test set beside baselines that have learned nothing."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from . import visualize
from .device import Machine, Progress
from .metrics import Scores
from .recorder import Recorder, write_json, write_predictions


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    machine: Machine,
    recorder: Recorder,
    about: Mapping,
    save_predictions: int = 0,
) -> dict:
    """Stream over a test set and score model beside the baselines; write test.json, figures and predictions.

    about: what test.json says besides. Returns its content. Keeps no frames but the save_predictions ones.
    """
    model.eval()
    scores = {name: Scores() for name in ("model", "copy_last", "black")}
    keep, progress, done = [], Progress(len(loader), "test"), 0
    for step, batch in enumerate(loader, 1):
        past, future = machine.move(batch)
        with machine.autocast():
            predicted = model(past)
        scores["model"].update(predicted, future)
        scores["copy_last"].update(copy_last(past, future), future)
        scores["black"].update(torch.zeros_like(future), future)
        if done < save_predictions:
            keep.append([x[: save_predictions - done].float().cpu() for x in (past, future, predicted)])
        done += len(past)
        if progress.due():
            progress.show(step, "", done)
    progress.close()
    results = {name: score.summary() for name, score in scores.items()}
    content = {
        **about,
        "protocol": scores["model"].protocol,
        "sequences": done,
        **results,
    }
    write_json(recorder.folder / "test.json", content)
    if keep:
        write_predictions(recorder.folder / "predictions.npz", *(torch.cat(parts).numpy() for parts in zip(*keep)))
    draw_examples(model, loader.dataset, scores["model"], machine, recorder.figures)
    visualize.frame_curves(results, recorder.figures / "frames.png")
    recorder.log(f"test on {done} sequences, means per sequence (standard error):\n{table(results)}")
    return content


def copy_last(past: Tensor, future: Tensor) -> Tensor:
    """A baseline that has learned nothing: the newest past frame again and again (its mean where channels differ)."""
    last = past[:, -1:]
    if past.shape[2] != future.shape[2]:
        last = last.mean(2, keepdim=True)
    return last.expand_as(future)


def draw_examples(model: nn.Module, dataset: Dataset, scores: Scores, machine: Machine, folder: Path) -> None:
    """Strips and GIFs of the best, the median and the worst test sequence, by MSE."""
    order = scores.values()["mse"].mean(1).argsort()
    for name, index in {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}.items():
        past, future = dataset[int(index)]
        with machine.autocast():
            predicted = model(past[None].to(machine.device))[0]
        sequence = [x.float().cpu().numpy() for x in (past, future, predicted)]
        visualize.strip(*sequence, folder / f"{name}.png", f"{name} of the test set: sequence {int(index)}")
        visualize.gif(*sequence, folder / f"{name}.gif")


def table(results: Mapping[str, Mapping]) -> str:
    """Scores.summary() of the model and the baselines, side by side."""
    lines = [f"{'':<12}" + "".join(f"{visualize.TITLES[metric]:>20}" for metric in results["model"])]
    for name, result in results.items():
        cells = (f"{r['mean']:.4g} ({r['standard_error']:.2g})" for r in result.values())
        lines.append(f"{name:<12}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)
