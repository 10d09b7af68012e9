"""Real FFTs with cheaper backward passes are those of torch."""

import pytest
import torch
from models import batch, differences, tiny, training_step
from torch import nn

from API.speed import fft
from API.speed.fft import irfft, rfft, swap_ffts


def results(rfft, irfft, n: int, norm: str | None) -> list[torch.Tensor]:
    """Values, gradients and their gradients of both, forth and back with a change of the spectrum between."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True)
    weight, other = torch.randn(2, 2, 3, n // 2 + 1, dtype=torch.complex128)
    spectrum = rfft(x, norm=norm)
    y = irfft(spectrum * weight + spectrum.conj() * other, n=n, norm=norm)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    return [spectrum, y, first, second]


@pytest.mark.parametrize("on_a_gpu", [False, True])
@pytest.mark.parametrize("norm", [None, "ortho"])
@pytest.mark.parametrize("n", [2, 9, 80])
def test_values_gradients_and_their_gradients_are_those_of_torch(n, norm, on_a_gpu, monkeypatch):
    if on_a_gpu:
        monkeypatch.setattr(fft, "scale_outside", lambda x, n: n**-0.5)
    for ours, expected in zip(results(rfft, irfft, n, norm), results(torch.fft.rfft, torch.fft.irfft, n, norm)):
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-10)


def test_every_filter_of_a_model_is_swapped_and_learns_the_same():
    plain, model = tiny(), tiny()
    assert swap_ffts(model) == ["48 FFTs that are differentiated by FFTs of their kind"]
    worst = differences(training_step(model, *batch()), training_step(plain, *batch()))
    assert max(worst.values()) < 1e-9, max(worst, key=worst.get)


def test_an_edit_of_it_is_left_alone():
    class Mine(nn.Module):
        rfft = staticmethod(lambda x, norm: 2 * torch.fft.rfft(x, norm=norm))

    assert swap_ffts(nn.Sequential(Mine(), nn.Linear(2, 2))) == []
