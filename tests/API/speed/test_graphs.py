"""Graphed steps on a CPU: operators are recorded as a CUDA graph records kernels, and a replay runs them alone."""

import json
import random

import pytest
import torch
from conftest import TINY_FLAGS
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import core
import main
from API import UserError
from API.datasets import digits
from API.evaluation import figures
from API.machine.device import Machine
from API.run.checkpoint import digest, last_checkpoint
from API.speed.graphs import WARM_UP, Graphed


class Recorded(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph and torch.cuda.graph: records operators, then takes back what they have changed,
    as a capture computes nothing. Their results are NaN until replay runs them again, in place."""

    made: list["Recorded"] = []  # noqa: RUF012 - one for each test, see below

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.changed, self.own, self.replays = [], [], set(), 0
        Recorded.made.append(self)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        known = {x.untyped_storage()._cdata for x in given}
        if operator._schema.is_mutable:
            self.changed += [(x, x.clone()) for x in given if x.untyped_storage()._cdata not in self.own]
        found = operator(*args, **(kwargs or {}))
        new = [x if isinstance(x, Tensor) else None for x in tree_leaves(found)]
        new = [None if x is None or x.untyped_storage()._cdata in known else x for x in new]
        self.own |= {x.untyped_storage()._cdata for x in new if x is not None}
        if operator._schema.is_mutable or any(x is not None for x in new):  # a view stays one
            self.operators.append((operator, args, kwargs or {}, new))
        return found

    def __enter__(self) -> "Recorded":
        self.generator = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *exception) -> None:
        super().__exit__(*exception)
        torch.set_rng_state(self.generator)
        with torch.no_grad():
            for x, before in reversed(self.changed):
                x.copy_(before)
            for x in (x for *_, new in self.operators for x in new if x is not None):
                x.fill_(float("nan") if x.is_floating_point() or x.is_complex() else 0)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for operator, args, kwargs, new in self.operators:
            for x, value in zip(new, tree_leaves(operator(*args, **kwargs))):
                if x is not None:
                    x.copy_(value)


class NoReads(TorchDispatchMode):
    """Stands for PyTorch's mode in which what waits for a GPU is an error: while it is set, no value may be read."""

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("called a synchronizing CUDA operation")
        return operator(*args, **(kwargs or {}))

    def set(self, mode: str) -> None:
        self.__enter__() if mode == "error" else self.__exit__(None, None, None)


@pytest.fixture
def recorded(monkeypatch) -> list[Recorded]:
    """The graphs that are made, on a machine that has them."""
    monkeypatch.setattr(Recorded, "made", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: graph)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", NoReads().set)
    monkeypatch.setattr(Machine, "captures", True)
    return Recorded.made


@pytest.fixture
def start(tmp_path, monkeypatch):
    """main.run of a tiny model in a folder of its own; 6 steps an epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(digits, "SEQUENCES", {"train": 24, "val": 5, "test": 22})
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: path.touch())

    def run(name: str, *flags: str, mode: str = "train") -> None:
        tiny = [*TINY_FLAGS, "--batch_size", "4", "--val_batch_size", "4", "--precision", "fp32", "--epochs", "2"]
        tiny += ["--layer_config", "0", "0", "0", "1"]
        main.run([mode, *(tiny if mode == "train" else []), "--device", "cpu", "--ex_name", name, *flags])

    run.folder = tmp_path / "results"
    return run


def state_of(folder) -> dict[str, str]:
    """What a run has come to, in digests."""
    _, state = last_checkpoint(folder)
    return {name: digest(state[name]) for name in ("model", "optimizer", "scheduler", "random", "epoch", "best")}


@pytest.mark.parametrize("flags", [("--accumulate", "2", "--grad_clip", "1"), ("--checkpoint_blocks",)], ids=str)
def test_a_graphed_run_is_the_eager_one_to_the_bit(start, recorded, flags):
    start("eager", *flags)
    assert not recorded
    start("graphed", "--graphs", *flags)
    assert [graph.replays for graph in recorded[:2]] == [6 - WARM_UP] * 2  # an epoch each
    assert len(recorded) == 3
    assert recorded[2].replays  # in the test
    assert state_of(start.folder / "graphed") == state_of(start.folder / "eager")
    ends = [json.loads((start.folder / name / "test.json").read_text())["strict"] for name in ("graphed", "eager")]
    assert ends[0] == ends[1]


def test_a_graphed_run_that_is_stopped_within_an_epoch_goes_on_to_the_same_end(start, recorded, monkeypatch):
    start("eager")
    passes, calls = core.Guard.passes, []

    def killed_in_the_second_epoch(*args):
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return passes(*args)

    monkeypatch.setattr(core.Guard, "passes", killed_in_the_second_epoch)
    with pytest.raises(KeyboardInterrupt):
        start("graphed", "--graphs", "--save_every", "1")
    assert last_checkpoint(start.folder / "graphed")[1]["step"] == 5
    start("graphed", "--graphs", "--resume")
    assert state_of(start.folder / "graphed") == state_of(start.folder / "eager")


class Step(nn.Module):
    """A training step of something small with BatchNorm, and a researcher's edit in it."""

    def __init__(self, edit=lambda step, y: y) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.edit, self.calls = edit, 0

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        loss = (self.edit(self, self.model(x)) - target).square().mean()
        loss.backward()
        return loss.detach()

    def found(self) -> list[Tensor]:
        return [p.grad.clone() for p in self.parameters()] + [b.clone() for b in self.buffers()]


def steps(compute, step: Step, sizes=(8,) * 6) -> list[list[Tensor]]:
    """Losses, gradients and buffers of some steps."""
    generator, found = torch.Generator().manual_seed(1), []
    for size in sizes:
        step.zero_grad(set_to_none=True)
        batch = [torch.rand(size, n, generator=generator) for n in (3, 1)]
        found.append([compute(*batch), *step.found()])
    return found


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(torch.equal(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True))


def test_python_runs_at_capture_alone_and_what_is_replayed_is_the_step(recorded):
    eager, step, lines = Step(), Step(), []
    graphed = Graphed(step, step, lines.append)
    assert same(steps(graphed, step), steps(eager, eager))
    assert step.calls == WARM_UP + 2  # the step itself, and its capture
    assert recorded[0].replays == 6 - WARM_UP  # the first of them to compare
    assert not lines


def test_a_batch_of_another_size_is_not_replayed(recorded):
    sizes = (8, 8, 8, 8, 8, 5, 8)
    eager, step, lines = Step(), Step(), []
    assert same(steps(Graphed(step, step, lines.append), step, sizes), steps(eager, eager, sizes))
    assert recorded[0].replays == len(sizes) - WARM_UP - 1
    assert not lines


EDITS = {
    "waits": (lambda step, y: y * (2 if y.mean().item() > 9 else 1), "synchronizing CUDA operation (test_graphs.py:"),
    "draws on the host": (lambda step, y: y * random.random(), "draws random numbers on the host"),
    "counts": (lambda step, y: y * step.calls, "replayed, it differs by"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_step_that_no_graph_can_hold_stays_eager_with_one_line(recorded, edit):
    change, reason = EDITS[edit]
    found, drawn, lines = [], [], []
    for graphed in (False, True):
        random.seed(3)
        step = Step(change)
        compute = Graphed(step, step, lines.append) if graphed else step
        found.append(steps(compute, step, (8,) * (WARM_UP + 1)))
        drawn.append(random.random())
    assert same(*found)
    assert drawn[0] == drawn[1]
    (line,) = lines
    assert line.startswith("warning: a step is no CUDA graph, going on without")
    assert reason in line


def test_a_loss_that_is_not_finite_is_no_reason_to_go_without(recorded):
    step, lines = Step(), []
    graphed, good = Graphed(step, step, lines.append), torch.ones(8, 3)
    for x in (good, good, good, good / 0, good, good):
        step.zero_grad(set_to_none=True)
        graphed(x, torch.zeros(8, 1))
        step.model[1].reset_running_stats()
    assert [graph.replays for graph in recorded] == [2]
    assert not lines


def test_weights_that_autocast_has_rounded_are_rounded_again_by_a_replay(recorded):
    model = nn.Linear(3, 4)
    graphed, x = Graphed(model.forward, model, print), torch.rand(2, 3)
    for _ in range(WARM_UP + 2):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            found, expected = graphed(x), model(x)
        assert found.equal(expected)
        with torch.no_grad():
            model.weight.add_(1)
    assert recorded[0].replays == 2


def test_where_there_are_no_graphs_the_flag_is_refused(start):
    with pytest.raises(UserError, match="--graphs: takes a GPU and a single process, and this is cpu"):
        start("graphed", "--graphs")
    with pytest.raises(UserError, match="--plain: applies nothing; leave out --graphs"):
        start("graphed", "--graphs", "--plain")
