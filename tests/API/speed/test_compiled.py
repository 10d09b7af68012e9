"""Compiled parts compute what eager ones do, keep as little, and are not compiled again and again."""

import copy

import pytest
import torch
from conftest import TINY
from test_lean import gradients, make

from API.speed.compiled import as_compiled_for, compile_part
from API.speed.mish import GroupNormMish
from DFDNet import DFDNet


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_compiled_blocks_compute_the_same_and_no_batch_size_compiles_again(monkeypatch, bfloat16):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make(monkeypatch, "products").train()
    for name, p in model.named_parameters():
        if name.endswith("threshold"):
            p.data.fill_(-1.0)  # every gate open: none can flip within rounding
    eager = copy.deepcopy(model)

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)

    assert model.compile_blocks(3, autocast, "aot_eager").startswith("compiled")
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 12  # three stages, and what follows convolutions at three sizes, to train and to evaluate
    for batch in (2, 3, 5):
        past, future = torch.rand(batch, 4, 1, 32, 32), torch.rand(batch, 4, 1, 32, 32)
        ours, expected = gradients(model, past, future, bfloat16), gradients(eager, past, future, bfloat16)
        assert (ours["future"] - expected["future"]).norm() <= (5e-2 if bfloat16 else 1e-5) * expected["future"].norm()
        for name, value in expected.items() if not bfloat16 else ():
            assert (ours[name] - value).double().norm() <= 1e-4 * value.double().norm() + 1e-4, name
        with torch.no_grad(), autocast():
            ours, expected = model.eval()(past), eager.eval()(past)
        assert (ours - expected).norm() <= (5e-2 if bfloat16 else 1e-5) * expected.norm()
        model.train(), eager.train()
    model.temporal.checkpoint_blocks = True
    gradients(model, past, future, bfloat16)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hid_S", [TINY["hid_S"], 40])  # norms in float32, and in bfloat16
def test_a_compiled_block_keeps_no_more_than_an_eager_one(hid_S):
    torch._dynamo.reset()
    model = DFDNet(**TINY | dict(layer_config=(0, 1, 0, 0), hid_S=hid_S))
    (block,) = model.temporal.stages[1]
    own = {tensor.untyped_storage()._cdata for tensor in (*block.parameters(), *block.buffers())}

    def kept_by_a_sequence() -> float:
        sizes = []
        for batch in (2, 4):
            kept = {}

            def note(tensor: torch.Tensor, kept=kept) -> torch.Tensor:
                storage = tensor.untyped_storage()
                kept[storage._cdata] = storage.nbytes(), tensor  # alive, so that no other takes its place
                return tensor

            with (
                torch.autocast("cpu", torch.bfloat16),
                torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
            ):
                x = as_compiled_for(torch.rand(batch, 4 * hid_S, 16, 16)).requires_grad_()
                block(x)
            sizes.append(sum(size for key, (size, _) in kept.items() if key not in own))
        return (sizes[1] - sizes[0]) / 2

    eager = kept_by_a_sequence()
    partition = "aot_eager_decomp_partition"  # what Inductor keeps, without its code
    assert model.compile_blocks(2, lambda: torch.autocast("cpu", torch.bfloat16), partition).startswith("compiled")
    assert 0 < kept_by_a_sequence() <= eager


def test_where_compiling_fails_blocks_run_as_they_are_after_one_warning(monkeypatch):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = make(monkeypatch, "products").train()

    def broken(graph, inputs):
        raise RuntimeError("no compiler\non this machine")

    line = model.compile_blocks(2, backend=broken)
    assert line.startswith("warning: compiling failed")
    assert "\n" not in line
    assert model(torch.rand(2, 4, 1, 32, 32)).shape == (2, 4, 1, 32, 32)


def test_a_part_compiled_for_a_batch_of_one_is_compiled_once_more_for_all_others():
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    norm, eager = GroupNormMish(2, 6), GroupNormMish(2, 6)
    compile_part(norm, {"backend": backend, "dynamic": False})
    for batch in (1, 2, 3, 5):
        x = torch.rand(batch, 6, 4, 5).contiguous(memory_format=torch.channels_last)
        assert torch.allclose(norm(x), eager(x), atol=1e-6)
    assert len(graphs) == 2
    assert torch.equal(copy.deepcopy(norm)(x), eager(x))  # a copy is not compiled
