"""How long scoring takes: 10,000 sequences of 10 frames of 64x64, every metric of every protocol but LPIPS.

    python benchmarks/metrics.py [--device cuda]

Prints seconds, and writes benchmarks/results/metrics.json. Frames are noise; making them is not timed.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from API.evaluation.metrics import PROTOCOLS, Scores
from benchmarks.record import RESULTS, check_device, write_result


def run() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sequences", type=int, default=10_000)
    parser.add_argument("--batch_size", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/metrics.json, metrics_cuda.json")
    args = parser.parse_args()
    check_device(parser, args.device)
    device = torch.device(args.device)
    torch.manual_seed(1)
    future = torch.rand(args.batch_size, 10, 1, 64, 64, device=device)
    predicted = (future + 0.1 * torch.randn_like(future)).clamp(-0.1, 1.1)
    result = {}
    for name, protocols in {"strict": ["strict"], "all protocols": list(PROTOCOLS)}.items():
        seconds = []
        for _ in range(args.rounds + 1):  # the first warms up
            scores, began = Scores(protocols), time.perf_counter()
            for _ in range(args.sequences // args.batch_size):
                scores.update(predicted, future)
            scores.summary()  # reads the results, so waits for the device
            seconds.append(time.perf_counter() - began)
        result[name] = {"seconds": statistics.median(seconds[1:]), "min": min(seconds[1:]), "max": max(seconds[1:])}
        print(f"{args.sequences} sequences, {name:<14} {result[name]['seconds']:.2f} s on {device}", flush=True)
    name = "metrics.json" if device.type == "cpu" else f"metrics_{device.type}.json"
    write_result(args.output or RESULTS / name, {"sequences": args.sequences, **result}, seed=1)


if __name__ == "__main__":
    run()
