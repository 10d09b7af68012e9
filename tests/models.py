"""A tiny model, and every number of one training step: what accelerated models are compared by."""

import functools

import pytest
import torch
from conftest import TINY
from torch import Tensor, nn

from API.speed import accelerate
from DFDNet import DFDNet
from TemporalModule import DFDB
from WFL import WeightedFrequencyLoss


def tiny(dtype: torch.dtype = torch.float64, open_gates: bool = False, **changes) -> DFDNet:
    """The tiny model, the same weights each time, with thresholds at which some bins pass and some do not."""
    torch.manual_seed(3)
    model = DFDNet(**TINY | changes)
    for name, p in model.named_parameters():
        if name.endswith("threshold") and p.requires_grad:
            p.data.uniform_(-0.2, 1.0)
            if open_gates:
                p.data.fill_(-1.0)  # no rounding tips a gate
    return model.to(dtype)


def batch(dtype: torch.dtype = torch.float64, sequences: int = 2, frames: int = 4) -> tuple[Tensor, Tensor]:
    """(past, future), the same each time."""
    generator = torch.Generator().manual_seed(7)
    shapes = (sequences, 4, 1, 32, 32), (sequences, frames, 1, 32, 32)
    return tuple(torch.rand(shape, generator=generator).to(dtype) for shape in shapes)


def training_step(model: nn.Module, past: Tensor, future: Tensor, bfloat16: bool = False) -> dict[str, Tensor]:
    """Prediction, every gradient, that of past too, and every buffer after forward and backward. Draws the same random
    numbers each time."""
    model.zero_grad()
    torch.manual_seed(11)
    past = past.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        predicted = model(past)
    criterion = WeightedFrequencyLoss(future.shape[1], *future.shape[3:]).to(future.dtype)
    criterion(predicted, future).backward()
    named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    named |= {name: buffer.clone() for name, buffer in model.named_buffers()}
    return named | {"past": past.grad, "future": predicted.detach()}


def differences(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """How far every tensor is from what it should be, relative to the largest value in that."""
    assert ours.keys() == expected.keys()
    return {
        name: ((ours[name] - value).abs().max() / value.abs().max().clamp(min=1e-3)).item()
        for name, value in expected.items()
        if value.numel()
    }


@functools.cache
def compiles() -> bool:
    """Whether this version of PyTorch compiles a DFDB as a whole; 2.5 does not, and it stays eager."""
    block = DFDB(8, 4, 4, 1, 0.3125, (2, 4))
    example = torch.rand(2, 8, 4, 4)
    lines = accelerate(nn.Sequential(block), [block], compile=True, example=example, backend="aot_eager")
    return not any(line.startswith("warning") for line in lines)


def needs_compiler() -> None:
    """Skip a test of compiled blocks where they stay eager."""
    if not compiles():
        pytest.skip(f"PyTorch {torch.__version__} does not compile DFDBs: they stay eager")
