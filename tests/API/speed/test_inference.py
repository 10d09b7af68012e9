"""Models prepared for inference only, against themselves as they were trained."""

import copy

import pytest
import torch
from conftest import TINY
from torch import nn

from API.speed.inference import CONVOLUTIONS, fold_norms, prepare_inference, round_weights
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
    assert fold_norms(folded, past) == ["17 BatchNorms folded into convolutions"]
    assert error(folded(past), model(past)) < 1e-12
    # Only the stems' second norms are left, which come behind a ReLU.
    left = [name for name, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == ["temporal.stem_first.3", "temporal.stem_last.0.3"]


class Sharpened(nn.Conv2d):
    """A convolution of one's own: twice what its class computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Twice(nn.Sequential):
    """A sequence of one's own: its first layer is called twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self[0](x))


def hooked(module: nn.Module) -> nn.Module:
    module[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    return module


def parametrised(module: nn.Module) -> nn.Module:
    nn.utils.parametrizations.weight_norm(module[0])
    return module


@torch.no_grad()
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(Sharpened(3, 3, 3), nn.BatchNorm2d(3)),
        lambda: Twice(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)),
        lambda: hooked(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))),
        lambda: parametrised(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))),
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3, track_running_stats=False)),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)),
    ],
    ids=["subclass", "own sequence", "hook", "parametrisation", "batch statistics", "grouped transposed"],
)
def test_what_is_not_known_to_be_right_is_not_folded(build):
    model = nn.Sequential(build()).eval()
    x = torch.randn(2, 4 if isinstance(model[0][0], nn.ConvTranspose2d) else 3, 8, 8)
    before = model(x)
    assert fold_norms(model, x) == []
    assert torch.equal(model(x), before)


@torch.no_grad()
@pytest.mark.parametrize(
    "read",
    [lambda inner, x: inner[0](x), lambda inner, x: inner[1].running_var.mean()],
    ids=["the convolution without its norm", "a statistic"],
)
def test_folding_that_would_change_a_prediction_is_taken_back(read):
    inner = trained(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + read(self.inner, x)

    model, x = Outer().eval(), torch.randn(2, 3, 8, 8)
    before = model(x)
    (line,) = fold_norms(model, x)
    assert line.startswith("warning: BatchNorms are not folded")
    assert torch.equal(model(x), before)


@torch.no_grad()
@pytest.mark.parametrize("release", [False, True])
def test_rounded_weights_give_the_bits_of_autocast_at_half_the_size(release):
    model, past = DFDNet(**TINY, release=release).eval(), torch.rand(2, 4, 1, 32, 32)
    rounded = copy.deepcopy(model)
    round_weights(rounded, past)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded(past), model(past))
    products = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS))}
    for name, value in rounded.state_dict().items():
        if name in products:
            assert value.dtype == torch.bfloat16, name
        elif not name.endswith("bias"):
            assert value.dtype in (torch.float32, torch.int64), name


@torch.no_grad()
def test_what_runs_outside_of_autocast_keeps_its_weights():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.outside, self.both, self.unused = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.both(self.inside(x))
            with torch.autocast("cpu", enabled=False):
                return self.both(self.outside(x.float()))

    model, x = Mixed(), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        assert round_weights(model, x) == ["weights of 1 layers rounded to bfloat16"]
        assert torch.equal(model(x), before)
    assert model.inside.weight.dtype == torch.bfloat16


class Shared(nn.Module):
    """A weight that is used under autocast and, not by its layer's own call, outside of it: by a layer that is tied to
    it, by a function, by NumPy. A buffer in its layer, too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.inside, self.outside = nn.Linear(8, 8), nn.Linear(8, 8)
        self.inside.register_buffer("scale", torch.tensor(1.2345))
        self.outside.weight = self.inside.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inside(x) * self.inside.scale
        with torch.autocast("cpu", enabled=False):
            x = x.float()
            if self.how == "numpy":
                return x * float(self.inside.weight.numpy().mean())
            return self.outside(x) if self.how == "tied" else nn.functional.linear(x, self.inside.weight)


@torch.no_grad()
@pytest.mark.parametrize("how", ["tied", "function", "numpy"])
def test_a_weight_that_is_used_outside_of_autocast_too_stays_as_it_is(how):
    model, x = Shared(how), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(x)
        (line,) = round_weights(model, x)
        assert torch.equal(model(x), before)
    assert line.startswith("warning: weights are not rounded to bfloat16: ")
    assert {p.dtype for p in (*model.parameters(), *model.buffers())} == {torch.float32}


@torch.no_grad()
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_prepared_model_is_as_exact_as_before(precision, dtype):
    past = torch.rand(2, 4, 1, 32, 32)
    model = trained(DFDNet(**TINY)).train()
    before = copy.deepcopy(model).eval()
    true = copy.deepcopy(before).double()(past.double())
    lines = prepare_inference(model, past, precision)
    assert len(lines) == (4 if precision == "bf16" else 3)
    assert not any(module.training for module in model.modules())
    assert {m.weight.dtype for m in model.modules() if isinstance(m, CONVOLUTIONS)} == {dtype}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        assert error(model(past), true) < 1.2 * error(before(past), true)
