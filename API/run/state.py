"""Where a training run stands, and everything about saving, stopping and resuming it."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn

from .. import UserError
from ..machine.distributed import World
from ..machine.sharding import restore_states, whole_states
from .checkpoint import SaveEvery, Saver, random_states, restore_random_states
from .guard import Guard
from .interrupt import Interrupted, StopSignals
from .weights import first_misfit

PLACE = ("epoch", "step", "total", "skipped", "best", "lr", "lr_squares")


class TrainingState:
    """Model, optimizer and schedule of a run, and its place: whole epochs done, steps done of the next one, the sum of
    their losses, how many of them were skipped, the best validation error, the learning rate of the last step, and the
    sum of the squares of the filters' learning rates of all steps.

    Used as a context, it catches the signals to stop and writes checkpoints behind training's back.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        config: Mapping,
        world: World,
        save_every: str | None = None,
    ) -> None:
        """config: what checkpoints say about the run. save_every: as --save_every."""
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.config, self.world = dict(config), world
        self.due, self.last = SaveEvery(save_every), Path("last.pth")
        self.epoch, self.step, self.total, self.skipped, self.best = 0, 0, 0.0, 0, math.inf
        self.lr, self.lr_squares = scheduler.get_last_lr()[0], 0.0

    def checkpoint(self) -> dict:
        """Everything needed to go on from here, as tensors and plain values; with --shard, every process must ask."""
        parts = whole_states(self.model, self.optimizer) | {"scheduler": self.scheduler.state_dict()}
        place = {name: getattr(self, name) for name in PLACE}
        return {**parts, **place, "random": random_states(), "config": self.config}

    def restore(self, state: Mapping) -> None:
        """Go on from a checkpoint. Raises UserError where it does not fit."""
        if misfit := first_misfit(self.model.state_dict(), state.get("model", {})):
            raise UserError(f"--resume: the checkpoint is not of this model: {misfit}")
        then, now = (one.get("total_steps") for one in (state.get("scheduler", {}), self.scheduler.state_dict()))
        if then is not None and then != now:
            what = f"with these data the run has {now} steps, and had {then}"
            raise UserError(
                f"--data_root: {what}; restore them, or start another --ex_name, with --init from its weights"
            )
        try:
            restore_states(self.model, self.optimizer, state)
            self.scheduler.load_state_dict(state["scheduler"])
            restore_random_states(state["random"])
            place = {"lr": self.lr, "lr_squares": math.nan, **state}  # checkpoints of before have none
            for name in PLACE:
                setattr(self, name, place[name])
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"--resume: the checkpoint holds no run to go on with ({reason})") from None

    def save_in(self, folder: Path) -> "TrainingState":
        """Write last.pth and best.pth there; returns self, to be entered as a context."""
        self.last, self.best_path = folder / "last.pth", folder / "best.pth"
        return self

    def __enter__(self) -> "TrainingState":
        self.stop, self.saver = StopSignals(), Saver(self.world.main)
        self.stop.__enter__()
        self.saver.__enter__()
        return self

    def __exit__(self, *exception) -> None:
        try:
            self.saver.__exit__(*exception)
        finally:
            self.stop.__exit__(*exception)

    def after_step(self, step: int, total: Callable[[], float], guard: Guard) -> None:
        """Save if it is due, stop if it was asked for: step steps of the epoch are done, and total() their losses."""
        stopping, saving = self.world.any(self.stop.asked, self.world.main and self.due(step))
        if stopping or saving:
            guard.look()  # what has met a loss that is not finite is not saved
            self.step, self.total, self.skipped = step, total(), int(guard.skipped)
            self.saver.save(self.checkpoint(), self.last)
        if stopping:
            self.leave(f"in epoch {self.epoch + 1}, step {step}")

    def after_epoch(self, error: float | None) -> None:
        """An epoch is done, with this validation error, if it was measured: save, and stop if that was asked for."""
        self.epoch, self.step, self.total, self.skipped = self.epoch + 1, 0, 0.0, 0
        is_best = error is not None and error < self.best
        self.best = error if is_best else self.best
        (stopping,) = self.world.any(self.stop.asked)
        if error is not None or stopping:
            self.saver.save(self.checkpoint(), *([self.best_path, self.last] if is_best else [self.last]))
        if stopping:
            self.leave(f"after epoch {self.epoch}")

    def leave(self, where: str) -> NoReturn:
        """End the run: everything is saved."""
        self.finish()
        raise Interrupted(f"stopped {where}; go on with --resume")

    def leave_test(self) -> None:
        """Stop if that was asked for, in the test after the last epoch. Each of many processes sees to itself, as they
        have not equally many batches."""
        if self.stop.asked:
            raise Interrupted("stopped in the test; go on with --resume")

    def finish(self) -> None:
        """Wait until everything is written, by every process."""
        self.saver.wait()
        self.world.wait()
