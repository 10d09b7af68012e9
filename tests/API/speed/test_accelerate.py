"""An accelerated model computes what the plain one does: values, every gradient, every buffer."""

import copy

import pytest
import torch
from models import batch, differences, needs_compiler, tiny, training_step
from torch import nn

from API.speed import accelerate
from API.speed.mish import FastMish
from API.speed.norms import Float32GroupNorm, Float32LayerNorm

CHOICES = {
    "nothing to keep in mind": {},
    "recomputed": dict(recompute=True),
    "compiled": dict(compile=True, backend="aot_eager_decomp_partition"),
    "recomputed and compiled": dict(recompute=True, compile=True, backend="aot_eager_decomp_partition"),
}


def accelerated(model: nn.Module, **choice) -> list[str]:
    example = batch(next(model.parameters()).dtype, sequences=3)[0]
    blocks = model.temporal.stages[3] if choice.get("compile") else model.blocks()  # compiling takes seconds
    return accelerate(model, blocks, example=example, **choice)


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("choice", "changes"),
    [
        ("nothing to keep in mind", {}),
        ("recomputed", {}),
        ("recomputed", dict(release=True)),
        ("recomputed", dict(out_shape=(6, 1, 32, 32))),
        ("recomputed and compiled", dict(release=True)),
    ],
    ids=str,
)
def test_plain_equals_accelerated_in_values_gradients_and_buffers(choice, changes):
    if "compiled" in choice:
        needs_compiler()
    past, future = batch(frames=changes.get("out_shape", (4,))[0])
    plain, model = tiny(**changes), tiny(**changes)
    lines = accelerated(model, **CHOICES[choice])
    assert lines
    assert not any(line.startswith("warning") for line in lines)
    for _ in range(2):  # the second step meets running statistics of the first
        worst = differences(training_step(model, past, future), training_step(plain, past, future))
        assert max(worst.values()) < 1e-9, max(worst, key=worst.get)
    with torch.no_grad():
        assert torch.allclose(model.eval()(past), plain.eval()(past), rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("choice", ["recomputed", "compiled"])
def test_bfloat16_is_as_near_to_float64_as_plain_bfloat16_is(choice):
    past, future = batch(torch.float32)
    exact = training_step(tiny(open_gates=True), past.double(), future.double())
    plain, model = (tiny(torch.float32, open_gates=True) for _ in range(2))
    accelerated(model, **CHOICES[choice], autocast=lambda: torch.autocast("cpu", torch.bfloat16))

    def error(found: dict) -> float:
        names = [name for name, value in exact.items() if value.is_floating_point()]
        a, b = (torch.cat([v[name].flatten().double() for name in names]) for v in (found, exact))
        return ((a - b).norm() / b.norm()).item()

    assert error(training_step(model, past, future, True)) <= 1.1 * error(training_step(plain, past, future, True))


def test_a_copy_of_an_accelerated_model_is_one_of_its_own():
    model = tiny()
    accelerated(model, recompute=True)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    past, _ = batch()
    assert other(past).abs().max() == 0
    assert model(past).abs().max() > 0
    assert model.state_dict().keys() == tiny().state_dict().keys()


def test_only_exact_torch_classes_are_swapped():
    class Mine(nn.Mish):
        pass

    class MyNorm(nn.LayerNorm):
        pass

    model = nn.Sequential(
        nn.Mish(), Mine(), nn.Mish(inplace=True), nn.LayerNorm(8), MyNorm(8), nn.LayerNorm(512), nn.GroupNorm(2, 8)
    )
    accelerate(model, [])
    assert [type(m) for m in model] == [
        FastMish, Mine, nn.Mish, Float32LayerNorm, MyNorm, nn.LayerNorm, Float32GroupNorm,
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 8), (2, 8, 5, 3)])
def test_norms_in_float32_are_nearer_to_the_exact_ones_than_bfloat16_s(shape):
    x = (torch.randn(shape) * 3 + 5).bfloat16()
    for norm in (nn.GroupNorm(2, 8), nn.LayerNorm(shape[-1])):
        exact = copy.deepcopy(norm).double()(x.double())
        model = nn.Sequential(copy.deepcopy(norm))
        accelerate(model, [])
        with torch.autocast("cpu", torch.bfloat16):
            ours, plain = model(x), norm(x)
        assert ours.dtype == torch.bfloat16
        assert (ours - exact).abs().max() <= (plain - exact).abs().max() + 1e-6
        assert torch.equal(model(x.float()), norm(x.float()))
