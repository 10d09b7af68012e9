"""Many processes, one run: `torchrun --nproc_per_node N main.py …`, on PyTorch's own engine.

Each process computes its share of every batch; gradients, BatchNorm's statistics and scores are put together.
"""

import datetime
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed._functional_collectives import all_reduce, wait_tensor

from .. import UserError
from .processes import check_launch, processes, rank, starts


class World:
    """The processes of a run. With one, every method does the obvious at no cost.

    size, rank: how many, and which this is. main: whether it is the one that writes, logs and draws.
    """

    def __init__(self, device: torch.device, timeout_minutes: float = 10.0) -> None:
        self.size, self.rank = processes(), rank()
        self.main = self.rank == 0
        self.host = None
        if self.size > 1:
            check_launch()
            limit = datetime.timedelta(minutes=timeout_minutes)
            if not dist.is_initialized():
                # torchrun's store outlives a restart: without a name of its own, a process that is started again may
                # read the addresses of those before it.
                store, _, _ = next(dist.rendezvous("env://", self.rank, self.size, timeout=limit))
                store = dist.PrefixStore(f"start_{starts()}", store)
                backend = "nccl" if device.type == "cuda" else "gloo"
                dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=limit)
            # Decisions of the processes, not of their GPUs: over this group no GPU has to be waited for.
            self.host = dist.new_group(backend="gloo", timeout=limit) if device.type == "cuda" else dist.group.WORLD

    def share(self, items: Sequence) -> Sequence:
        """This process's part of items: the parts of all ranks in order are items, and differ by one at most."""
        n = len(items)
        return items[self.rank * n // self.size : (self.rank + 1) * n // self.size]

    def any(self, *wishes: bool) -> list[bool]:
        """Each wish, whether any process has it; the same answer in all."""
        if self.size == 1:
            return list(wishes)
        votes = torch.tensor(wishes, dtype=torch.int32)
        dist.all_reduce(votes, group=self.host)
        return [vote > 0 for vote in votes.tolist()]

    def sum(self, value: Tensor) -> Tensor:
        """The sum of value over all processes; the same in all."""
        if self.size > 1:
            value = value.clone()
            dist.all_reduce(value, group=self.host if value.device.type == "cpu" else None)
        return value

    def join(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{name: (n_rank, …)} on the CPU of every process -> {name: (sum of n_rank, …)}, in order of the ranks."""
        if self.size == 1:
            return dict(parts)
        everyone: list = [None] * self.size
        dist.all_gather_object(everyone, dict(parts), group=self.host)
        return {name: torch.cat([own[name] for own in everyone]) for name in parts}

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            dist.barrier(group=self.host)


class _Sum(torch.autograd.Function):
    """The sum over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return wait_tensor(all_reduce(value.contiguous(), "sum", dist.group.WORLD))

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return wait_tensor(all_reduce(grad.contiguous(), "sum", dist.group.WORLD))


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the batches of all processes, on any device: x (B, C, …) -> the same.

    Every process must bring a batch of the same size. One all-reduce forward and one backward, nothing waits for a GPU,
    and the compiler can trace it, none of which holds of torch.nn.SyncBatchNorm.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions will do."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            others = [0, *range(2, x.dim())]  # all dimensions but the channels
            size = dist.get_world_size()
            # Every process fills a row of zeros, so their sum is a list of all. To put means and variances together
            # is more exact than sums of squares are, where a mean is large.
            own = torch.stack(torch.var_mean(wide, others, correction=0))  # (2, C)
            rank = dist.get_rank()
            variances, means = _Sum.apply(F.pad(own[None], (0, 0, 0, 0, rank, size - 1 - rank))).unbind(1)
            mean = means.mean(0)
            variance = variances.mean(0) + (means - mean).square().mean(0)
            if self.track_running_stats:
                self._update(mean.detach(), variance.detach(), size * x.numel() // x.shape[1])
            scale = (variance + self.eps).rsqrt()
            scale, shift = (scale * self.weight, self.bias) if self.affine else (scale, torch.zeros_like(mean))
            mean, scale, shift = (value.view(-1, *[1] * (x.dim() - 2)) for value in (mean, scale, shift))
            return torch.addcmul(shift, wide - mean, scale).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor, n: int) -> None:
        """Move the running statistics towards those of a batch of n values a channel."""
        self.num_batches_tracked.add_(1)
        for running, value in ((self.running_mean, mean), (self.running_var, variance * (n / max(n - 1, 1)))):
            step = value.to(running.dtype) - running
            # Operators in place alone: the compiler cannot trace an assignment to a buffer.
            running.add_(step / self.num_batches_tracked if self.momentum is None else step * self.momentum)


def synchronise_norms(model: nn.Module) -> nn.Module:
    """model with every BatchNorm over the batches of all processes; names and values of its state stay.

    Raises UserError for a class derived from BatchNorm, whose own forward this would bypass.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
                raise UserError(f"{name}: a {type(module).__name__} is not known to work in many processes; run one")
            module.__class__ = SynchronisedBatchNorm
    return model
