"""Many processes, one run: `torchrun --nproc_per_node N main.py …`, on PyTorch's own engine.

Each process computes its share of every batch; gradients, BatchNorm's statistics and scores are put together.
"""

import datetime
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .processes import processes, rank, starts


class World:
    """The processes of a run. With one, every method does the obvious at no cost.

    size, rank: how many, and which this is. main: whether it is the one that writes, logs and draws.
    """

    def __init__(self, device: torch.device, timeout_minutes: float = 10.0) -> None:
        self.size, self.rank = processes(), rank()
        self.main = self.rank == 0
        self.host = None
        if self.size > 1:
            limit = datetime.timedelta(minutes=timeout_minutes)
            if device.type == "cuda":
                torch.cuda.set_device(device)
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
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone()
        dist.all_reduce(grad)
        return grad


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the batches of all processes, for CPUs: torch.nn.SyncBatchNorm is for GPUs alone.

    x (B, C, H, W) -> the same. Every process must bring a batch of the same size.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            wide = x if x.dtype == torch.float64 else x.float()
            n = dist.get_world_size() * x.numel() // x.shape[1]
            mean = _Sum.apply(wide.sum((0, 2, 3))) / n
            centred = wide - mean[:, None, None]
            variance = _Sum.apply(centred.square().sum((0, 2, 3))) / n
            if self.track_running_stats:
                with torch.no_grad():
                    self.num_batches_tracked.add_(1)
                    self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                    unbiased = variance * (n / max(n - 1, 1))
                    self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            scale = self.weight.to(wide.dtype) * (variance + self.eps).rsqrt()
            return (centred * scale[:, None, None] + self.bias.to(wide.dtype)[:, None, None]).to(x.dtype)


def synchronise_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """model with every BatchNorm2d over the batches of all processes; names and values of its state stay."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SynchronisedBatchNorm2d
    return model
