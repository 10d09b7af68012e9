"""Mish from one exponential, against PyTorch's, which takes exp, log1p and tanh."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from API.speed.mish import AT_A_TIME, mish, swap_mish


def exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Value and slope in float64."""
    x = x.double().requires_grad_()
    return F.mish(x).detach(), torch.autograd.grad(F.mish(x).sum(), x)[0]


def ours(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = mish(x)
    return y.detach(), torch.autograd.grad(y.sum(), x)[0]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 5e-7), (torch.bfloat16, 4e-3)])
def test_value_and_slope_are_exact_to_the_last_bits(dtype, most):
    x = torch.linspace(-80, 80, 100_001).to(dtype)
    (value, slope), (true_value, true_slope) = ours(x), exact(x)
    assert value.dtype == slope.dtype == dtype
    assert ((value.double() - true_value).abs() <= most * true_value.abs()).all()  # tiny ones, too
    assert ((slope.double() - true_slope).abs() <= most).all()  # it crosses zero at -1.19


def test_far_out_it_is_x_or_nothing():
    value, slope = ours(torch.tensor([3e38, 1e4, -1e4, -3e38]))
    assert value.tolist() == pytest.approx([3e38, 1e4, 0, 0])
    assert slope.tolist() == [1, 1, 0, 0]
    assert ours(torch.tensor([float("inf"), float("nan")]))[0].isnan().tolist() == [False, True]


def test_the_numerical_gradient_is_its_own_and_so_is_the_second():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mish, x)
    assert torch.autograd.gradgradcheck(mish, x)


def test_hooks_stay():
    layer = nn.Mish()
    layer.register_forward_hook(lambda module, inputs, y: 2 * y)
    model, x = nn.Sequential(nn.Linear(4, 4), layer), torch.randn(3, 4)
    before = model(x)
    assert swap_mish(model) == ["1 Mish with one exponential instead of three"]
    assert torch.allclose(model(x), before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_parts_make_a_whole_and_the_layout_stays(layout):
    x = torch.randn(5, 3, 4, 2).contiguous(memory_format=layout)
    big = x.repeat(1, 1, 1, AT_A_TIME * torch.get_num_threads() // 60)  # two at a time, and one alone
    big = big.contiguous(memory_format=layout)
    with torch.no_grad():
        y = mish(big)
    assert y.is_contiguous(memory_format=layout)
    assert torch.allclose(y, F.mish(big), rtol=1e-5, atol=1e-6)
    assert torch.equal(y[4:], mish(big[4:]))
    assert mish(x[:0]).shape == (0, 3, 4, 2)
