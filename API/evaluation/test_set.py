"""Scoring a model, any model, on a test set beside baselines that have learned nothing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..machine.device import Machine
from ..run.progress import Progress
from ..run.recorder import Recorder
from . import figures
from .metrics import Kept, Scores, describe, metrics_of
from .results import add_earlier, checkpoint_name, circumstances, folder_for, weights_fingerprint, write_test
from .sequences import digest, fingerprints

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
    after_batch: Callable[[], object] = lambda: None,
) -> dict:
    """Stream over a test set and score model beside the baselines, under every protocol.

    about: what is tested, {"dataname", "checkpoint", and what else test.json shall say}.

    Where the data set has a scale, the protocol physical comes on top.

    Writes test.json (about, what it was measured on, and {protocol: {"model" or baseline: {metric: …}}}), scores.npz
    (the numbers of every sequence and frame), predictions.npz of save_predictions sequences, and figures: see
    results.py for where. Returns test.json's content. Each of many processes computes its share; the first one writes.
    """
    model.eval()
    scale = getattr(loader.dataset, "scale", None)
    protocols = [p for p in protocols if p != "physical"] + (["physical"] if scale else [])
    scores = {name: Scores(protocols, lpips, scale) for name in ("model", *BASELINES)}
    sequences, kept = Kept(), {name: Kept() for name in ("past", "future", "predicted")}
    progress, done = Progress(len(loader), "test", machine.world.main), 0
    for step, batch in enumerate(loader, 1):
        sequences.add(torch.stack([fingerprints(frames) for frames in batch], 1))
        past, future = machine.move(batch)
        with machine.autocast():
            predicted = model(past)
        scores["model"].update(predicted, future)
        known = scale.known(past) if scale else past
        for name, baseline in BASELINES.items():
            scores[name].update(baseline(known, future), future)
        if done < save_predictions:
            for store, frames in zip(kept.values(), (past, future, predicted)):
                store.add(frames[: save_predictions - done].float().cpu())
        done += len(past)
        if progress.due():
            progress.show(step, "", done)
        after_batch()
    progress.close()
    join = machine.world.join
    values = {name: join(score.values()) for name, score in scores.items()}
    sequences = join({"sequences": sequences.all()})["sequences"].numpy()
    frames = join({name: store.all() for name, store in kept.items()}) if save_predictions else {}
    if not machine.world.main:
        return {}
    arrays = {f"{name}/{m}": v.float().numpy() for name, measured in values.items() for m, v in measured.items()}
    arrays["sequences"] = sequences
    on = {
        "checkpoint": checkpoint_name(str(about["checkpoint"]), recorder.folder),
        "weights": weights_fingerprint(str(about["checkpoint"])),
        "data_fingerprint": digest(sequences),
        "past": past.shape[1],
        "future": future.shape[1],
        **circumstances(machine),
    }
    note = getattr(loader.dataset, "note", "")  # what a reader of the scores has to know of the data
    content = {**about, **({"note": note} if note else {}), "measured_on": on, "sequences": len(sequences)}
    folder = folder_for(recorder.folder, content)
    earlier = [protocol for protocol in add_earlier(folder, content, arrays) if protocol not in protocols]
    results = {protocol: result_of(protocol, arrays) for protocol in (*earlier, *protocols)}
    content |= {"protocols": list(results), **results}
    write_test(folder, content, arrays, {name: x[:save_predictions].numpy() for name, x in frames.items()})
    lines = table({protocol: results[protocol] for protocol in protocols})
    of = f"{len(sequences)} sequences ({note})" if note else f"{len(sequences)} sequences"
    recorder.log(f"test on {of}, means per sequence (standard error):\n{lines}")
    if folder != recorder.folder:
        recorder.log(f"it differs from the test in {recorder.folder} in what it measures, and is kept in {folder}")
    pictures = folder / "figures"
    pictures.mkdir(exist_ok=True)
    draw_examples(model, loader.dataset, values["model"]["mse"], machine, pictures, note)
    figures.frame_curves(results[protocols[0]], pictures / "frames.png", note)
    return content


def result_of(protocol: str, arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, dict]]:
    """{"model/mse": (N, T), …} -> {"model" or baseline: {metric: its mean and so on}}, JSON-ready."""

    def one(name: str) -> dict[str, dict]:
        values = {
            key.partition("/")[2]: torch.from_numpy(v).double()
            for key, v in arrays.items()
            if key.startswith(f"{name}/")
        }
        return {metric: describe(m, values[m]) for metric, m in metrics_of(protocol, values).items()}

    return {name: one(name) for name in ("model", *BASELINES)}


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


def draw_examples(
    model: nn.Module, dataset: Dataset, mse: Tensor, machine: Machine, folder: Path, note: str = ""
) -> None:
    """Strips and GIFs of the best, the median and the worst test sequence, by their mse (N, T)."""
    order = mse.mean(1).argsort()
    for name, index in {"best": order[0], "median": order[len(order) // 2], "worst": order[-1]}.items():
        past, future = dataset[int(index)]
        with machine.autocast():
            predicted = model(past[None].to(machine.device))[0]
        sequence = [x.float().cpu().numpy() for x in (past, future, predicted)]
        title = f"{name} of the test set: sequence {int(index)}" + (f" ({note})" if note else "")
        scale = getattr(dataset, "scale", None)
        figures.strip(*sequence, folder / f"{name}.png", title, scale)
        figures.gif(*sequence, folder / f"{name}.gif", scale=scale)


def table(results: Mapping[str, Mapping[str, Mapping]]) -> str:
    """{protocol: {"model" or baseline: {metric: …}}} as lines, side by side."""
    lines = []
    for protocol, rows in results.items():
        lines.append(f"{protocol:<12}" + "".join(f"{figures.title_of(metric):>20}" for metric in rows["model"]))
        for name, result in rows.items():
            cells = (f"{r['mean']:.4g} ({r['standard_error']:.2g})" for r in result.values())
            lines.append(f"{name:<12}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)
