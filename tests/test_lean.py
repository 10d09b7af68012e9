"""What is kept for backward, and that computing the rest again changes nothing."""

import copy

import pytest
import torch
from conftest import TINY
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from API.evaluation.summary import costs, kept_bytes
from DFDNet import DFDNet
from TemporalModule import lean, temporal
from WFL import WeightedFrequencyLoss


def plain(module: nn.Module, *inputs):
    """Keep everything: PyTorch's own way, its own convolutions too."""
    with lean._keep_nothing():
        return module(*inputs)


def gradients(model: nn.Module, past: torch.Tensor, future: torch.Tensor, bfloat16: bool = False) -> dict:
    model.zero_grad()
    past = past.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        predicted = model(past)
    WeightedFrequencyLoss(*future.shape[1:2], *future.shape[3:]).to(future.dtype)(predicted, future).backward()
    named = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return named | {"past": past.grad, "future": predicted.detach()} | {k: v.clone() for k, v in model.named_buffers()}


def make(monkeypatch, way: str, dtype: torch.dtype = torch.float32, **changes) -> DFDNet:
    """The tiny model, the same weights each time, keeping for backward what `way` says."""
    torch.manual_seed(3)
    model = DFDNet(**TINY | changes)
    for name, p in model.named_parameters():
        if name.endswith("threshold") and p.requires_grad:
            p.data.uniform_(-0.2, 1.0)
    model = model.to(dtype)
    everything = plain if way == "everything" else lean.keep_products
    monkeypatch.setattr(temporal, "keep_products", everything)
    monkeypatch.setattr("DFDNet.keep_products", everything)
    model.temporal.checkpoint_blocks = way == "inputs"
    return model


@pytest.mark.parametrize("way", ["products", "inputs"])
@pytest.mark.parametrize("changes", [{}, dict(release=True), dict(out_shape=(6, 1, 32, 32))], ids=str)
def test_computing_again_gives_the_gradients_of_keeping_everything(monkeypatch, way, changes):
    past, frames = torch.rand(2, 4, 1, 32, 32), changes.get("out_shape", (4,))[0]
    future = torch.rand(2, frames, 1, 32, 32)
    expected = gradients(make(monkeypatch, "everything", torch.float64, **changes), past.double(), future.double())
    ours = gradients(make(monkeypatch, way, torch.float64, **changes), past.double(), future.double())
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().clamp(min=1e-3)
        assert (ours[name] - value).abs().max() <= 1e-9 * scale, name


def test_every_precision_is_no_farther_from_float64_than_keeping_everything_is(monkeypatch):
    past, future = torch.rand(2, 4, 1, 32, 32), torch.rand(2, 4, 1, 32, 32)
    for gates in ("learned", "closed"):  # learned ones flip within rounding; closed ones let rounding alone speak

        def found(way: str, dtype: torch.dtype, bfloat16: bool = False, gates=gates) -> dict:
            model = make(monkeypatch, way, dtype)
            for name, p in model.named_parameters():
                if name.endswith("threshold") and gates == "closed":
                    p.data.fill_(float("inf"))
            return gradients(model, past.to(dtype), future.to(dtype), bfloat16)

        exact = found("everything", torch.float64)
        names = [name for name, value in exact.items() if value.is_floating_point() and "threshold" not in name]

        def error(found: dict, names: list[str], exact=exact) -> float:
            a, b = (torch.cat([values[name].flatten().double() for name in names]) for values in (found, exact))
            return ((a - b).norm() / b.norm()).item()

        for bfloat16, most, most_gradient in ((False, 1e-5, 1e-4), (True, 5e-2, 2e-1)):
            ours, everything = (found(way, torch.float32, bfloat16) for way in ("products", "everything"))
            assert torch.equal(ours["future"], everything["future"])
            assert error(ours, names) <= 1.2 * error(everything, names) + 1e-7
            if gates == "closed":
                assert error(ours, ["future"]) < most
                assert error(ours, names) < most_gradient


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lean.Linear(5, 3), (2, 4, 5)),
        (lean.Linear(4, 6, bias=False), (3, 4)),
        (lean.Conv2d(2, 4, 3, 2, 1), (2, 2, 6, 6)),
        (lean.Conv2d(3, 2, 1, bias=False), (2, 3, 4, 4)),
        (lean.ConvTranspose2d(3, 2, 3, 2, 1, output_padding=1), (2, 3, 4, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_with_their_result_at_hand_have_the_numerical_gradient(layer, shape):
    layer = copy.deepcopy(layer).double()
    x = torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    wrapped = nn.Sequential(layer, nn.Tanh())

    for way in (lean.keep_products, nn.Module.__call__):

        def call(x, *weights, way=way):
            return way(wrapped, x)

        assert torch.autograd.gradcheck(call, (x, *wrapped.parameters()))


def test_a_linear_layer_that_keeps_a_sum_has_the_numerical_gradient():
    layer = lean.AddedLinear(5, 6, bias=False).double()
    x, to = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 4, 5), (2, 6, 4)))

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, to):
            return torch.tanh(self.layer(x, to, lambda y: y.transpose(1, 2)))

    wrapped = Wrapped()
    for way in (lean.keep_products, nn.Module.__call__):
        assert torch.equal(way(wrapped, x, to), torch.tanh(to + torch.nn.functional.linear(x, layer.weight).mT))
        assert torch.autograd.gradcheck(lambda x, to, weight, way=way: way(wrapped, x, to), (x, to, layer.weight))


def test_nothing_may_read_what_is_said_to_be_the_last_result():
    class Wrapped(nn.Module):
        def forward(self, x):
            return lean.last(lambda: x * 1, like=x).tanh()

    y = lean.keep_products(Wrapped(), torch.randn(2, 3, requires_grad=True))
    with pytest.raises(AssertionError, match="last"):
        y.sum().backward()


def test_running_statistics_count_a_batch_once(monkeypatch):
    for way in ("everything", "inputs"):
        model = make(monkeypatch, way)
        for _ in range(2):
            gradients(model, torch.rand(2, 4, 1, 32, 32), torch.rand(2, 4, 1, 32, 32))
        assert model.temporal.unstem_first[1].num_batches_tracked == 2


class Products(TorchDispatchMode):
    """Counts matrix products and convolutions; not depthwise ones, which cost what reading costs."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = self.convolution = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.overloadpacket.__name__
        self.matrix += name in ("mm", "addmm", "bmm", "baddbmm")
        self.convolution += name == "convolution" and args[-1] == 1  # groups
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(("way", "times"), [("everything", 1), ("products", 1), ("inputs", 2)])
def test_matrix_products_are_computed_once_or_where_inputs_alone_are_kept_twice(monkeypatch, way, times):
    model, past, future = make(monkeypatch, way), torch.rand(2, 4, 1, 32, 32), torch.rand(2, 4, 1, 32, 32)
    with torch.no_grad(), Products() as forward:
        model(past)
    with Products() as step:
        gradients(model, past, future)
    assert step.matrix == (times + 2) * forward.matrix > 0  # backward is two products for one
    unneeded = 2 * (times - 1)  # nothing in backward asks for the last result of the decoder and of the unstem
    assert step.convolution == times * forward.convolution - unneeded > 0


@pytest.mark.parametrize("way", ["products", "inputs"])
def test_pytorch_s_counter_of_operations_counts_a_training_step(monkeypatch, way):
    model, past, future = make(monkeypatch, way), torch.rand(2, 4, 1, 32, 32), torch.rand(2, 4, 1, 32, 32)
    with FlopCounterMode(display=False) as counter:
        gradients(model, past, future)
    assert counter.get_total_flops() > 0


def test_the_paper_s_model_keeps_no_more_than_it_should():
    mib = 2**20
    for bfloat16, most, most_with_blocks in ((False, 450, 100), (True, 250, 50)):
        for block in (False, True):

            def build(block=block):
                model = DFDNet()
                model.temporal.checkpoint_blocks = block
                return model

            kept = costs(build, (10, 1, 64, 64), bfloat16)["activation_bytes"] / mib
            assert 10 < kept < (most_with_blocks if block else most)


def test_bytes_are_counted_as_they_are():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())  # keeps the sigmoid's result, 8 floats a row, and no copy of x
    assert kept_bytes(model, torch.rand(4, 8), False) == 4 * 8 * 4
