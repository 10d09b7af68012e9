"""The model card, README.md of a model on the hub: what it is, how to load it, what it scores, how it was made."""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import EvalResult
from torch import nn

from ..evaluation.results import read_test, weights_fingerprint
from ..run.environment import environment
from ..run.recorder import run_of
from .hub import FLAGS

PAPER = "DFDNet: Disentangling and Filtering Dynamics for Enhanced Video Prediction"
TEXT = """# {name}

{kind} trained on `{dataname}`: it predicts {T_out} frames (C×H×W = {C_out}×{H}×{W}) from {T} ({C}×{H}×{W}).
{parameters:.2f} M parameters. The method is that of *{paper}*; this is a model of its PyTorch reproduction.

## Use

In a checkout of the reproduction:

```python
from {module} import {kind}

model = {kind}.from_pretrained("{source}")
future = model(past)  # past: (B, {T}, {C}, {H}, {W}), values scaled to [0, 1]
```

```bash
python main.py predict --ckpt {checkpoint} --input {example} --output next{kind_of_file}
```

## Scores

{scores}

## How it was made

{made}
Flags: {flags}.

## Licence

Apache-2.0, as the code. The data that the model was trained on has terms of its own.
"""

HALF = "\nThe weights are kept as float16, and were float32 in the tests."


def model_card(model: nn.Module, config: Mapping, checkpoint: str, name: str, on_hub: bool) -> str:
    """README.md of a model that huggingface_hub's mixin can load: metadata in YAML, then text.

    config: the flags to publish. checkpoint: where the weights are from; the tests and the circumstances of its run are
    told, where it lies in one. name: "owner/name" on the hub, else the folder's.
    """
    (T, C, H, W), (T_out, C_out, *_) = config["in_shape"], config["out_shape"]
    halved = any(p.dtype == torch.float16 for p in model.parameters())
    run, arrays = run_of(Path(checkpoint)), config["dataname"] == "arrays"
    flags = (f"`{flag}` {shown(value)}" for flag, value in config.items() if value is not None)
    tests = tests_of(run, weights_fingerprint(checkpoint), config) if run else []
    card = model.generate_model_card()
    card.data.license, card.data.model_name = "apache-2.0", name.rpartition("/")[2]
    card.data.tags = [*(card.data.tags or ()), config["dataname"]]
    card.data.eval_results = [result for test in tests for result in results_of(test)] or None
    card.text = TEXT.format(
        name=name.rpartition("/")[2], kind=type(model).__name__, module=type(model).__module__, paper=PAPER,
        example="data.npy" if arrays else "clip.mp4", kind_of_file=".npy" if arrays else ".mp4",
        dataname=config["dataname"], T=T, C=C, H=H, W=W, T_out=T_out, C_out=C_out, source=name,
        checkpoint=f"hf://{name}" if on_hub else name, parameters=sum(p.numel() for p in model.parameters()) / 1e6,
        scores="\n\n".join(map(table, tests)) or "No test of these weights was found beside them.",
        made=circumstances_of(run) + halved * HALF, flags=", ".join(flags),
    )  # fmt: skip
    return str(card)


def tests_of(run: Path, weights: str | None, config: Mapping) -> list[dict]:
    """What test.json says of every test in a run folder that was of weights with this fingerprint, in a model of these
    flags."""
    tests = (read_test(folder) for folder in (run, *sorted(run.glob("tests/*"))))
    of_them = [test for test in tests if test and weights and test.get("measured_on", {}).get("weights") == weights]
    return [t for t in of_them if all(shown(config[f]) == shown(v) for f, v in t.get("model_flags", {}).items())]


def results_of(test: Mapping) -> list[EvalResult]:
    """A test's mean scores, for the metadata."""
    on = test["measured_on"]
    return [
        EvalResult(
            task_type="video-prediction", dataset_type=test["dataname"], dataset_split="test",
            dataset_name=f"{test['dataname']}, {on['past']} to {on['future']} frames", metric_type=metric,
            metric_name=f"{metric.upper()} ({protocol})", metric_value=round(score["mean"], 6),
        )
        for protocol in test["protocols"] for metric, score in test[protocol]["model"].items()
    ]  # fmt: skip


def table(test: Mapping) -> str:
    """A test's protocol and scores, beside those of the baselines."""
    on, parts = test["measured_on"], []
    note = f" ({test['note']})" if test.get("note") else ""
    parts.append(
        f"{test['sequences']} test sequences of `{test['dataname']}`{note}, {on['past']} to {on['future']} frames: "
        f"means, with standard errors; MSE and MAE are summed over the pixels of a frame. {on['date'][:10]}, "
        f"{on['gpu'] or on['cpu']}, {on['precision']}, {versions(on)}."
    )
    for protocol in test["protocols"]:
        metrics = list(test[protocol]["model"])
        rows = [f"| {protocol} | {' | '.join(map(str.upper, metrics))} |", "|---" * (len(metrics) + 1) + "|"]
        for who, scores in test[protocol].items():
            cells = (f"{scores[m]['mean']:.4g} ({scores[m]['standard_error']:.2g})" for m in metrics if m in scores)
            rows.append(f"| {who.replace('_', ' ')} | {' | '.join(cells)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def circumstances_of(run: Path | None) -> str:
    """On what the weights were trained, as far as their run folder tells, and exported."""
    try:
        trained = json.loads((run / FLAGS).read_text("utf-8"))["environment"] if run else {}
    except (OSError, ValueError, KeyError, TypeError):
        trained = {}
    lines = [f"Exported on {datetime.date.today()} with {versions(environment())}."]
    if trained:
        lines.insert(0, f"Trained on {trained.get('gpu') or trained.get('cpu')} with {versions(trained)}.")
    return "\n".join(lines)


def versions(on: Mapping) -> str:
    """Commit and versions of an environment, as far as they are known."""
    names = {"git_commit": "commit", "python": "Python", "torch": "PyTorch"}
    return ", ".join(f"{name} {on[key]}" for key, name in names.items() if on.get(key))


def shown(value: object) -> str:
    """A flag's value as on the command line."""
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
