"""Variants that are not flags of main.py, as the paper has none of them, or another model altogether: what study.py
compares beside the flags.

    python benchmarks/variants.py [NAME …] -- FLAGS      main.py with these changes: to train and to test

A change is a function that takes the model that core.build_model has made, and gives the one to train; a loss takes
the frames' sizes and gives the criterion.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import core
import main
from API.machine.processes import leave
from API.run.interrupt import RESUME_ME
from benchmarks.gsta import GSTA
from benchmarks.tau import TAU, TAULoss
from TemporalModule.filter import START, ThresholdFilter
from TemporalModule.temporal import DFDB, Branch
from TemporalModule.watch import mirrored
from WFL import WeightedFrequencyLoss

# The model -----------------------------------------------------------------------------------------------------------


def of(kind: type, change: Callable[[nn.Module], None]) -> Callable[[nn.Module], nn.Module]:
    """A change of every module of this class."""

    def apply(model: nn.Module) -> nn.Module:
        for module in [module for module in model.modules() if isinstance(module, kind)]:
            change(module)
        return model

    return apply


def scale_output(block: DFDB, scale: float) -> None:
    """A DFDB's output starts at this scale instead of 1."""
    nn.init.constant_(block.expansion[1].weight, scale)


def keep_branch(block: DFDB, name: str) -> None:
    """One branch instead of two."""
    conv, branch = block.expansion[0], getattr(block, name)
    del block.branch_r1, block.branch_r2
    block.branch = branch
    block.expansion[0] = nn.Conv2d(conv.in_channels // 2, conv.out_channels, 1, bias=False)

    def forward(self: DFDB, x: Tensor) -> Tensor:
        z = self.branch(self.reduction(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        z = self.expansion(z)
        return self.relu(x + z if self.residual else z)

    block.forward = MethodType(forward, block)


def skip_stau(branch: Branch) -> None:
    """Dynamics alone, without STAU."""
    del branch.stau, branch.norm_stau
    branch.forward = MethodType(lambda self, x: x + self.dfdu(self.norm_dfdu(x)), branch)


class Shared(nn.Module):
    """(segments, 1) -> (segments, positions): one threshold for all signals of a segment."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.positions = positions

    def forward(self, threshold: Tensor) -> Tensor:
        return threshold.expand(-1, self.positions)

    def right_inverse(self, threshold: Tensor) -> Tensor:
        return threshold[:, :1].clone()


def share_thresholds(module: ThresholdFilter) -> None:
    """One threshold a segment."""
    parametrize.register_parametrization(module, "threshold", Shared(module.threshold.shape[1]))


def shrink(module: ThresholdFilter) -> None:
    """Soft shrinkage: a high bin's magnitude is reduced by the threshold, to 0 at the least."""

    def gate(self: ThresholdFilter, high: Tensor) -> Tensor:
        magnitude = torch.linalg.vector_norm(high, dim=-1).clamp(min=1e-6)
        return (1 - self.threshold.flatten().unsqueeze(-1).clamp(min=0) / magnitude).clamp(min=0)

    module.gate = MethodType(gate, module)


@torch.no_grad()
def start_at(module: ThresholdFilter, level: float | Tensor) -> None:
    """Another start of the thresholds; from a very high one they never come back, and low frequencies alone pass."""
    module.threshold.fill_(level)
    module.start.fill_(level)


def start_removing(module: ThresholdFilter, share: float) -> None:
    """Thresholds start where each filter removes this share of the energy of the first batch, from its weakest bins.

    That batch sets them, once, before it is filtered: those of a resumed run have moved and are left alone.
    """

    @torch.no_grad()
    def set_once(module: ThresholdFilter, inputs: tuple[Tensor]) -> None:
        if not module.training:
            return
        hook.remove()
        if not (module.threshold == START).all():
            return
        low, high = (part.square().sum(-1) for part in module.spectrum(inputs[0].float()))
        twice = mirrored(module.length, high.device)
        weighted = (high * twice[module.cutoff :]).flatten()
        order = high.flatten().argsort()
        total = weighted.sum() + (low * twice[: module.cutoff]).sum()
        removed = (weighted[order].double().cumsum(0) < share * total).sum()
        level = high.flatten()[order][removed.clamp(max=len(order) - 1)].sqrt()
        start_at(module, level)

    hook = module.register_forward_pre_hook(set_once)


def peer(kind: type) -> Callable[[nn.Module], nn.Module]:
    """Another model; by default of about the multiply-adds of `digits`."""

    def build(model: nn.Module, hid_S: int = 8, hid_T: int = 128, blocks: int = 4) -> nn.Module:
        C = model.encoder.layers[0].conv.in_channels
        other = kind(model.T, C, hid_S, hid_T, blocks)
        other.blocks = lambda: [other.first, other.encoder, *other.temporal, other.decoder, other.last]  # to compile
        other.T = model.T
        return other

    return build


# The loss ------------------------------------------------------------------------------------------------------------


def released_loss(frames: int, height: int, width: int) -> nn.Module:
    """The loss as the authors' code computes it, with the default model."""
    return WeightedFrequencyLoss(frames, height, width, release=True)


CHANGES = {
    **{f"scale_{scale}": of(DFDB, functools.partial(scale_output, scale=scale)) for scale in (0.0, 0.1)},
    "r1_alone": of(DFDB, functools.partial(keep_branch, name="branch_r1")),
    "r2_alone": of(DFDB, functools.partial(keep_branch, name="branch_r2")),
    "no_stau": of(Branch, skip_stau),
    "shared_thresholds": of(ThresholdFilter, share_thresholds),
    "soft_shrinkage": of(ThresholdFilter, shrink),
    **{
        f"start_{percent}_percent": of(ThresholdFilter, functools.partial(start_removing, share=percent / 100))
        for percent in (1, 5, 10)
    },
    "low_only": of(ThresholdFilter, functools.partial(start_at, level=1e6)),
    "tau": peer(TAU),
    "gsta": peer(GSTA),
    "tau_full": functools.partial(peer(TAU), hid_S=64, hid_T=512, blocks=8),
    "gsta_full": functools.partial(peer(GSTA), hid_S=64, hid_T=512, blocks=8),
}
LOSSES = {
    "mse": lambda *_: nn.MSELoss(),
    "released_loss": released_loss,
    "tau_loss": lambda *_: TAULoss(),
}


@contextlib.contextmanager
def changed(names: Sequence[str]) -> Iterator[None]:
    """Within, core builds models and losses with these changes. Raises KeyError of a name that there is not."""
    build_model, build_criterion = core.build_model, core.build_criterion
    changes = [CHANGES[name] for name in names if name not in LOSSES]
    losses = [LOSSES[name] for name in names if name in LOSSES]

    def model_of(config) -> nn.Module:
        return functools.reduce(lambda model, change: change(model), changes, build_model(config))

    def criterion_of(config) -> nn.Module:
        frames, _, height, width = config.out_shape
        return losses[-1](frames, height, width) if losses else build_criterion(config)

    core.build_model, core.build_criterion = model_of, criterion_of
    try:
        yield
    finally:
        core.build_model, core.build_criterion = build_model, build_criterion


if __name__ == "__main__":
    if "--" not in sys.argv:
        sys.exit(f"{__doc__}\nNAME: {', '.join([*CHANGES, *LOSSES])}")
    cut = sys.argv.index("--")
    with changed(sys.argv[1:cut]):
        code = main.main(sys.argv[cut + 1 :])
    leave(code, well=code in (0, RESUME_ME))
