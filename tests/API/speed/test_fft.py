"""rfft with a cheaper backward pass is rfft."""

import pytest
import torch
from models import batch, differences, tiny, training_step
from torch import nn

from API.speed.fft import rfft, swap_rfft


@pytest.mark.parametrize("norm", [None, "backward", "ortho", "forward"])
@pytest.mark.parametrize("n", [1, 2, 9, 80])
def test_values_gradients_and_their_gradients_are_those_of_torch(n, norm):
    x = torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, n // 2 + 1, dtype=torch.complex128)
    found = []
    for function in (rfft, torch.fft.rfft):
        y = function(x, norm=norm)
        loss = (y * weight).abs().square().sum() + (y.conj() * weight).real.pow(3).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x)
        found.append((y, first, second))
    for ours, expected in zip(*found):
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-10)


def test_every_filter_of_a_model_is_swapped_and_learns_the_same():
    plain, model = tiny(), tiny()
    assert swap_rfft(model) == ["24 FFTs with a backward pass of half the length"]
    worst = differences(training_step(model, *batch()), training_step(plain, *batch()))
    assert max(worst.values()) < 1e-9, max(worst, key=worst.get)


def test_an_edit_of_it_is_left_alone():
    class Mine(nn.Module):
        rfft = staticmethod(lambda x, norm: 2 * torch.fft.rfft(x, norm=norm))

    assert swap_rfft(nn.Sequential(Mine(), nn.Linear(2, 2))) == []
