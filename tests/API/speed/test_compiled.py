"""Compiled blocks: any batch size, no more kept than eager, and eager where compiling fails."""

import pytest
import torch
from models import batch, differences, needs_compiler, tiny, training_step
from torch import nn

from API.speed import accelerate


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def compiled(model, backend="aot_eager", blocks=None, **options) -> list[str]:
    example = batch(next(model.parameters()).dtype, sequences=3)[0]
    blocks = model.blocks() if blocks is None else blocks
    return accelerate(model, blocks, compile=True, example=example, backend=backend, **options)


@pytest.mark.filterwarnings("ignore")
def test_no_batch_size_compiles_again():
    needs_compiler()
    plain, model = tiny(layer_config=(0, 0, 0, 1)), tiny(layer_config=(0, 0, 0, 1))
    blocks = [model.encoder, *model.temporal.stages[3]]
    (line,) = [line for line in compiled(model, blocks=blocks) if "compiled" in line]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for sequences in (2, 3, 5):
        past, future = batch(sequences=sequences)
        assert max(differences(training_step(model, past, future), training_step(plain, past, future)).values()) < 1e-9
        with torch.no_grad():
            assert torch.allclose(model.eval()(past), plain.eval()(past), rtol=0, atol=1e-9)
        model.train(), plain.train()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= graphs + 2  # past with a gradient of its own
    assert line == f"compiled 2 blocks in {line.split()[-2]} s"


@pytest.mark.filterwarnings("ignore")
def test_blocks_of_one_kind_share_their_code():
    needs_compiler()
    model = tiny(layer_config=(0, 3, 0, 0))
    compiled(model, blocks=model.temporal.stages[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one to train, one to evaluate


def test_where_compiling_fails_blocks_run_as_they_are_after_one_warning():
    model = tiny(torch.float32)

    def broken(graph, inputs):
        raise RuntimeError("no compiler\non this machine")

    (line,) = [line for line in compiled(model, broken) if line.startswith("warning")]
    assert line.startswith("warning: compiling failed, going on without (")
    assert "\n" not in line
    assert model(batch(torch.float32)[0]).shape == (2, 4, 1, 32, 32)


@pytest.mark.filterwarnings("ignore")
def test_where_compiling_fails_in_another_process_nothing_is_compiled_here():
    needs_compiler()
    model = tiny(torch.float32)
    lines = compiled(model, blocks=[model.temporal.stem_first], agree=lambda failed: True)
    assert lines[-1] == "warning: compiling failed, going on without (in another process)"
    model(batch(torch.float32)[0])
    assert not any("forward" in vars(block) for block in model.blocks())


@pytest.mark.filterwarnings("ignore")
def test_a_number_that_changes_every_step_leaves_its_block_uncompiled_after_one_warning(capsys):
    class Annealed(nn.Module):
        width = 1.0

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.weight * x / self.width)

    needs_compiler()
    model, x = nn.Sequential(Annealed()), torch.linspace(-1, 1, 6).reshape(2, 3)
    accelerate(model, list(model), compile=True, example=x, backend="eager")
    with torch._dynamo.config.patch(cache_size_limit=4):
        for step in range(6):
            model[0].width = 1 / (1 + step)
            model.zero_grad()
            model(x).sum().backward()
            passed = torch.sigmoid(2 * x * (1 + step))
            assert model[0].weight.grad.item() == pytest.approx(
                (passed * (1 - passed) * x * (1 + step)).sum().item(), abs=1e-6
            )
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("warning: Annealed is compiled anew again and again")


@pytest.mark.filterwarnings("ignore")
def test_a_block_that_the_compiler_cannot_trace_whole_updates_its_statistics_once():
    class Block(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            convolution, norm = self
            x = convolution(x)
            torch._dynamo.graph_break()
            return norm(x)

    block = Block(torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4))
    model, example = torch.nn.Sequential(block), torch.rand(2, 4, 3, 3)
    (line,) = accelerate(model, [block], compile=True, example=example, backend="aot_eager")
    assert line.startswith("warning: compiling failed")
    model(example).sum().backward()
    assert block[1].num_batches_tracked == 1
