import math

import literal
import pytest
import torch

from TemporalModule import DFDU, ThresholdFilter
from TemporalModule.filter import START, WIDTH
from TemporalModule.watch import filter_statistics, removed

SHAPES = [  # B, H, W, c, segments
    (2, 4, 4, 8, 4),
    (1, 6, 4, 8, 8),
    (2, 3, 5, 8, 4),
    (1, 5, 3, 12, 4),  # odd signals: 5 * 3 and 3 * 3
    (1, 2, 7, 6, 2),
]


def unit_of(H, W, c, segments, COF=0.3125) -> DFDU:
    unit = DFDU(c, H, W, segments, COF).double()
    with torch.no_grad():
        for module in (unit.filter_h, unit.filter_w):
            module.threshold.uniform_(-0.2, 1.2)  # some let everything through, some almost nothing
    return unit


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("COF", [0.0, 0.3125])
def test_dfdu_equals_the_formulas_written_out(shape, COF):
    B, H, W, c, segments = shape
    unit = unit_of(H, W, c, segments, COF)
    x = torch.randn(B, H, W, c, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours, theirs = unit(x), literal.dfdu(y, unit, COF)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    grad = torch.randn_like(ours)
    weights = [p for name, p in unit.named_parameters() if "threshold" not in name]
    for a, b in zip(
        torch.autograd.grad(ours, (x, *weights), grad), torch.autograd.grad(theirs, (y, *weights), grad), strict=True
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("L", [2, 7, 8, 9, 10, 12, 30])
@pytest.mark.parametrize("COF", [0.0, 0.25, 0.3125, 0.5])
def test_threshold_gradient_is_the_analytic_one_of_the_surrogate(L, COF):
    threshold_filter = ThresholdFilter(1, 1, L, COF).double()
    for alpha in (0.05, 0.5, 1.0):
        threshold_filter.threshold.data.fill_(alpha)
        x = torch.randn(3, 1, L, dtype=torch.float64)
        out = threshold_filter(x)
        grad = torch.randn_like(out)
        (ours,) = torch.autograd.grad(out, threshold_filter.threshold, grad)
        expected = sum(literal.surrogate_alpha_gradient(x[b, 0], alpha, COF, WIDTH, grad[b, 0]) for b in range(3))
        assert ours.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("L", [8, 9, 10])
def test_feature_gradient_is_the_numerical_one_between_gate_flips(L):
    threshold_filter = ThresholdFilter(1, 3, L, 0.2).double()
    threshold_filter.threshold.data.fill_(0.4)
    x = torch.randn(2, 3, L, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(threshold_filter, x, eps=1e-7)


@pytest.mark.parametrize("COF", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("L", [2, 7, 8])
def test_a_silent_signal_has_finite_gradients(COF, L):
    threshold_filter = ThresholdFilter(1, 2, L, COF)
    x = torch.zeros(1, 2, L, requires_grad=True)
    threshold_filter(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert threshold_filter.threshold.grad.isfinite().all()


def test_filter_without_a_threshold_keeps_the_even_samples():
    threshold_filter = ThresholdFilter(2, 3, 20, 0.3125)
    threshold_filter.threshold.data.fill_(-1.0)
    x = torch.randn(2, 6, 20)
    assert torch.allclose(threshold_filter(x), x[..., ::2], atol=1e-6)


def test_filter_with_an_endless_threshold_is_a_low_pass():
    threshold_filter = ThresholdFilter(1, 1, 64, 0.25)
    threshold_filter.threshold.data.fill_(math.inf)
    n = torch.arange(64)
    low, high = torch.cos(2 * math.pi * 16 * n / 64), torch.cos(2 * math.pi * 17 * n / 64)  # the cut-off is bin 17
    assert torch.allclose(threshold_filter((low + high)[None, None]), low[::2], atol=1e-5)


def test_at_the_start_the_filter_removes_the_rayleigh_share_of_white_noise_and_little_of_its_energy():
    threshold_filter = ThresholdFilter(4, 32, 2560, 0.3125)
    bins, energy = removed(threshold_filter, torch.randn(4, 128, 2560)).tolist()
    assert bins == pytest.approx(1 - math.exp(-(START**2)), abs=2e-3)  # magnitudes are Rayleigh distributed
    # Energy below START of an exponential distribution of |X|^2, times the share of high bins.
    below = 1 - (1 + START**2) * math.exp(-(START**2))
    assert energy == pytest.approx(below * (1 - 2 * 0.3125), rel=0.05)


@pytest.mark.parametrize("L", [7, 8])
def test_removed_energy_is_what_the_filter_takes_from_the_signals(L):
    threshold_filter = ThresholdFilter(1, 3, L, 0.2).double()
    threshold_filter.threshold.data.fill_(0.9)
    x = torch.randn(4, 3, L, dtype=torch.float64)
    spectrum = torch.fft.fft(x, norm="ortho")  # both halves, every bin once
    k = torch.arange(L).minimum(L - torch.arange(L))
    closed = (spectrum.abs() < 0.9) & (k >= threshold_filter.cutoff)
    expected = (spectrum.abs().square() * closed).sum() / x.square().sum()
    assert removed(threshold_filter, x)[1].item() == pytest.approx(expected.item(), rel=1e-10)


def test_thresholds_start_at_0_3_or_in_release_mode_at_the_noise_of_an_unnormalised_fft():
    torch.manual_seed(0)
    assert torch.equal(ThresholdFilter(8, 100, 320, COF=0.3).threshold, torch.full((8, 100), 0.3))
    start = ThresholdFilter(8, 100, 320, COF=0.3, release=True).threshold
    assert start.std().item() == pytest.approx(320**-0.5, rel=0.1)
    assert start.mean().abs() < 0.1 * 320**-0.5


def test_thresholds_learn_in_default_mode_and_never_in_release_mode():
    for release in (False, True):
        unit = DFDU(8, 4, 4, 4, 0.3125, release)
        unit(torch.randn(2, 4, 4, 8)).square().sum().backward()
        for module in (unit.filter_h, unit.filter_w):
            assert (module.threshold.grad is None) == release
            assert release or module.threshold.grad.abs().max() > 0


def test_statistics_count_what_the_gate_closes_and_stop_with_the_context():
    unit = DFDU(8, 4, 4, 4, 0.0)
    unit.filter_h.threshold.data.fill_(math.inf)
    unit.filter_w.threshold.data.fill_(-1.0)
    with filter_statistics(unit) as notes:
        unit(torch.randn(2, 4, 4, 8))
    unit(torch.randn(2, 4, 4, 8))
    assert [n[0].item() for n in notes["filter_h"]] == [1.0]
    assert [n.tolist() for n in notes["filter_w"]] == [[0.0, 0.0]]


def test_bfloat16_autocast_leaves_the_fft_in_float32():
    threshold_filter = ThresholdFilter(1, 4, 64, 0.25)
    x = torch.randn(2, 4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = threshold_filter(x.bfloat16())
    assert out.dtype == torch.float32
    assert torch.equal(out, threshold_filter(x.bfloat16().float()))
