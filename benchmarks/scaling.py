"""How training scales: one process against two, or as many as there are GPUs, and what exchanging gradients takes.

    python benchmarks/scaling.py [--rounds 5] [--batch_size 1] [--precision fp32]
    python benchmarks/scaling.py --estimate 0.1 [--batch_size 16]

The first measures the Moving MNIST model: steps of one process alone, and of N together with as many sequences each, on
one thread each where there are no GPUs; with copies and bfloat16 compression, and without exchange, whose difference is
what communication adds. It writes benchmarks/results/scaling.json. The second estimates steps on 8 to 256 GPUs from a
compute time in seconds that was measured on one, the gradients' bytes, and link speeds as their makers state them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API.machine.device import Machine
from API.machine.distributed import synchronise_norms
from API.machine.processes import leave
from API.machine.sharding import distribute, without_exchange
from benchmarks.record import RESULTS, write_result
from DFDNet import DFDNet
from WFL import WeightedFrequencyLoss

GRADIENT_BYTES = 4 * 149_145_513
# Bytes a second and direction of one GPU, as stated: NVLink 4 inside a node of 8, 400 Gbit/s InfiniBand between nodes.
INSIDE, BETWEEN, NODE = 450e9, 50e9, 8


def measure(batch: int, precision: str, rounds: int) -> None:
    """Print the seconds of training steps of the first process, by way; rounds of one step of each way in turn."""
    machine = Machine("auto", 0, precision, 1, False)
    world, device = machine.world, machine.device
    past, future = (torch.rand(batch, 10, 1, 64, 64, device=device) for _ in range(2))
    criterion = WeightedFrequencyLoss(10, 64, 64).to(device)

    def make(compress: bool):
        model = DFDNet()
        if world.size > 1:
            model = synchronise_norms(model)
        model = model.to(device).train()
        forward = distribute(model, world, device, [], False, compress)
        return forward, torch.optim.Adam(model.parameters(), lr=1e-5, fused=True)

    ways = {"copies": (*make(False), False)}
    if world.size > 1:
        ways["without exchange"] = (*ways["copies"][:2], True)
        ways["compressed"] = (*make(True), False)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 2):  # two to warm up
        for way, (forward, optimizer, alone) in ways.items():
            world.wait()
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            with without_exchange(forward, skip=alone):
                with machine.autocast():
                    predicted = forward(past)
                criterion(predicted, future).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
            world.wait()
            if turn >= 2:
                seconds[way].append(time.perf_counter() - began)
    if world.main:
        print("RESULT " + json.dumps(seconds), flush=True)


def launch(processes: int, args: argparse.Namespace) -> dict[str, list[float]]:
    """What measure prints in so many processes."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [__file__, "--measure", "--rounds", str(args.rounds), "--batch_size", str(args.batch_size)]
    command += ["--precision", args.precision]
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(done.stdout + done.stderr)
    return json.loads(lines[0].removeprefix("RESULT "))


def estimate(compute: float, batch: int) -> list[dict[str, float]]:
    """Of a step, by number of GPUs: a ring all-reduce moves 2 (N - 1) / N of the gradients' bytes over the slowest link
    on its way; hidden: while backward, two thirds of a step, computes."""
    rows = []
    for gpus in (8, 16, 32, 64, 128, 256):
        for bits, size in ((32, GRADIENT_BYTES), (16, GRADIENT_BYTES // 2)):
            speed = INSIDE if gpus <= NODE else BETWEEN
            traffic = 2 * (gpus - 1) / gpus * size / speed
            step = max(compute, compute / 3 + traffic)
            row = {"gpus": gpus, "bits": bits, "communication": traffic, "step": step}
            rows.append(row | {"sequences_per_second": gpus * batch / step, "efficiency": compute / step})
    return rows


def run() -> None:
    """Measure or estimate, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=1, help="sequences a process")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--estimate", type=float, metavar="SECONDS", help="of computing a step on one GPU")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.batch_size, args.precision, args.rounds)
        leave(0)
    if args.estimate:
        for row in estimate(args.estimate, args.batch_size):
            exchange = f"gradients in {row['bits']} bits: exchange {row['communication'] * 1e3:6.1f} ms"
            step = f"step {row['step'] * 1e3:7.1f} ms, {row['sequences_per_second']:8.0f} sequences/s"
            print(f"{row['gpus']:4} GPUs, {exchange}, {step}, {row['efficiency']:.0%}")
        return
    processes = max(2, torch.cuda.device_count())
    alone, again = launch(1, args), None
    together = launch(processes, args)
    again = launch(1, args)  # before and after, as the machine drifts
    one = statistics.median(alone["copies"] + again["copies"])
    result = {"processes": processes, "batch_a_process": args.batch_size, "precision": args.precision, "alone": one}
    print(f"1 process: {one:.2f} s a step of {args.batch_size}")
    for way, seconds in together.items():
        median = statistics.median(seconds)
        free = statistics.median(together["without exchange"])
        result[way] = {
            "seconds": median, "spread": [min(seconds), max(seconds)], "efficiency": one / median,
            "exchange_share": 1 - free / median,
        }  # fmt: skip
        print(
            f"{processes} processes, {way}: {median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), efficiency "
            f"{one / median:.0%}, exchange {1 - free / median:.1%}"
        )
    result["alone_spread"] = [min(alone["copies"] + again["copies"]), max(alone["copies"] + again["copies"])]
    name = "scaling_cuda.json" if torch.cuda.is_available() else "scaling.json"
    write_result(RESULTS / name, result, seed=1)


if __name__ == "__main__":
    run()
