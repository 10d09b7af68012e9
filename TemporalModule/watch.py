"""See the filters work: how much they remove, and how far their thresholds have moved."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .filter import ThresholdFilter

# Under Adam a parameter whose gradients are pure noise moves by NOISE_WALK * sqrt(sum of lr^2), on average in absolute
# terms (simulated under the one-cycle schedule: 0.79 to 0.81).
NOISE_WALK = 0.8


def filters_of(model: nn.Module) -> dict[str, ThresholdFilter]:
    """Every filter of a model, by the name of its module."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ThresholdFilter)}


def threshold_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[int]:
    """Which parameter groups of optimizer, by number, hold thresholds of model's filters; the first if none does."""
    thresholds = {id(module.threshold) for module in filters_of(model).values()}
    groups = enumerate(optimizer.param_groups)
    return [k for k, group in groups if any(id(p) in thresholds for p in group["params"])] or [0]


@torch.no_grad()
def removed(module: ThresholdFilter, x: Tensor) -> Tensor:
    """x (B, N, L) -> (2,): the fractions of the high bins, and of all energy, that the filter removes of x."""
    low, high = module.spectrum(x)
    gate = module.gate(high).to(high.dtype)  # (B, N, K), 1 where a bin passes
    low, high = low.square().sum(-1), high.square().sum(-1)  # energies
    energy = torch.cat([low, high], -1).sum((0, 1))  # (L // 2 + 1,)
    twice = mirrored(module.length, x.device)
    bins = (1 - gate).sum() / max(1, gate.numel())
    lost = ((1 - gate.square()) * high).sum((0, 1)) * twice[module.cutoff :]
    return torch.stack([bins, lost.sum() / (energy * twice).sum().clamp(min=torch.finfo(energy.dtype).tiny)])


def mirrored(length: int, device: torch.device) -> Tensor:
    """(L // 2 + 1,): how many bins of a whole FFT a bin of a real one stands for: 2, but for the mean and an even L's
    highest frequency 1."""
    k = torch.arange(length // 2 + 1, device=device)
    return torch.where((k == 0) | (2 * k == length), 1, 2)


@contextmanager
def watching(model: nn.Module, note: Callable[[str, ThresholdFilter, Tensor], None]) -> Iterator[None]:
    """Within, every filter of model calls note(name, filter, x) before it filters x. Compiled blocks run eagerly."""
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, named, name=name: note(name, module, *inputs, *named.values()), with_kwargs=True
        )
        for name, module in filters_of(model).items()
    ]
    eager = torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()
    try:
        with eager:
            yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def filter_statistics(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within, note what every filter removes: {module name: [(2,) a call, as of removed]}."""
    notes: dict[str, list[Tensor]] = {name: [] for name in filters_of(model)}
    with watching(model, lambda name, module, x: notes[name].append(removed(module, x))):
        yield notes


def filter_report(
    model: nn.Module, notes: Mapping[str, list[Tensor]], lr_squares: float = math.nan
) -> list[dict[str, float]]:
    """Per temporal stage, from filter_statistics: the fractions of high bins ("removed") and of all energy
    ("energy_removed") that are removed, and how far the thresholds have moved: on average in absolute terms
    ("threshold_moved"), signed ("threshold_drift"), and as a multiple of noise's movement
    ("threshold_moved_over_noise", where lr_squares is known, the sum of their squared learning rates of all steps).
    Filters outside the stages, and those that the model did not call, are left out."""
    walk = NOISE_WALK * math.sqrt(lr_squares)
    stages: dict[int, list[Tensor]] = {}
    for name, module in filters_of(model).items():
        place = re.search(r"stages\.(\d+)\.", name)
        if place is None or not notes.get(name):
            continue
        moved = (module.threshold.detach() - module.start).float()
        numbers = torch.stack([*torch.stack(notes[name]).mean(0), moved.abs().mean(), moved.mean()])
        stages.setdefault(int(place[1]), []).append(numbers.cpu())
    keys = "removed", "energy_removed", "threshold_moved", "threshold_drift"
    report = []
    for stage, found in stages.items():
        one = {"stage": stage} | dict(zip(keys, torch.stack(found).mean(0).tolist()))
        report.append(one | ({"threshold_moved_over_noise": one["threshold_moved"] / walk} if walk > 0 else {}))
    return report


FILTER_MODES = {"learned": None, "off": torch.ones_like, "low": torch.zeros_like}  # the gate, or None for its own


@contextmanager
def filters_as(model: nn.Module, mode: str) -> Iterator[None]:
    """Within, every filter of model works as "learned", passes everything ("off"), or no high frequency ("low")."""
    every = FILTER_MODES[mode]
    filters = filters_of(model).values() if every else ()
    own = [vars(module).get("gate") for module in filters]
    try:
        for module in filters:
            vars(module)["gate"] = lambda high: every(high[..., 0])
        yield
    finally:
        for module, gate in zip(filters, own):
            del vars(module)["gate"]
            vars(module).update({} if gate is None else {"gate": gate})


@torch.no_grad()
def spectra(model: nn.Module, past: Tensor) -> dict[str, dict]:
    """What every filter does to the features of past (B, T, C, H, W): {module name: {"before", "after"}}.

    before, after: mean amplitude of every frequency bin, (L // 2 + 1) each, over batch, signals and calls, in the units
    of the thresholds; further "cutoff" (the first bin that can be removed), "threshold" (segments, positions), and
    "removed" and "energy_removed", fractions of the high bins and of all energy.
    """
    calls: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}

    def note(name: str, module: ThresholdFilter, x: Tensor) -> None:
        low, high = module.spectrum(x)
        filtered = high * module.gate(high).unsqueeze(-1)
        before, after = (torch.cat([low, part], 2).square().sum(-1).sqrt().mean((0, 1)) for part in (high, filtered))
        calls.setdefault(name, []).append((before, after, removed(module, x)))

    with watching(model, note):
        model(past)
    found, filters = {}, filters_of(model)
    for name, noted in calls.items():
        before, after, (bins, energy) = (torch.stack(each).mean(0).cpu() for each in zip(*noted))
        found[name] = {
            "before": before,
            "after": after,
            "cutoff": filters[name].cutoff,
            "threshold": filters[name].threshold.detach().cpu(),
            "removed": bins.item(),
            "energy_removed": energy.item(),
        }
    return found
