"""See the filters work: how much they remove, and how far their thresholds have moved."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .dfdu import ThresholdFilter


@contextmanager
def filter_statistics(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within, every ThresholdFilter of model notes the fraction of high bins it removes: {module name: [per call]}."""
    filters = {name: m for name, m in model.named_modules() if isinstance(m, ThresholdFilter)}
    notes: dict[str, list[Tensor]] = {name: [] for name in filters}
    # Compiled blocks run as they are meanwhile: taking notes is not worth compiling them once more.
    eager = torch.compiler.set_stance("force_eager") if hasattr(torch.compiler, "set_stance") else nullcontext()
    try:
        for name, module in filters.items():
            module.watch = notes[name]
        with eager:
            yield notes
    finally:
        for module in filters.values():
            module.watch = None


def filter_report(model: nn.Module, removed: Mapping[str, list[Tensor]]) -> list[dict[str, float]]:
    """Per temporal stage: the fraction of high-frequency bins removed, and how far the thresholds have moved."""
    stages: dict[str, list[tuple[float, float]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, ThresholdFilter):
            moved = (module.threshold.detach() - module.start).abs().mean().item()
            stage = name.partition("stages.")[2].partition(".")[0]
            stages.setdefault(stage, []).append((torch.stack(removed[name]).mean().item(), moved))
    means = {stage: [sum(values) / len(values) for values in zip(*pairs)] for stage, pairs in stages.items()}
    return [{"stage": int(stage), "removed": r, "threshold_moved": m} for stage, (r, m) in means.items()]


FILTER_MODES = {"learned": None, "off": -1.0, "low": float("inf")}  # the thresholds, or None for their own


@contextmanager
def filters_as(model: nn.Module, mode: str) -> Iterator[None]:
    """Within, every filter of model works as "learned", passes everything ("off"), or no high frequency ("low")."""
    level = FILTER_MODES[mode]
    filters = [m for m in model.modules() if isinstance(m, ThresholdFilter)]
    learned = [m.threshold.detach().clone() for m in filters]
    try:
        with torch.no_grad():
            for module in filters if level is not None else ():
                module.threshold.fill_(level)
        yield
    finally:
        with torch.no_grad():
            for module, threshold in zip(filters, learned):
                module.threshold.copy_(threshold)


@torch.no_grad()
def spectra(model: nn.Module, past: Tensor) -> dict[str, dict]:
    """What every filter does to the features of past (B, T, C, H, W): {module name: {"before", "after"}}.

    before, after: mean amplitude of every frequency bin, (L // 2 + 1) each, over batch and signals, in the units of the
    thresholds; further "cutoff" (the first bin that can be removed), "threshold" (segments, positions), and "removed",
    the fraction of high bins.
    """
    found, hooks = {}, []

    def note(name: str):
        def hook(module: ThresholdFilter, inputs: tuple[Tensor]) -> None:
            amplitude = torch.fft.rfft(inputs[0].float(), norm="ortho").abs()  # (B, N, L // 2 + 1)
            kept = amplitude >= module.threshold.flatten()[:, None]
            kept[..., : module.cutoff] = True
            high = kept[..., module.cutoff :]
            found[name] = {
                "before": amplitude.mean((0, 1)).cpu(),
                "after": (amplitude * kept).mean((0, 1)).cpu(),
                "cutoff": module.cutoff,
                "threshold": module.threshold.detach().cpu(),
                "removed": 1 - high.float().mean().item() if high.numel() else 0.0,
            }

        return hook

    try:
        for name, module in model.named_modules():
            if isinstance(module, ThresholdFilter):
                hooks.append(module.register_forward_pre_hook(note(name)))
        model(past)
    finally:
        for hook in hooks:
            hook.remove()
    return found
