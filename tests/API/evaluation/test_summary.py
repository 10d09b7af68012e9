"""What a training step keeps for backward, and takes at most, is counted before it runs."""

import torch
from models import needs_compiler
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from API.evaluation.summary import CHOICES, Ledger, cost_table, costs, memory, step_bytes, training_bytes
from API.speed.compiled import compile_block
from DFDNet import DFDNet

MIB = 2**20


def test_the_paper_s_model_keeps_no_more_in_bfloat16_than_it_should():
    for choice, most in (("--compile", 250), ("--checkpoint_blocks", 100)):
        assert 10 < memory(DFDNet, DFDNet.blocks, choice, (10, 1, 64, 64), 2, bfloat16=True)["kept"] / MIB < most


def block(width: int = 8) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.Sigmoid(), nn.Tanh())


def build() -> nn.Module:
    return nn.Sequential(block(), block())


def test_bytes_are_counted_as_they_are():
    """In rows of 8 floats, the prediction included. Eager: two results a block, the sigmoid's and the tanh's; a
    compiled block keeps its input and the product's result; a recomputed one its input. The first input does not count.
    """
    row = 4 * 8
    kept = {choice: memory(build, list, choice, (8,), 4) for choice in CHOICES}
    assert {choice: found["kept"] / row for choice, found in kept.items()} == {
        "eager": 4,
        "--compile": 4,
        "--checkpoint_blocks": 2,
    }


def test_copies_of_weights_in_bfloat16_count_once_and_not_a_sequence():
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Tanh())

    found = memory(build, list, "eager", (8,), 4, bfloat16=True)
    assert found["constant"] == 2 * 8 * 8  # of the second one: the first input needs no gradient
    assert found["kept"] == 3 * 2 * 8  # the first input in bfloat16, the first product, and the prediction


def test_norms_on_a_gpu_compute_in_float32_under_bfloat16():
    on = {gpu: memory(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), list, "eager", (8,), 4, True, gpu)
          for gpu in (False, True)}  # fmt: skip
    assert on[True]["kept"] > on[False]["kept"]


class Peak(TorchDispatchMode):
    """The most bytes of tensors that are alive after an operator, found by looking at all of them every time."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.peak = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.made[result.untyped_storage()._cdata] = (
            torch.multiprocessing.reductions.StorageWeakRef(result.untyped_storage()),
            result.untyped_storage().nbytes(),
        )
        self.peak = max(self.peak, sum(size for ref, size in self.made.values() if not ref.expired()))
        return result


def test_the_peak_is_that_of_the_tensors_that_live_at_once():
    def work() -> torch.Tensor:
        x = torch.ones(1000)
        y = x + 1
        del x
        return (y * 2).exp()

    with Ledger() as ledger:
        work()
    with Peak() as expected:
        work()
    assert ledger.peak == expected.peak == 3 * 4000  # y, y * 2 and its exponential
    assert ledger.now == 0


def test_gradients_count_into_the_peak():
    model = nn.Linear(100, 1, bias=False)
    assert 400 <= step_bytes(model, torch.rand(2, 100))["peak"] <= 400 + 100


def test_the_first_choice_that_fits_is_named():
    cost = {"parameters": 2**20, "multiply_adds": 1.0}
    cost["memory"] = {c: {"kept": g * 2**28, "peak": g * 2**30} for c, g in zip(CHOICES, (4, 2, 1))}
    assert training_bytes(cost, "eager") == 12 * 2**20 + 2**32
    lines = {free: cost_table(nn.Linear(1, 1), cost, 4, free * 2**30).splitlines() for free in (5, 3, 2, 1)}
    assert [line[-1].partition("; ")[2] for line in lines.values()][:3] == [f"{choice} fits" for choice in CHOICES]
    assert lines[1][-1].startswith("warning: training will run out of memory: --accumulate")
    assert any(line.split() == ["--compile", "512", "MiB", "2.01", "GiB"] for line in lines[5])


def test_parameters_and_multiply_adds_are_those_of_the_layers():
    cost = costs(lambda: nn.Sequential(nn.Conv2d(3, 5, 3, padding=1)), list, (3, 8, 8), 2)
    assert cost["parameters"] == 5 * 3 * 9 + 5
    assert cost["multiply_adds"] == 8 * 8 * 5 * 3 * 9


def test_a_module_that_returns_a_view_of_its_parameter_is_counted():
    class Position(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.rand(1, 8))

        def forward(self) -> torch.Tensor:
            return self.position.expand(3, -1)

    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place, self.mix = Position(), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mix(x) + self.place()

    cost = costs(Placed, lambda model: [model.mix], (3, 8), 2)
    assert cost["parameters"] == 8 * 8 + 8 + 8
    assert cost["multiply_adds"] == 3 * 8 * 8


def test_a_compiled_block_keeps_what_is_counted_and_less_than_an_eager_one():
    needs_compiler()
    torch._dynamo.reset()

    def build_dfdb() -> nn.Module:
        shape = (4, 1, 32, 32)
        (dfdb,) = DFDNet(shape, shape, hid_S=8, layer_config=(0, 1, 0, 0)).temporal.stages[1]
        return nn.Sequential(dfdb)

    (dfdb,) = model = build_dfdb().train()
    compile_block(dfdb, "aot_eager_decomp_partition")  # what Inductor keeps, without its code
    own, kept = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}, []
    for sequences in (2, 4):
        saved = {}

        def note(x: torch.Tensor, saved=saved) -> torch.Tensor:
            saved[x.untyped_storage()._cdata] = x.untyped_storage().nbytes(), x  # alive: no other takes its place
            return x

        past = torch.rand(sequences, 32, 16, 16)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            model(past)
        saved.pop(past.untyped_storage()._cdata, None)
        kept.append(sum(size for key, (size, _) in saved.items() if key not in own))
    counted = memory(build_dfdb, list, "--compile", (32, 16, 16), 4)
    prediction = 4 * 32 * 16 * 16  # counted, too, as the loss keeps it
    assert (kept[1] - kept[0]) / 2 + prediction == counted["kept"]
    assert counted["kept"] <= 0.7 * memory(build_dfdb, list, "eager", (32, 16, 16), 4)["kept"]
