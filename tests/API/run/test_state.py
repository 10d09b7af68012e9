"""Runs that go on after the model was edited."""

import pytest
import torch
from torch import nn

from API import UserError
from API.machine.distributed import World
from API.run.state import TrainingState


class Pair(nn.Module):
    """Two parameters of one shape, made in this order."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        for name in names:
            setattr(self, name, nn.Parameter(torch.zeros(3)))


def state_of(model: nn.Module) -> TrainingState:
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    return TrainingState(
        model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer), {}, World(torch.device("cpu"))
    )


def trained(*names: str) -> TrainingState:
    """After a step in which each parameter has a gradient of its own."""
    run = state_of(Pair(*names))
    run.model.a.grad, run.model.b.grad = torch.full((3,), 1.0), torch.full((3,), -5.0)
    run.optimizer.step()
    return run


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_moments_go_with_their_parameters_where_lines_of_the_model_are_put_in_another_order(names):
    saved, run = trained("a", "b"), state_of(Pair(*names))
    run.restore(saved.checkpoint())
    for name in names:
        ours, theirs = (s.optimizer.state[getattr(s.model, name)] for s in (run, saved))
        assert torch.equal(ours["exp_avg"], theirs["exp_avg"])
        assert torch.equal(ours["exp_avg_sq"], theirs["exp_avg_sq"])


def test_a_checkpoint_without_the_order_goes_on_as_it_did():
    saved, run = trained("a", "b").checkpoint(), state_of(Pair("a", "b"))
    del saved["order"]
    run.restore(saved)
    assert run.optimizer.state[run.model.b]["exp_avg"][0] < 0 < run.optimizer.state[run.model.a]["exp_avg"][0]


def test_a_parameter_that_was_added_is_named():
    run = state_of(Pair("a", "b", "extra"))
    with pytest.raises(UserError, match=r"^--resume: the checkpoint is not of this model: 'extra' is missing$"):
        run.restore(trained("a", "b").checkpoint())


def frozen(run: TrainingState, name: str) -> TrainingState:
    getattr(run.model, name).requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in run.model.parameters() if p.requires_grad], 0.1)
    return TrainingState(run.model, optimizer, run.scheduler, {}, run.world)


def grouped(run: TrainingState, *names: str) -> TrainingState:
    optimizer = torch.optim.Adam(
        [{"params": [getattr(run.model, name)], "lr": 1 / k} for k, name in enumerate(names, 1)]
    )
    return TrainingState(run.model, optimizer, run.scheduler, {}, run.world)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        (trained("a", "b"), frozen(state_of(Pair("a", "b")), "a")),
        (frozen(trained("a", "b"), "a"), state_of(Pair("a", "b"))),
        (frozen(trained("a", "b"), "b"), frozen(state_of(Pair("a", "b")), "a")),
        (grouped(trained("a", "b"), "a", "b"), grouped(state_of(Pair("a", "b")), "b", "a")),
        (trained("a", "b"), grouped(state_of(Pair("a", "b")), "b", "a")),
    ],
    ids=["frozen now", "frozen then", "another is frozen", "groups in another order", "another number of groups"],
)
def test_a_parameter_that_is_learned_otherwise_is_named(then, now):
    with pytest.raises(UserError, match=r"^--resume: .*\([ab] was learned otherwise: is it frozen now"):
        now.restore(then.checkpoint())


def test_data_of_another_number_of_steps_are_refused():
    def run(steps: int) -> TrainingState:
        state = state_of(Pair("a", "b"))
        state.scheduler = torch.optim.lr_scheduler.OneCycleLR(state.optimizer, 0.1, total_steps=steps)
        return state

    run(6).restore(run(6).checkpoint())
    with pytest.raises(UserError, match=r"^--data_root: with these data the run has 14 steps, and had 6; restore them"):
        run(14).restore(run(6).checkpoint())
