"""Models made ready to predict, against themselves as they were trained."""

import copy

import pytest
import torch
from conftest import TINY
from TemporalModule.winograd import Conv3x3, ConvTranspose3x3, pays
from torch import nn

from API.machine.device import Machine
from API.speed.inference import CONVOLUTIONS, fold_norms, round_weights
from DFDNet import DFDNet


def trained(module: nn.Module) -> nn.Module:
    """module in evaluation mode, with BatchNorms that do something."""
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        for value in (norm.weight, norm.bias, norm.running_mean):
            nn.init.normal_(value)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return module.eval()


def error(ours: torch.Tensor, true: torch.Tensor) -> float:
    return ((ours.double() - true).norm() / true.norm()).item()


@torch.no_grad()
@pytest.mark.parametrize("release", [False, True])
def test_a_model_with_its_norms_folded_predicts_the_same(release):
    model, past = trained(DFDNet(**TINY, release=release)).double(), torch.rand(2, 4, 1, 32, 32, dtype=torch.float64)
    folded = copy.deepcopy(model)
    fold_norms(folded)
    assert error(folded(past), model(past)) < 1e-12
    # Only the stems' second norms are left, which come behind a ReLU.
    left = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == ["temporal.stem_first.3", "temporal.stem_last.0.3"]


@torch.no_grad()
@pytest.mark.parametrize("layer", [Conv3x3, ConvTranspose3x3])
def test_norms_are_folded_into_convolutions_by_winograds_method_too(layer):
    model, x = trained(nn.Sequential(layer(160, 128), nn.BatchNorm2d(128))), torch.randn(2, 160, 32, 32)
    true = copy.deepcopy(model).double()(x.double())
    fold_norms(model)
    assert pays(x, model[0])
    assert error(model(x), true) < 5e-6


@torch.no_grad()
@pytest.mark.parametrize("release", [False, True])
def test_rounded_weights_give_the_bits_of_autocast_at_half_the_size(release):
    model, past = DFDNet(**TINY, release=release).eval(), torch.rand(2, 4, 1, 32, 32)
    rounded = copy.deepcopy(model)
    round_weights(rounded)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded(past), model(past))
    products = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS))}
    for name, value in rounded.state_dict().items():
        if name in products:
            assert value.dtype == torch.bfloat16, name
        elif not name.endswith("bias"):
            assert value.dtype in (torch.float32, torch.int64), name


@torch.no_grad()
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_machine_makes_a_model_ready_that_is_as_exact_as_before(precision, dtype):
    machine, past = Machine("cpu", 0, precision, 0, False), torch.rand(2, 4, 1, 32, 32)
    model = trained(DFDNet(**TINY)).train()
    before = copy.deepcopy(model).eval()
    true = copy.deepcopy(before).double()(past.double())
    ready = machine.to_predict(model)
    assert not any(module.training for module in ready.modules())
    assert {m.weight.dtype for m in ready.modules() if isinstance(m, CONVOLUTIONS)} == {dtype}
    with machine.autocast():
        assert error(ready(past), true) < 1.2 * error(before(past), true)
