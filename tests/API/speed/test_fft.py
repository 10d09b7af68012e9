"""FFTs of half the length have the values and gradients of the filter's own."""

import pytest
import torch
from models import batch, differences, tiny, training_step
from torch import nn

from API.speed import fft
from API.speed.fft import analyse, same, swap_ffts, synthesise
from TemporalModule import ThresholdFilter


def inverse(spectrum: torch.Tensor, n: int) -> torch.Tensor:
    return torch.fft.irfft(torch.view_as_complex(spectrum), n=n, norm="ortho")


def results(analyse, synthesise, n: int) -> list[torch.Tensor]:
    """Values, gradients and their gradients of both, forth and back with a change of the spectrum between."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, n, dtype=torch.float64, requires_grad=True)
    weight, other = torch.randn(2, 2, 3, n // 2 + 1, 2, dtype=torch.float64)
    spectrum = analyse(x)
    y = synthesise(spectrum * weight + spectrum.flip(-1) * other, n)
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x)
    return [spectrum, y, first, second]


@pytest.mark.parametrize("on_a_gpu", [False, True])
@pytest.mark.parametrize("n", [2, 4, 6, 9, 80, 82])
def test_values_gradients_and_their_gradients_are_those_of_torch(n, on_a_gpu, monkeypatch):
    def torch_analyse(x: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(torch.fft.rfft(x, norm="ortho"))

    if on_a_gpu:
        monkeypatch.setattr(fft, "scale_outside", lambda x: x.shape[-1] ** -0.5)
    for ours, expected in zip(
        results(analyse, synthesise, n), results(torch_analyse, lambda X, n: inverse(X, n)[..., ::2], n)
    ):
        assert torch.allclose(ours, expected, rtol=1e-10, atol=1e-10)


def test_every_filter_of_a_model_is_swapped_and_learns_the_same():
    plain, model = tiny(), tiny()
    assert swap_ffts(model) == ["24 filters with FFTs of half the length"]
    worst = differences(training_step(model, *batch()), training_step(plain, *batch()))
    assert max(worst.values()) < 1e-9, max(worst, key=worst.get)


GAIN = nn.Parameter(torch.ones((), dtype=torch.float64))  # learned, it is no longer one


@pytest.mark.parametrize(
    ("name", "edited"),
    [
        ("analyse", lambda x: 2 * torch.view_as_real(torch.fft.rfft(x, norm="ortho"))),
        ("analyse", lambda x, norm: torch.view_as_real(torch.fft.rfft(x, norm=norm))),
        ("synthesise", lambda spectrum, n: inverse(spectrum, n)[..., 1::2]),
        ("synthesise", lambda spectrum, n: inverse(spectrum, n)),
        ("synthesise", lambda spectrum, n: synthesise(spectrum.detach(), n) + 0 * spectrum.sum()),
        ("synthesise", lambda spectrum, n: GAIN * synthesise(spectrum, n)),
    ],
)
def test_what_a_researcher_has_edited_stays(name, edited, monkeypatch):
    monkeypatch.setattr(ThresholdFilter, name, staticmethod(edited))
    model = nn.Sequential(ThresholdFilter(1, 3, 8, 0.3), nn.Linear(2, 2))
    (line,) = swap_ffts(model)
    assert line == "1 filters as they are: their analyse and synthesise are not those of API/speed/fft.py"
    assert getattr(model[0], name) is edited


def test_the_comparison_draws_no_random_number_of_the_run():
    before = torch.get_rng_state()
    assert same(analyse, synthesise)
    assert torch.equal(torch.get_rng_state(), before)
