"""Recomputation by blocks: what it keeps, and that running statistics count a batch once."""

import pytest
import torch
from models import batch, differences, tiny, training_step
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from API.speed.recompute import recompute_blocks


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator.overloadpacket.__name__ in ("mm", "addmm", "bmm")
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize(("recompute", "times"), [(False, 1), (True, 2)])
def test_matrix_products_are_computed_twice_where_inputs_alone_are_kept(recompute, times):
    model, (past, future) = tiny(), batch()
    if recompute:
        recompute_blocks(model.blocks())
    with torch.no_grad(), Products() as forward:
        model(past)
    with Products() as step:
        training_step(model, past, future)
    assert step.count == (times + 2) * forward.count > 0  # backward is two products for one


class Centred(nn.Module):
    """Subtracts a running mean that every call moves: what a block reads, it also changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        with torch.no_grad():
            self.mean.lerp_(x.mean(), 0.5)
        return (self.scale * (x - self.mean)).tanh()


class Remembering(nn.Module):
    """Assigns a new buffer at every call: the running mean, and every past mean in a queue that begins as None."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("queue", None)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        now = x.detach().mean()[None]
        self.mean = 0.5 * self.mean + now[0]
        self.queue = now if self.queue is None else torch.cat([self.queue, now])
        return (self.scale * (x - self.mean) + self.queue.sum()).tanh()


@pytest.mark.parametrize("kind", [Centred, Remembering])
def test_buffers_that_a_block_reads_and_changes_or_assigns_are_seen_as_they_were(kind):
    x = torch.randn(3, 4, dtype=torch.float64)
    found = []
    for recompute in (False, True):
        block = kind().double()
        if recompute:
            recompute_blocks([block])
        for _ in range(2):
            first, second = block(x), block(x + 1)  # both recomputed when the buffer has moved on
            (first.square().sum() + second.sum()).backward()
        found.append((block.scale.grad, dict(block.named_buffers())))
    assert torch.allclose(*(grad for grad, _ in found), rtol=1e-12)
    buffers, expected = (buffers for _, buffers in found)
    assert buffers.keys() == expected.keys()
    assert all(torch.equal(buffers[name], expected[name]) for name in expected)


def test_a_number_of_python_that_a_block_changes_changes_once():
    class Counting(nn.Linear):
        steps, rate = 0, 2.0

        def forward(self, x):
            self.steps += 1
            self.rate /= 2
            return super().forward(x).tanh() * self.rate / self.steps

    plain, ours = Counting(3, 2), Counting(3, 2)
    ours.load_state_dict(plain.state_dict())
    recompute_blocks([ours])
    for step in (1, 2):
        for block in (plain, ours):
            block.zero_grad()
            block(torch.arange(6.0).view(2, 3)).sum().backward()
        assert torch.equal(ours.weight.grad, plain.weight.grad)
        assert (ours.steps, ours.rate) == (plain.steps, plain.rate) == (step, 2 / 2**step)


def test_a_block_may_be_called_with_names():
    class Scaled(nn.Linear):
        def forward(self, x: torch.Tensor, *, gain: float = 1.0) -> torch.Tensor:
            return torch.tanh(gain * super().forward(x))

    block, x, gradients = Scaled(3, 3), torch.randn(2, 3), []
    for _ in range(2):
        block.zero_grad()
        block(x, gain=0.5).sum().backward()
        gradients.append(block.weight.grad.clone())
        recompute_blocks([block])
    assert torch.equal(*gradients)


def test_only_inputs_are_kept():
    kept = []
    model, (past, _) = tiny(), batch()
    for recompute in (False, True):
        if recompute:
            recompute_blocks(model.blocks())
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(past)
        kept.append(sum(sizes.values()))
    assert kept[1] < kept[0] / 4


def test_a_model_in_evaluation_recomputes_nothing_wrong():
    plain, model, (past, future) = tiny().eval(), tiny().eval(), batch()
    recompute_blocks(model.blocks())
    assert max(differences(training_step(model, past, future), training_step(plain, past, future)).values()) < 1e-9
