"""See the filters work: how much they remove, and how far their thresholds have moved."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .dfdu import ThresholdFilter


@contextmanager
def filter_statistics(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Within, every ThresholdFilter of model notes the fraction of high bins it removes: {module name: [per call]}."""
    filters = {name: m for name, m in model.named_modules() if isinstance(m, ThresholdFilter)}
    notes: dict[str, list[Tensor]] = {name: [] for name in filters}
    try:
        for name, module in filters.items():
            module.watch = notes[name]
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
