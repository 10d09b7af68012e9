import math

import literal
import pytest
import torch

from TemporalModule import DFDU, ThresholdFilter
from TemporalModule.dfdu import START, WIDTH, rearranged, recombine
from TemporalModule.gate import _gate_in_real_numbers, irfft, rfft, spectral_gate
from TemporalModule.watch import filter_statistics

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
    shortcut = torch.randn_like(x).detach()
    ours, theirs = unit(x, shortcut), shortcut + literal.dfdu(y, unit, COF)
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


def test_recombination_is_its_formula_and_has_the_numerical_gradient():
    B, H, W, c = 2, 3, 4, 5
    shapes = *[(B, H, W, c)] * 3, (B, 1, W, c), (B, H, 1, c), (B, H, W, c)
    h, w, q, E_h, E_w, shortcut = inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes
    ]
    assert torch.allclose(recombine(*inputs), h * E_w + w * E_h + q * (E_h + E_w) + shortcut, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(recombine, inputs)


@pytest.mark.parametrize("order", [(0, 2, 1), (0, 1, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_signals_are_cut_out_in_float32_at_least_and_their_gradient_comes_back_as_the_features_are(order, dtype):
    x = torch.randn(2, 3, 4).to(dtype).requires_grad_()
    y = rearranged(x, order)
    assert y.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert y.is_contiguous()
    assert torch.equal(y, x.permute(order).to(y.dtype))
    grad = torch.randn_like(y)
    (found,) = torch.autograd.grad(y, x, grad)
    assert found.dtype == dtype
    assert torch.equal(found, grad.permute(order).to(dtype))  # a swap is its own inverse


@pytest.mark.parametrize("L", [8, 9, 10])
def test_feature_gradient_is_the_numerical_one_between_gate_flips(L):
    x = torch.randn(2, 3, L, dtype=torch.float64, requires_grad=True)
    threshold = torch.full((3,), 0.4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: spectral_gate(x, threshold, 2, WIDTH, x.dtype), x, eps=1e-7)


@pytest.mark.parametrize("L", [2, 7, 8, 9, 10, 12, 30])
@pytest.mark.parametrize("cutoff", [1, 2, 4])
@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, math.inf])
def test_what_a_compiler_gets_is_the_gate_in_real_numbers(L, cutoff, alpha):
    x = torch.randn(2, 3, L, dtype=torch.float64, requires_grad=True)
    threshold = torch.full((3,), alpha, dtype=torch.float64, requires_grad=True)
    expected = spectral_gate(x, threshold, cutoff, WIDTH, x.dtype)
    ours = _gate_in_real_numbers(x, threshold, cutoff, WIDTH, torch.float64)
    assert torch.allclose(ours, expected, rtol=0, atol=1e-12)
    grad = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(ours, (x, threshold), grad), torch.autograd.grad(expected, (x, threshold), grad)
    ):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)
    fixed = _gate_in_real_numbers(x, threshold.detach(), cutoff, WIDTH, torch.float64)
    assert torch.allclose(fixed, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("L", [2, 7, 8])
def test_the_compiler_s_fourier_transforms_are_sound_operators(L):
    x = torch.randn(2, 3, L, dtype=torch.float64, requires_grad=True)
    spectrum = torch.randn(2, 3, L // 2 + 1, 2, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(rfft, (x,))
    torch.library.opcheck(irfft, (spectrum, L, torch.float64))
    assert torch.autograd.gradcheck(rfft, x)
    assert torch.autograd.gradcheck(lambda s: irfft(s, L, torch.float64), spectrum)
    assert torch.allclose(irfft(rfft(x), L, torch.float64), L * x)


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


def test_filter_is_active_but_mild_at_the_start():
    threshold_filter = ThresholdFilter(4, 32, 2560, 0.3125)
    removed = threshold_filter.removed(torch.randn(4, 128, 2560)).item()
    assert 0.01 < removed < 0.30
    assert removed == pytest.approx(1 - math.exp(-(START**2)), abs=2e-3)  # magnitudes are Rayleigh distributed


def test_thresholds_learn_in_default_mode_and_never_in_release_mode():
    for release in (False, True):
        unit = DFDU(8, 4, 4, 4, 0.3125, release)
        unit(torch.randn(2, 4, 4, 8), torch.zeros(2, 4, 4, 8)).square().sum().backward()
        for module in (unit.filter_h, unit.filter_w):
            assert (module.threshold.grad is None) == release
            assert release or module.threshold.grad.abs().max() > 0


def test_statistics_count_what_the_gate_closes_and_stop_with_the_context():
    unit = DFDU(8, 4, 4, 4, 0.0)
    unit.filter_h.threshold.data.fill_(math.inf)
    unit.filter_w.threshold.data.fill_(-1.0)
    with filter_statistics(unit) as notes:
        unit(torch.randn(2, 4, 4, 8), torch.zeros(2, 4, 4, 8))
    unit(torch.randn(2, 4, 4, 8), torch.zeros(2, 4, 4, 8))
    assert [n.item() for n in notes["filter_h"]] == [1.0]
    assert [n.item() for n in notes["filter_w"]] == [0.0]


def test_backward_keeps_no_complex_tensor():
    kept = []
    x = torch.randn(2, 4, 64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ThresholdFilter(1, 4, 64, 0.25)(x)
    assert kept
    assert not any(t.is_complex() for t in kept)


def test_bfloat16_autocast_leaves_the_fft_in_float32():
    threshold_filter = ThresholdFilter(1, 4, 64, 0.25)
    x = torch.randn(2, 4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        out = threshold_filter(x.bfloat16())
    assert torch.equal(out, threshold_filter(x.bfloat16().float()).bfloat16())  # rounded once, for what reads it
