"""Convolutions by Winograd's method against PyTorch's, and where they take its place."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from TemporalModule import winograd as module
from TemporalModule.winograd import Conv3x3, ConvTranspose3x3, matrices, pays, winograd


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def value_and_gradients(function, *inputs: torch.Tensor, parameters=()) -> list[torch.Tensor]:
    """Of function(*inputs), for inputs and parameters and a gradient that is always the same."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    y = function(*inputs)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, [*inputs, *parameters], grad)]


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (3, 5, 8, 20), (2, 4, 16, 12)])
@pytest.mark.parametrize("at_once", [8192, 1])  # all images together, and one by one
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_those_of_the_convolution(shape, at_once, bias, monkeypatch):
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    torch.manual_seed(0)
    shapes = (shape, (7, shape[1], 3, 3), (7,))[: 3 if bias else 2]
    inputs = [torch.randn(s, dtype=torch.float64) for s in shapes]
    ours = value_and_gradients(winograd, *inputs)
    plain = value_and_gradients(lambda *inputs: F.conv2d(*inputs, padding=1), *inputs)
    assert [a.shape for a in ours] == [b.shape for b in plain]
    assert max(map(relative, ours, plain)) < 1e-13
    assert ours[0].is_contiguous(memory_format=torch.channels_last)


def test_the_numerical_gradient_is_its_own():
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 4, 8), (3, 2, 3, 3), (3,))]
    assert torch.autograd.gradcheck(winograd, inputs)


def test_float32_loses_little_and_less_than_at_the_usual_points(monkeypatch):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 256, 32, 32), torch.randn(256, 256, 3, 3) / 48
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    chosen = relative(winograd(x, weight), exact)
    monkeypatch.setattr(module, "matrices", lambda dtype: matrices(dtype, (0.0, 1.0, -1.0, 2.0, -2.0)))
    usual = relative(winograd(x, weight), exact)
    assert chosen < 2e-6
    assert usual > 1.5 * chosen


@pytest.mark.parametrize(("layer", "plain"), [(Conv3x3, nn.Conv2d), (ConvTranspose3x3, nn.ConvTranspose2d)])
def test_layers_compute_what_pytorchs_do_with_the_same_weights(layer, plain):
    torch.manual_seed(0)
    ours = layer(160, 128)
    theirs = plain(160, 128, 3, padding=1, bias=ours.bias is not None)
    theirs.load_state_dict(ours.state_dict())  # the same names and shapes
    x = torch.randn(2, 160, 32, 32)
    assert pays(x, ours)
    found_all = value_and_gradients(ours, x, parameters=ours.parameters())
    true_all = value_and_gradients(theirs.double(), x.double(), parameters=theirs.parameters())
    for found, true in zip(found_all, true_all, strict=True):
        assert found.shape == true.shape
        assert relative(found, true) < 5e-6


def test_only_where_it_pays_and_nobody_counts():
    layer, x = Conv3x3(128, 128), torch.empty(2, 128, 32, 32)
    assert pays(x, layer)
    assert not pays(x.double(), layer)
    assert not pays(x.to("meta"), layer)
    assert not pays(x[:1], layer)  # few pixels
    assert not pays(torch.empty(2, 128, 34, 32), layer)  # no whole tiles
    assert not pays(x, Conv3x3(128, 64))
    assert not pays(x, Conv3x3(128, 128, stride=2))
    with torch.autocast("cpu", torch.bfloat16):
        assert not pays(x, layer)
    with FakeTensorMode():  # summary counts multiply-adds
        assert not pays(torch.empty(2, 128, 32, 32), layer)


def test_nothing_is_kept_but_input_and_weight():
    layer, x = Conv3x3(128, 128), torch.rand(2, 128, 32, 32)
    y = layer(x)
    assert [k.data_ptr() for k in y.grad_fn.saved_tensors] == [x.data_ptr(), layer.weight.data_ptr()]
