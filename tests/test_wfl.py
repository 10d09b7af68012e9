import literal
import pytest
import torch

from WFL import WeightedFrequencyLoss

SHAPES = [(2, 4, 1, 6, 6), (1, 3, 2, 5, 8), (2, 5, 3, 4, 7), (1, 1, 1, 3, 3), (1, 2, 4, 6, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("release", [False, True])
def test_loss_and_gradient_equal_the_full_spectrum_formula(shape, release):
    prediction, target = torch.randn(2, *shape)
    prediction.requires_grad_()
    criterion = WeightedFrequencyLoss(shape[1], *shape[-2:], release=release)
    ours, theirs = criterion(prediction, target), literal.weighted_frequency_loss(prediction, target, release)
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    (a,), (b,) = torch.autograd.grad(ours, prediction), torch.autograd.grad(theirs, prediction)
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_loss_of_a_constant_error_is_its_zero_frequency_alone():
    T, H, W, error = 10, 64, 64, 0.1
    criterion = WeightedFrequencyLoss(T, H, W)
    loss = criterion(torch.full((1, T, 1, H, W), error), torch.zeros(1, T, 1, H, W))
    weight = 1.5 - torch.exp(torch.tensor(-0.5 * ((5 / 8) ** 2 + 2 * (32 / 12) ** 2))).item()
    assert loss.item() == pytest.approx(weight * error**2 * T * H * W, rel=1e-5)


def test_slow_errors_cost_up_to_three_times_as_much_as_fast_ones():
    criterion = WeightedFrequencyLoss(16, 64, 64)
    zero, one = torch.zeros(1, 16, 1, 64, 64), torch.ones(1, 16, 1, 64, 64)
    sign = (-1.0) ** torch.arange(64)
    fastest = one * sign * sign[:, None] * sign[:16, None, None, None]
    assert criterion(one, zero).item() / criterion(fastest, zero).item() == pytest.approx(1.5 / 0.5, rel=0.02)


def test_loss_stays_float32_under_autocast_and_in_bfloat16():
    prediction, target = torch.rand(2, 1, 4, 1, 8, 8).bfloat16()
    criterion = WeightedFrequencyLoss(4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = criterion(prediction, target)
    assert loss.dtype == torch.float32
    assert loss.item() == criterion(prediction.float(), target.float()).item()


def test_other_sizes_than_announced_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 8, 8\)"):
        WeightedFrequencyLoss(4, 8, 8)(torch.zeros(1, 4, 1, 8, 9), torch.zeros(1, 4, 1, 8, 9))


def test_the_weights_are_a_buffer_but_not_in_the_state():
    criterion = WeightedFrequencyLoss(4, 8, 8)
    assert dict(criterion.named_buffers())["weight"].dtype == torch.float32
    assert not criterion.state_dict()
