"""What many GPUs take, in one process: torchrun --standalone --nproc_per_node 1 benchmarks/one_process.py [DEVICE]

NCCL (gloo on a CPU), DistributedDataParallel with and without compressed gradients, fully_shard, and BatchNorm over all
processes, on a small model. Prints RESULT and, for each, how far the gradients are from the plain model's. Exit code 1
where they differ by more than rounding.
"""

import copy
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API.machine.distributed import synchronise_norms
from API.machine.sharding import distribute
from DFDNet import DFDNet
from WFL import WeightedFrequencyLoss

MANY = SimpleNamespace(size=2)  # says "more than one process" to what asks
WAYS = {"copies": {}, "compressed": {"compress": True}, "shards": {"shard": True}}
MOST = {"copies": 1e-3, "compressed": 2e-2, "shards": 1e-3}


def gradients(model: torch.nn.Module, forward: torch.nn.Module, device: torch.device) -> torch.Tensor:
    """All of one step's, in a row, float64 on the CPU."""
    torch.manual_seed(2)
    past, future = torch.rand(2, 2, 4, 1, 32, 32).to(device)
    WeightedFrequencyLoss(4, 32, 32).to(device)(forward(past), future).backward()
    whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in model.parameters()]
    return torch.cat([g.flatten().double().cpu() for g in whole])


def run(device: torch.device) -> int:
    """Compare; the exit code."""
    torch.manual_seed(1)
    plain = DFDNet((4, 1, 32, 32), (4, 1, 32, 32), hid_S=8, layer_config=(1, 1, 0, 1)).to(device)
    with torch.no_grad():
        for name, p in plain.named_parameters():
            if name.endswith("threshold"):
                p.fill_(-1.0)  # every gate open: none can flip within rounding
    reference = copy.deepcopy(plain)
    expected = gradients(reference, reference, device)
    found = {}
    for way, options in WAYS.items():
        model = copy.deepcopy(plain)
        synchronise_norms(model)
        forward = distribute(model, MANY, device, model.blocks(), **{"shard": False, "compress": False} | options)
        found[way] = ((gradients(model, forward, device) - expected).norm() / expected.norm()).item()
    print("RESULT " + json.dumps({"backend": dist.get_backend(), "difference": found}), flush=True)
    return int(any(not found[way] <= most for way, most in MOST.items()))


if __name__ == "__main__":
    device = torch.device(sys.argv[1] if len(sys.argv) > 1 else "cuda", 0)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    code = run(device)
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(code)
