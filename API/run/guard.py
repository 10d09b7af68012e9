"""Losses and gradients that are not finite: the step is not taken, and training stops, or goes on and counts."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import UserError
from .files import write_arrays


class Guard:
    """Judges every step before the weights change, without making a GPU wait.

    A step whose loss or gradient is not finite leaves weights and moments as they were: fused Adam is told on the
    device. The host learns of it one step later on a GPU, at once elsewhere.

    mode: "stop" raises UserError then, with epoch, step and learning rate, and keeps the batch; "skip" counts.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mode: str,
        keep: Path | None,
        title: str,
        skipped: int = 0,
    ) -> None:
        """keep: the file for a bad batch; title: of the epoch, for the message; skipped: steps left out before."""
        self.optimizer, self.mode, self.keep, self.title = optimizer, mode, keep, title
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.device = self.parameters[0].device
        self.on_device = all(group.get("fused") for group in optimizer.param_groups)
        self.model = model
        self.skipped = torch.tensor(float(skipped), device=self.device)
        self.waiting: tuple | None = None

    def begin(self) -> None:
        """Before the forward pass. A bad batch spoils running statistics in that already."""
        parts = self.model.modules() if self.mode == "skip" else ()
        places = [(part, name, buffer) for part in parts for name, buffer in part._buffers.items()]
        self.before = [(part, name, buffer.clone()) for part, name, buffer in places if buffer is not None]

    def passes(self, step: int, loss: Tensor, norm: Tensor, batch: Iterable[Tensor]) -> bool:
        """Whether to call optimizer.step(): where loss and norm, that of the gradient, are finite. A fused optimizer
        is to be called in any case: it is told on the device whether to leave the step out, and nothing waits.

        Raises UserError where mode is "stop" and a verdict that is there is bad.
        """
        bad = ~(loss.isfinite() & norm.isfinite())
        self.loss = torch.where(bad, 0.0, loss)  # to count
        for part, name, old in self.before:
            buffer = getattr(part, name)  # another one, where forward has assigned it
            good = torch.where(bad, old, buffer)
            if 0 in buffer.stride():  # expanded: not to be written to
                setattr(part, name, good)
            else:
                buffer.copy_(good)
        self.skipped += bad
        if self.mode == "stop":
            self.look()  # at the step before
            self.waiting = (*self.on_its_way(bad), step, self.optimizer.param_groups[0]["lr"], batch, loss, norm)
            if self.device.type != "cuda":
                self.look()
        if self.on_device:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, bad.float()
            return True
        return not bad

    def on_its_way(self, bad: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        """A copy of bad for the host, and the event after which it is there."""
        if self.device.type != "cuda":
            return bad, None
        flag = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        return flag, event

    def look(self) -> None:
        """Read the verdict that is waiting. Raises UserError if it is bad."""
        if self.waiting is None:
            return
        (bad, event, step, lr, batch, loss, norm), self.waiting = self.waiting, None
        if event is not None:
            event.synchronize()
        if not bad:
            return
        what = f"the loss ({loss.item():.4g})" if not loss.isfinite() else f"the gradient (norm {norm.item():.4g})"
        kept = ""
        if self.keep is not None:
            past, future = (x.float().cpu().numpy() for x in batch)
            try:
                write_arrays(self.keep, past=past, future=future)
                kept = f" The batch is in {self.keep}."
            except UserError as error:
                kept = f" The batch is lost: {error}."
        raise UserError(
            f"{self.title}, step {step + 1}, learning rate {lr:.3g}: {what} is not finite; lower --lr, set --grad_clip "
            f"1, use --precision fp32, or go on past such steps with --on_nonfinite skip.{kept} "
            "The last good checkpoint is kept"
        )


def gradient_norm(parameters: Iterable[Tensor], largest: float | None = None) -> Tensor:
    """The norm of all gradients together; where it is more than largest, they are scaled to have that."""
    parameters = [p for p in parameters if p.grad is not None]
    if largest is not None or not hasattr(nn.utils, "get_total_norm"):  # new in PyTorch 2.6
        norm = nn.utils.clip_grad_norm_(parameters, float("inf") if largest is None else largest)
    else:
        norm = nn.utils.get_total_norm([p.grad for p in parameters])
    return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded gradients
