"""Steps that are left out leave nothing behind."""

import pytest
import torch
from torch import nn

from API.run.guard import Guard


class Mean(nn.Module):
    """A running mean of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.detach().mean())
        return x - self.mean


class Assigned(Mean):
    """As Mean, in a new tensor each time, beside one that is expanded and stays."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shape", torch.ones(1).expand(2, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean()
        return x - self.mean


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm2d(2),
        nn.InstanceNorm2d(2, affine=True, track_running_stats=True),
        nn.Sequential(Mean()),
        Assigned(),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_a_skipped_batch_moves_no_running_statistics(norm):
    model = nn.Sequential(nn.Conv2d(2, 2, 1), norm)
    guard = Guard(model, torch.optim.SGD(model.parameters(), 0.1), "skip", None, "test")
    x = torch.rand(3, 2, 4, 4)

    def step(x: torch.Tensor) -> bool:
        guard.begin()
        loss = model(x).square().sum()
        return guard.passes(0, loss, loss.detach(), (x, x))

    assert step(x)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert not step(torch.full_like(x, torch.nan))
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert step(2 * x)
    assert any(not torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
