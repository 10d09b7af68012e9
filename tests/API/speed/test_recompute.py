"""Recomputation by blocks: what it keeps, and that running statistics count a batch once."""

import copy
import random

import numpy as np
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


class Own(nn.Linear):
    """Keeps of its own what forward reads and changes, in every way but buffers and numbers."""

    def __init__(self, kind: str) -> None:
        super().__init__(4, 4)
        self.kind, self.last, self.seen, self.counts = kind, None, [], {"calls": 0}
        self.numpy, self.python, self.torch = np.random.default_rng(0), random.Random(0), torch.Generator()

    def factor(self, x: torch.Tensor) -> torch.Tensor | float:
        if self.kind == "a tensor, assigned":
            before, self.last = self.last, x.mean(0)
            return 1.0 if before is None else before
        if self.kind == "a tensor, in place":
            self.last = torch.zeros(4) if self.last is None else self.last
            return self.last.add_(x.mean(0)).clone()
        if self.kind == "a list":
            self.seen.append(x.mean())
            return torch.stack(self.seen).sum()
        if self.kind == "a dict":
            self.counts["calls"] += 1
            return 1 / self.counts["calls"]
        if self.kind == "a buffer made in forward":
            if not hasattr(self, "mean"):
                self.register_buffer("mean", torch.ones(4))
            before, self.mean = self.mean, x.mean(0)
            return before
        numbers = {
            "a generator of NumPy": lambda: self.numpy.random(4),
            "a generator of Python": lambda: [self.python.random() for _ in range(4)],
            "a generator of PyTorch": lambda: torch.rand(4, generator=self.torch),
        }
        return torch.as_tensor(numbers[self.kind](), dtype=x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (super().forward(x) * self.factor(x)).tanh()


@pytest.mark.parametrize(
    "kind",
    [
        "a tensor, assigned",
        "a tensor, in place",
        "a list",
        "a dict",
        "a buffer made in forward",
        "a generator of NumPy",
        "a generator of Python",
        "a generator of PyTorch",
    ],
)
def test_what_a_block_keeps_of_its_own_is_seen_as_it_was_and_changes_once(kind):
    plain = Own(kind)
    ours = copy.deepcopy(plain)
    recompute_blocks([ours])
    for step in range(3):
        for block in (plain, ours):
            block.zero_grad()
            x = torch.arange(8.0).view(2, 4) / 8 + step
            (block(x).sum() + block(x + 1).square().sum()).backward()
        assert torch.equal(ours.weight.grad, plain.weight.grad)


def test_a_second_backward_pass_computes_again():
    plain = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())
    ours = copy.deepcopy(plain)
    recompute_blocks([ours])
    for block in (plain, ours):
        y = block(torch.arange(6.0).view(2, 3).sin())
        y.abs().sum().backward(retain_graph=True)
        y.square().sum().backward()
    assert torch.equal(ours[0].weight.grad, plain[0].weight.grad)
    assert torch.equal(ours[1].running_var, plain[1].running_var)


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
